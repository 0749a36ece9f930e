"""What can be refused before a folder is made or a weight is read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from llm.core.new_file import check_new_file
from llm.core.spec import RefusedError
from llm.eval.harness import HOW_TO_INSTALL, local_tasks
from llm.eval.questions import question_set
from llm.eval.specs import EvaluateSpec
from llm.hub.sources import check_source


def check_words(spec: EvaluateSpec) -> None:
    """Refuse checkpoints, tasks and files that cannot be there.

    Raises:
        RefusedError: with the first of them.
    """
    for words in spec.checkpoints:
        check_source(words, "checkpoint")
    if spec.per_token is not None:
        check_new_file(Path(spec.per_token).expanduser(), "per_token")
    names = [question_set(word, limit=1, shots=0).name for word in spec.tasks]
    if len(set(names)) < len(names):
        raise RefusedError(f"tasks={list(spec.tasks)}: two of them have one name")
    local_tasks(spec.lm_eval)
    if spec.lm_eval and importlib.util.find_spec("lm_eval") is None:
        raise RefusedError(f"lm_eval={list(spec.lm_eval)}: it is not installed. {HOW_TO_INSTALL}")
