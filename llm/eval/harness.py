"""Tasks of lm-evaluation-harness: names of its own, and local files."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm.core.spec import RefusedError
from llm.eval.scorer import Scorer
from llm.generate.language_model import LanguageModel

HOW_TO_INSTALL = 'Install it: pip install -e ".[eval]"'
_NAME = re.compile(r"^(?:task|group):\s*[\"']?([^\s\"'#]+)", re.MULTILINE)


def run_harness(
    lm: LanguageModel,
    scorer: Scorer,
    tasks: Sequence[str],
    *,
    chat: bool,
    shots: int | None,
    limit: int | None,
    batch_size: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """What the harness finds out about a model.

    Args:
        lm: the model.
        scorer: of the model.
        tasks: names of tasks that come with the harness, .yaml files, or folders of them.
        chat: ask in the model's chat template.
        shots: examples before a question; None: as each task says.
        limit: questions of each task at most.
        batch_size: answers that are written at a time.
        seed: of what is drawn: examples, answers.

    Returns:
        Of each task its measures, such as {"acc": 0.5, "acc_stderr": 0.05}; what a filter other
        than none gives has its name after an @.

    Raises:
        RefusedError: the harness is not installed, or there is no such task.
        NotFiniteError: the model's log-probabilities are no numbers.
    """
    try:
        from lm_eval import simple_evaluate
        from lm_eval.tasks import TaskManager

        from llm.eval.lm_eval_model import HarnessModel
    except ImportError as error:
        raise RefusedError(f"lm_eval={list(tasks)}: {error}. {HOW_TO_INSTALL}") from None
    for name in ("lm_eval", "lm-eval"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Its bootstrap would fork this process, and JAX has threads.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    folders, names = local_tasks(tasks)
    own_names = not all(map(_is_local, tasks))
    manager = TaskManager(include_path=[str(folder) for folder in folders] or None,
                          include_defaults=own_names)  # fmt: skip
    known = set(manager.all_tasks)
    for name in names:
        if name not in known:
            raise RefusedError(
                f"lm_eval={name}: neither a .yaml file, nor a folder of such, nor a task of the "
                "harness (lm-eval ls tasks lists them)"
            )
    found = simple_evaluate(
        HarnessModel(lm, scorer, batch_size=batch_size, seed=seed),
        tasks=names,
        num_fewshot=shots,
        limit=limit,
        bootstrap_iters=1000,
        log_samples=False,
        apply_chat_template=chat,
        task_manager=manager,
        random_seed=seed,
        numpy_random_seed=seed,
        torch_random_seed=None,
        fewshot_random_seed=seed,
    )
    return {name: dict(_measures(values)) for name, values in found["results"].items()}


def _is_local(word: str) -> bool:
    return word.endswith((".yaml", ".yml")) or Path(word).expanduser().is_dir()


def local_tasks(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Folders to look into, and the names of tasks.

    Raises:
        RefusedError: a file that is not there, or names no task.
    """
    folders: list[Path] = []
    names: list[str] = []
    for word in words:
        if not _is_local(word):
            names.append(word)
            continue
        path = Path(word).expanduser()
        files = sorted(path.glob("*.y*ml")) if path.is_dir() else [path]
        try:
            texts = [file.read_text(encoding="utf-8") for file in files]
        except (OSError, UnicodeDecodeError) as error:
            raise RefusedError(f"lm_eval={word}: cannot be read: {error}") from None
        found = [match[1] for text in texts if (match := _NAME.search(text))]
        if not found:
            raise RefusedError(f"lm_eval={word}: no `task: NAME` in it")
        folders.append((path if path.is_dir() else path.parent).absolute())
        names += found
    return list(dict.fromkeys(folders)), list(dict.fromkeys(names))


def _measures(values: dict[str, Any]) -> list[tuple[str, float]]:
    found = []
    for key, value in values.items():
        measure, _, filter = key.partition(",")
        if isinstance(value, (int, float)) and filter:
            found.append((measure if filter == "none" else f"{measure}@{filter}", float(value)))
    return found
