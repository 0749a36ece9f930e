"""Documents from questions made up by rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import llm.data.tasks as tasks_package
from llm.data.digests import digest_files
from llm.data.formats import Document, Format
from llm.data.source import Skipped, Source
from llm.data.specs import DocumentsSpec
from llm.data.tasks import reasoning_gym
from llm.data.tasks.registry import kinds, tasks

_TASKS = 20_000  # where `max_documents` names no number


class Tasks(Source):
    """Questions made up by rule, by us or by reasoning-gym, with answers; nothing is downloaded."""

    def __init__(self, spec: DocumentsSpec, cache_dir: Path, format: Format) -> None:
        super().__init__(spec, cache_dir, format)
        self._names = kinds(spec.path)
        self._count = spec.max_documents or _TASKS
        tasks(self._names, self._count)  # refuses a name that there is not
        format.columns(["messages", "text"], self.name)

    @property
    def size(self) -> int | None:
        """Only making them would tell."""
        return None

    def _identity(self) -> Sequence[object]:
        files = sorted(Path(tasks_package.__path__[0]).glob("*.py"))  # another rule, other tasks
        rules = [digest_files(files, self._cache_dir)]
        if self._names[0].startswith(reasoning_gym.PREFIX):
            rules.append(reasoning_gym.version())
        return [self._names, self._count, *rules]

    def _read(self, skipped: Skipped) -> Iterator[Document]:
        for number, task in enumerate(tasks(self._names, self._count)):
            messages = [
                {"role": "user", "content": task.question},
                {"role": "assistant", "content": task.answer},
            ]
            record = {
                "messages": messages,
                "text": task.text,
                "task": task.name,
                "number": task.number,
            }
            yield self.format.document(record, f"{self.name}:{number}")
