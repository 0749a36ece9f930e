"""What the processes of a run report to, but for the first one, which writes its files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm.report.run_files import now, write_result
from llm.report.run_report import RunReport, Status, error_record
from llm.report.samples import Sample


class SilentReport(RunReport):
    """Writes nothing, unless the run fails here: the first process may never hear why."""

    def __init__(self, folder: Path, process: int) -> None:
        """`process` is the number of this one."""
        self.folder, self._process = folder, process
        self.tracker_id = ""
        self._started = now()
        self._step = self._tokens = 0

    def log(self, step: int, tokens: int, metrics: Mapping[str, float]) -> None:
        """Remember how far it is."""
        del metrics
        self._step, self._tokens = step, tokens

    def samples(self, step: int, tokens: int, samples: Sequence[Sample]) -> None:
        """Nothing."""

    def answering(self, what: str, done: int, total: int, tokens: int) -> None:
        """Nothing."""

    def completions(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def checkpoint(self, folder: Path, alias: str, metadata: Mapping[str, Any]) -> None:
        """Nothing."""

    def say(self, message: str) -> None:
        """Nothing."""

    def finish(
        self,
        status: Status,
        *,
        error: BaseException | str | None = None,
        ledger: Mapping[str, float] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Only a failure is written down: result.json, with the number of the process."""
        if status != "failed":
            return
        record = error_record(error) or {"type": "Error", "message": ""}
        record["message"] = f"process {self._process}: {record['message']}"
        write_result(
            self.folder, status=status, step=self._step, tokens=self._tokens,
            started=self._started, final={}, best={}, ledger=ledger or {}, error=record,
            **(extra or {}),
        )  # fmt: skip
