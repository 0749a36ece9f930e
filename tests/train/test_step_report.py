"""Each step has its own time, also where steps run while they are dispatched."""

import time
from unittest.mock import Mock

import jax.numpy as jnp
import pytest

from llm.core.compilations import Compilations
from llm.report.run_report import RunReport
from llm.train.step_report import StepReport


def test_time_of_each_step() -> None:
    report = Mock(spec=RunReport)
    steps = StepReport(
        report, tokens=0, flops_per_token=1, peak_flops=None, memory_gib=lambda: 1.0,
        compilations=Compilations(),
    )  # fmt: skip
    wanted = [0.05, 0.3, 0.05, 0.15]
    metrics = {"train/loss": jnp.float32(1), "tokens": jnp.float32(10)}
    for array in metrics.values():
        array.block_until_ready()
    steps.restart_clock()
    for number, seconds in enumerate(wanted, 1):
        time.sleep(seconds)
        steps.push(number, dict(metrics), {}, data_wait=0.0)
    steps.flush()
    events = [call.args[2] for call in report.log.call_args_list]
    assert [event["perf/step_time"] for event in events] == pytest.approx(wanted, abs=0.045)
    assert all(e["perf/tokens_per_second"] == 10 / e["perf/step_time"] for e in events)
