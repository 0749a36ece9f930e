"""What other processes than the first report to."""

import inspect
import json

from llm.report.run_report import RunReport
from llm.report.silent_report import SilentReport


def test_nothing_of_the_first_processs_report_is_left_to_inherit() -> None:
    public = {n for n, f in vars(RunReport).items() if inspect.isfunction(f) and n[0] != "_"}
    assert public <= vars(SilentReport).keys()


def test_only_a_failure_is_written_down(tmp_path) -> None:
    report = SilentReport(tmp_path, 3)
    report.log(7, 700, {"train/loss": 1.0})
    report.finish("finished")
    assert not list(tmp_path.iterdir())
    report.finish("failed", error=ValueError("no"))
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["status"], result["step"], result["tokens"]) == ("failed", 7, 700)
    assert result["error"] == {"type": "ValueError", "message": "process 3: no"}
