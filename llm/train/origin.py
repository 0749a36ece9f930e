"""Where a run's first weights come from, and the tokenizer and vocabulary that come with them."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

from loguru import logger

from llm.core.spec import RefusedError, spec_from_json
from llm.data.tokenizer import Tokenizer
from llm.hub.checkpoints import newest_readable_meta
from llm.hub.pretrained import Pretrained
from llm.hub.sources import open_source
from llm.models.specs import ModelSpec
from llm.train.experiment import ExperimentSpec

# Fields of a model that may differ from those of its first weights.
_FREE = ("name", "vocab_size", "init_std", "dropout", "pretrained", "lora")


class Origin:
    """Nothing (random weights), a pretrained model, or this very run's earlier part.

    Args:
        experiment: names the pretrained model, if any, in `init_from`.
        folder: of the run; may hold checkpoints already.
    """

    def __init__(self, experiment: ExperimentSpec, folder: Path) -> None:
        self._experiment = experiment
        self._folder = folder

    @cached_property
    def _begun(self) -> dict[str, Any] | None:
        """What this run's checkpoints say; `init_from` need not be there any more."""
        return newest_readable_meta(self._folder / "checkpoints")

    @cached_property
    def _pretrained(self) -> Pretrained | None:
        """The model that `init_from` names."""
        first = self._experiment.first_weights
        return None if first is None or self._begun else open_source(first, "init_from")

    def tokenizer(self) -> Tokenizer | None:
        """The one that comes with the first weights; None if the data brings its own.

        Raises:
            RefusedError: there is no such model, or the data names another tokenizer.
        """
        path = self._experiment.data.tokenizer.path
        if self._experiment.init_from is None:
            return None
        if self._begun:
            return Tokenizer.from_json(self._begun["tokenizer"])
        assert self._pretrained is not None
        tokenizer = self._pretrained.tokenizer
        if path is not None and Tokenizer.load(path).fingerprint != tokenizer.fingerprint:
            raise RefusedError(
                f"data.tokenizer.path={path}: is another tokenizer than that of "
                f"init_from={self._experiment.init_from}; leave it out to take the model's"
            )
        return tokenizer

    def model(self, tokenizer: Tokenizer) -> ModelSpec:
        """The experiment's model with the size of its vocabulary settled.

        Raises:
            RefusedError: it is not the model whose weights it is to begin with, or has no room for
                the tokenizer.
        """
        model = self._experiment.model
        size = tokenizer.vocab_size
        if self._begun:
            size = spec_from_json(self._begun["model"]).vocab
        elif self._pretrained is not None:
            size = self._pretrained.spec.vocab
        if model.vocab_size is None:
            model = model.replace(vocab_size=size)
        if model.vocab < tokenizer.vocab_size:
            raise RefusedError(
                f"model.vocab_size={model.vocab}: the tokenizer has {tokenizer.vocab_size} tokens; "
                "set it to null to take the tokenizer's"
            )
        if self._pretrained is not None:
            _check_same(model, self._pretrained.spec, f"init_from={self._experiment.init_from}")
        return model

    def weights(self, template: Any) -> tuple[dict[str, Any], Any] | None:
        """Lineage and first weights, shaped and placed as `template` says; None draws them."""
        if self._pretrained is None:
            return None
        weights = self._pretrained.weights(template)
        logger.info("First weights from {}.", self._pretrained.source)
        return {**self._pretrained.lineage, "vocab": self._pretrained.spec.vocab}, weights


def _check_same(model: ModelSpec, theirs: ModelSpec, source: str) -> None:
    """Refuse weights of another model, with the words that would make the model theirs."""
    if type(model) is not type(theirs):
        raise RefusedError(
            f"{source}: is a {type(theirs).__name__}, but model={model.name} is a "
            f"{type(model).__name__}"
        )
    if model.vocab != theirs.vocab:
        raise RefusedError(f"{source}: say model.vocab_size={theirs.vocab} (or null)")
    words = [
        f"model.{field.name}={getattr(theirs, field.name)}"
        for field in dataclasses.fields(theirs)
        if field.name not in _FREE and getattr(model, field.name) != getattr(theirs, field.name)
    ]
    if words:
        raise RefusedError(f"{source}: is a model of another shape; say {' '.join(words)}")
