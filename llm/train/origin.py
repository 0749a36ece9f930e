"""Where a run's first weights come from, and the tokenizer and vocabulary that come with them."""

from __future__ import annotations

import dataclasses
from functools import cached_property
from pathlib import Path
from typing import Any

from loguru import logger

from llm.core.spec import RefusedError, spec_from_json
from llm.data.chat_tokens import special_names
from llm.data.conversations import ChatSettings, end_of_turn
from llm.data.tokenizer import Tokenizer
from llm.hub.checkpoints import newest_readable_meta
from llm.hub.new_rows import read_with_new_rows
from llm.hub.pretrained import Pretrained
from llm.hub.sources import open_source, read_spec
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

    def vocabulary(self) -> int | None:
        """Rows of the embedding of the first weights, if that can be told at once.

        Nothing is fetched and no weights are read; see `read_spec`. Special tokens that a chat
        template may add to them are not counted.

        Raises:
            RefusedError: it is not the model whose weights it is to begin with.
        """
        if self._begun:
            return int(spec_from_json(self._begun["model"]).vocab)
        first = self._experiment.first_weights
        theirs = None if first is None else read_spec(first, "init_from")
        if theirs is None:
            return None
        said = first if isinstance(first, str) else f"[{','.join(first or ())}]"
        check_same(self._experiment.model, theirs, f"init_from={said}")
        return theirs.vocab

    def tokenizer(self) -> Tokenizer | None:
        """The one that comes with the first weights; None if the data brings its own.

        Raises:
            RefusedError: there is no such model, it is not the model whose weights it is to begin
                with, or the data names another tokenizer.
        """
        named = self._experiment.data.tokenizer
        if self._begun:
            return Tokenizer.from_json(self._begun["tokenizer"])
        if self._pretrained is None:
            return None
        # Before data is tokenized for it, which may take long.
        check_same(self._experiment.model, self._pretrained.spec, self._source)
        tokenizer = self._pretrained.tokenizer
        if named.path is not None:
            given = Tokenizer.load(named.path, named.separator)
            if given.fingerprint != tokenizer.fingerprint:
                raise RefusedError(
                    f"data.tokenizer.path={named.path}: is another tokenizer "
                    f"({given.fingerprint[:8]}) than that of {self._source} "
                    f"({tokenizer.fingerprint[:8]}); leave it out to take the model's"
                )
        return tokenizer

    @property
    def _source(self) -> str:
        """The words that the first weights follow from."""
        init_from = self._experiment.init_from
        if init_from is not None:
            return f"init_from={init_from}"
        assert self._pretrained is not None
        trainer = self._experiment.trainer.name
        return f"init_from={self._pretrained.source} (where trainer={trainer} starts)"

    @cached_property
    def _template(self) -> str | None:
        """The chat template that comes with the first weights."""
        if self._begun:
            template: str | None = self._begun["chat_template"]
            return template
        return self._pretrained.chat_template if self._pretrained else None

    @property
    def chat_template(self) -> str | None:
        """The chat template that goes into the run's checkpoints."""
        chat = self.chat()
        return chat.template if chat else self._template

    def chat(self) -> ChatSettings | None:
        """How conversations are read; None if the trainer reads plain text.

        Raises:
            RefusedError: the template's file cannot be read.
        """
        own = self._template
        settings = self._experiment.trainer.chat(own, given=bool(self._begun))
        if settings is None:
            return None
        template = settings.template
        new_tokens = () if template == own else tuple(special_names(template))
        return dataclasses.replace(settings, end=self._end, new_tokens=new_tokens)

    def stop_ids(self, tokenizer: Tokenizer) -> tuple[int, ...]:
        """Tokens that end an answer, the usual one first; none if the weights' files say none.

        Args:
            tokenizer: the run's.
        """
        if self._begun:
            return tuple(self._begun["stop_ids"])
        chat = self.chat()
        known = self._pretrained.stop_ids if self._pretrained else ()
        if chat is None:
            return known
        end = end_of_turn(chat, tokenizer)
        if end is None:
            logger.warning(
                "The chat template ends an answer with no special token that is trained: the model "
                "will not learn to stop there. (Is it outside of {% generation %}?)"
            )
        ends = [tokenizer.separator_id] if end is None else [end]
        return tuple(dict.fromkeys([*ends, *(known or [tokenizer.separator_id])]))

    @property
    def _end(self) -> str | None:
        """Name of the token that ends what the pretrained model says."""
        if self._begun:
            end: str | None = self._begun["chat_end"]
            return end
        if self._pretrained is None:
            return None
        names = {i: name for name, i in self._pretrained.tokenizer.special_ids.items()}
        return names.get(self._pretrained.end_ids[0])

    def model(self, tokenizer: Tokenizer) -> ModelSpec:
        """The experiment's model with the size of its vocabulary settled.

        Raises:
            RefusedError: it has no room for the tokenizer.
        """
        model = self._experiment.model
        size = tokenizer.vocab_size
        if self._begun:
            return model.replace(vocab_size=spec_from_json(self._begun["model"]).vocab)
        if self._pretrained is not None:
            theirs = self._pretrained.spec
            own = self._pretrained.tokenizer.vocab_size
            if own > theirs.vocab:
                raise RefusedError(
                    f"{self._source}: its tokenizer has {own} tokens, the model only {theirs.vocab}"
                )
            # The tokenizer may have got special tokens that the model has no rows for.
            return model.replace(vocab_size=max(size, theirs.vocab))
        if model.vocab_size is None:
            model = model.replace(vocab_size=size)
        if model.vocab < tokenizer.vocab_size:
            raise RefusedError(
                f"model.vocab_size={model.vocab}: the tokenizer has {tokenizer.vocab_size} tokens; "
                "set it to null to take the tokenizer's"
            )
        return model

    def weights(self, template: Any, tokenizer: Tokenizer) -> tuple[dict[str, Any], Any] | None:
        """Lineage and first weights, shaped and placed as `template` says; None draws them.

        Args:
            template: nested dict of `jax.ShapeDtypeStruct`, shaped like the model's parameters.
            tokenizer: the run's, which may have tokens that the pretrained model's lacks.
        """
        if self._pretrained is None:
            return None
        known = self._pretrained.tokenizer.vocab_size
        new_ids = tuple(range(known, tokenizer.vocab_size))
        if new_ids and self._experiment.model.lora.rank:
            raise RefusedError(
                f"model.lora.rank={self._experiment.model.lora.rank}: the chat template needs "
                f"{len(new_ids)} special tokens that {self._pretrained.source} lacks, and adapters "
                "would leave their embedding untrained; train all weights (rank=0), or take a "
                "trainer.template that writes tokens the model has"
            )
        weights = read_with_new_rows(
            self._pretrained.weights, template, self._pretrained.spec.vocab, new_ids
        )
        if new_ids:
            logger.info(
                "{} new special tokens start as the average token: {}.",
                len(new_ids),
                ", ".join(name for name, i in tokenizer.special_ids.items() if i in new_ids),
            )
        logger.info("First weights from {}.", self._pretrained.source)
        return {**self._pretrained.lineage, "vocab": self._pretrained.spec.vocab}, weights


def check_same(model: ModelSpec, theirs: ModelSpec, source: str) -> None:
    """Refuse weights of another model, with the words that would make the model theirs."""
    if type(model) is not type(theirs):
        raise RefusedError(
            f"{source}: is a {type(theirs).__name__}, but model={model.name} is a "
            f"{type(model).__name__}"
        )
    if model.vocab_size not in (None, theirs.vocab):
        raise RefusedError(f"{source}: say model.vocab_size={theirs.vocab} (or null)")
    words = [
        f"model.{field.name}={_value(theirs, field.name)}"
        for field in dataclasses.fields(theirs)
        if field.name not in _FREE and _value(model, field.name) != _value(theirs, field.name)
    ]
    if words:
        raise RefusedError(f"{source}: is a model of another shape; say {' '.join(words)}")


def _value(model: ModelSpec, field: str) -> object:
    """A field of the model; a head's width as a number even where it follows from others."""
    return model.head_size if field == "head_dim" else getattr(model, field)
