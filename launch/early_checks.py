"""What specs alone cannot tell, but can be known before a run begins."""

from __future__ import annotations

from collections.abc import Iterable

from llm.core.spec import RefusedError
from llm.data.specs import DocumentsSpec
from llm.train.experiment import ExperimentSpec
from llm.train.optimizer_specs import OptaxSpec


def check_what_is_there(experiment: ExperimentSpec) -> None:
    """Are files and device there, is the optimizer known to optax?

    Raises:
        RefusedError: with the key, and what is missing.
    """
    check_documents(experiment.data.sources)
    _check_tokenizer(experiment)
    try:
        experiment.trainer.check_available()
    except RefusedError as error:
        raise RefusedError(f"trainer.{error}") from None
    optimizer = experiment.trainer.optimizer
    if isinstance(optimizer, OptaxSpec):
        from llm.train.optimizers import find_optax

        find_optax(optimizer.optimizer, optimizer.options)
    if experiment.trainer.freeze:
        from llm.train.trainable import trained_names

        model = experiment.model.replace(vocab_size=experiment.model.vocab_size or 1)
        trained_names(model, tuple(experiment.trainer.freeze))
    if experiment.hardware.require:
        from llm.core.machine import claim

        claim(experiment.hardware)


def _check_tokenizer(experiment: ExperimentSpec) -> None:
    """A tokenizer that lies on this machine must be readable, and the model have room for it."""
    path, model = experiment.data.tokenizer.path, experiment.model
    if path is None or path.startswith("hf:"):
        return
    from llm.data.tokenizer import Tokenizer

    try:
        size = Tokenizer.load(path, experiment.data.tokenizer.separator).vocab_size
    except RefusedError as error:
        raise RefusedError(f"data.tokenizer.{error}") from None
    if model.vocab_size is not None and model.vocab_size < size:
        raise RefusedError(
            f"model.vocab_size={model.vocab_size}: data.tokenizer.path={path} has {size} tokens; "
            "set it to null to take the tokenizer's"
        )


def check_documents(sources: Iterable[DocumentsSpec]) -> None:
    """Are the files there, and the tasks known?

    Raises:
        RefusedError: with the first of `data`'s keys for which they are not.
    """
    for source in sources:
        try:
            _check_source(source)
        except RefusedError as error:
            raise RefusedError(f"data.{error}") from None


def _check_source(source: DocumentsSpec) -> None:
    if source.source in ("text", "jsonl", "parquet") and source.path is not None:
        from llm.data.file_sources import find_files

        find_files(source.path, None)
    if source.source == "task":
        from llm.data.tasks.registry import kinds, tasks

        try:
            tasks(kinds(source.path), 1)
        except RefusedError as error:
            raise RefusedError(f"path={source.path}: {error}") from None
