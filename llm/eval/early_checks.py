"""What can be refused before a folder is made or a weight is read."""

from __future__ import annotations

from pathlib import Path

from llm.eval.specs import EvaluateSpec
from llm.eval.token_file import check_token_file
from llm.hub.sources import check_source


def check_words(spec: EvaluateSpec) -> None:
    """Refuse checkpoints and files that cannot be there.

    Raises:
        RefusedError: with the first of them.
    """
    for words in spec.checkpoints:
        check_source(words, "checkpoint")
    if spec.per_token is not None:
        check_token_file(Path(spec.per_token).expanduser())
