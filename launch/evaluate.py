"""What is a model worth? python launch/evaluate.py checkpoint=SRC data.source=text data.path=..."""

from __future__ import annotations

import sys
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from launch.config import spec_from_config
from launch.program import refuse, start, start_logging
from llm.core.spec import RefusedError
from llm.eval.specs import EvaluateSpec


@hydra.main(version_base="1.3", config_path="../conf", config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate; result.json, report.md and evaluation.png in its folder hold the figures."""
    hydra_config = HydraConfig.get()
    try:
        start_logging()
        evaluate_and_show(
            spec_from_config(cfg, EvaluateSpec), Path(hydra_config.runtime.output_dir)
        )
    except RefusedError as error:
        if hydra_config.mode == RunMode.MULTIRUN:  # the others go on; `start` reports this one
            raise
        refuse(error)


def evaluate_and_show(spec: EvaluateSpec, folder: Path) -> None:
    """Evaluate, and print the tables."""
    from rich.console import Console

    from llm.eval.evaluation import evaluate
    from llm.eval.show import show

    record = evaluate(spec, folder)
    show(Console(file=sys.stdout, highlight=False), record)
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    start(main)
