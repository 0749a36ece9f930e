"""Prompts to answer: read from any source of data, encoded when they are asked for.

A record has one of these forms; whatever other fields it has go to the rewards.

* `messages`: a conversation; what the assistant says last is the answer, if it has the last word;
* `prompt`, `question` or `problem`: a text or a list of messages.

Else the answer is in `answer`, `solution` or `completion`, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loguru import logger

from llm.core.spec import RefusedError
from llm.data.chat_template import ChatTemplate
from llm.data.chat_tokens import encode_chat, template_of
from llm.data.conversations import ChatSettings, messages_of, template_variables
from llm.data.formats import Document, Encoded, Format
from llm.data.order import RowStream, permutation
from llm.data.questions import Question
from llm.data.source import Skipped
from llm.data.sources import open_source
from llm.data.specs import DataSpec
from llm.data.split import held_out_documents
from llm.data.token_cache import hashes_of
from llm.data.tokenizer import Tokenizer
from llm.train.grpo.example import Example

_PROMPT = ("prompt", "question", "problem")
_ANSWER = ("answer", "solution", "completion")
_HELD_OUT = 5  # purpose of a permutation, next to those in `llm.data`


class Prompt(NamedTuple):
    """A prompt as tokens, and what the rewards are told about it."""

    ids: list[int]
    example: Example


class PromptRecords(Format):
    """Reads records of the forms above, with all their fields; nothing of a prompt is trained.

    Args:
        template: of the model; None: a prompt is the plain text of its last message.
    """

    trains_all = False

    def __init__(self, template: ChatTemplate | None) -> None:
        self._template = template

    def columns(self, available: Sequence[str], where: str) -> list[str]:  # noqa: D102
        if "messages" not in available and not set(_PROMPT) & set(available):
            raise RefusedError(
                f"{where} has {', '.join(available)}: expected messages, or {' or '.join(_PROMPT)}"
            )
        return list(available)

    def identity(self) -> Sequence[object]:  # noqa: D102
        return ["prompts"]

    def document(self, record: Mapping[str, Any], origin: str) -> Document:  # noqa: D102
        messages, answer = parts_of(record, origin)
        # As it reads in a conversation for fine-tuning: what is held out there is held out here.
        said = [str(message.get("content") or "") for message in messages]
        return Document("\n".join([*said, answer] if answer else said), origin, record)

    def encode(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Encoded]:  # noqa: D102
        for document in documents:
            messages, _ = parts_of(document.fields, document.origin)
            try:
                ids = self._ids(messages, document.fields, tokenizer)
            except RefusedError as error:
                raise RefusedError(f"{document.origin}: {error}") from None
            yield Encoded(np.array(ids, np.int32), np.zeros(len(ids), bool))

    def _ids(
        self, messages: list[dict[str, Any]], record: Mapping[str, Any], tokenizer: Tokenizer
    ) -> list[int]:
        if self._template is None:
            text = str(messages[-1].get("content") or "")
            return [tokenizer.start_id, *tokenizer.encode(text)]
        variables = template_variables(record)
        return encode_chat(tokenizer, self._template, messages, **variables)


def parts_of(record: Mapping[str, Any], origin: str) -> tuple[list[dict[str, Any]], str | None]:
    """The messages of a prompt, and its answer.

    Raises:
        RefusedError: the record has none of the forms, or nothing to answer.
    """
    if record.get("messages") is not None:
        messages = messages_of(record["messages"], "messages", origin)
        answer = None
        if messages and messages[-1]["role"] == "assistant":
            answer = str(messages.pop().get("content") or "")
        else:
            answer = _answer_of(record)
    else:
        name = next((n for n in _PROMPT if record.get(n) is not None), None)
        if name is None:
            raise RefusedError(
                f"{origin}: it has {_fields(record)}: expected messages, or {' or '.join(_PROMPT)}"
            )
        prompt = record[name]
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        messages = messages_of(prompt, name, origin)
        answer = _answer_of(record)
    if not messages:
        raise RefusedError(f"{origin}: no message that could be answered")
    return messages, answer


def _fields(record: Mapping[str, Any]) -> str:
    names = (f"{name} (null)" if record[name] is None else str(name) for name in record)
    return ", ".join(names) or "nothing"


def _answer_of(record: Mapping[str, Any]) -> str | None:
    """It may be a text, a number, or messages."""
    answer = next((record[name] for name in _ANSWER if record.get(name) is not None), None)
    if isinstance(answer, list) and answer and isinstance(answer[-1], Mapping):
        return str(answer[-1].get("content") or "")
    return None if answer is None else str(answer)


class Prompts:
    """All prompts of a run.

    Args:
        spec: where they come from.
        seed: decides their order, together with the epoch.
        tokenizer: of the model.
        chat: its template; None: a prompt is the plain text of its last message.
        stop_id: the token that ends an answer.
        longest: prompts of more tokens are left out.

    Raises:
        RefusedError: there is no prompt, or a source cannot be read.
    """

    def __init__(
        self,
        spec: DataSpec,
        seed: int,
        tokenizer: Tokenizer,
        chat: ChatSettings | None,
        stop_id: int,
        longest: int,
    ) -> None:
        self.tokenizer = tokenizer
        self._longest = longest
        template = template_of(tokenizer, chat.template, stop_id) if chat else None
        self._format = PromptRecords(template)
        self._too_long = 0
        folder = Path(spec.cache_dir).expanduser()
        sources = [open_source(member, folder, self._format) for member in spec.sources]
        documents = []
        for source in sources:
            skipped = Skipped()
            documents.append(list(source.documents(skipped)))
            if skipped.counts:
                logger.warning("{}: left out {}", source.name, skipped.describe())
            if not documents[-1]:
                raise RefusedError(f"{source.name}: no prompt in it")
        weights = [member.weight for member in spec.sources]
        held = _held_out(documents, spec.eval_fraction)
        self._train = [
            [document for document, out in zip(of_one, mask, strict=True) if not out]
            for of_one, mask in zip(documents, held, strict=True)
        ]
        together = [d for pair in zip(documents, held, strict=True) for d, out in zip(*pair) if out]  # noqa: B905
        self._held_out = [together[i] for i in permutation(len(together), _HELD_OUT)]
        self._stream = RowStream([len(of_one) for of_one in self._train], weights, seed)
        self.fingerprint: dict[str, Any] = {
            "tokenizer": tokenizer.fingerprint,
            "sources": [
                {"name": source.name, "prompts": source.fingerprint(), "weight": weight,
                 "documents": len(of_one)}
                for source, weight, of_one in zip(sources, weights, documents, strict=True)
            ],
            "train": {"documents": sum(map(len, self._train))},
            "eval": {"documents": len(self._held_out)},
        }  # fmt: skip
        logger.info(
            "data: {:,} prompts from {}; held out {:,}; vocabulary of {:,}",
            sum(map(len, self._train)), " + ".join(source.name for source in sources),
            len(self._held_out), tokenizer.vocab_size,
        )  # fmt: skip
        self.draw(0, 1)  # better refused now than in the middle of the run

    def draw(self, first: int, count: int) -> tuple[list[Prompt], int]:
        """Training prompts from place `first` of the endless order on, and the place after them.

        Raises:
            RefusedError: all of them are too long.
        """
        found: list[Prompt] = []
        place = first
        total = sum(map(len, self._train))
        while len(found) < count:
            (source,), (row,) = self._stream.rows(place, 1)
            place += 1
            prompt = self._encode(self._train[source][row])
            if prompt is not None:
                found.append(prompt)
            elif place - first >= total + count and not found:
                raise RefusedError(
                    f"no prompt is short enough: expected at most {self._longest} tokens, "
                    "data.seq_len less trainer.max_new_tokens"
                )
        return found, place

    def held_out(self, limit: int) -> list[Prompt]:
        """Held-out prompts, at most so many, the same ones each time."""
        found: list[Prompt] = []
        for document in self._held_out:
            if len(found) == limit:
                break
            prompt = self._encode(document)
            if prompt is not None:
                found.append(prompt)
        return found

    def questions(self, limit: int) -> list[Question]:
        """Held-out prompts that have an answer, as tokens."""
        return [
            Question(prompt.ids, self.tokenizer.encode(prompt.example.answer))
            for prompt in self.held_out(limit)
            if prompt.example.answer
        ]

    def _encode(self, document: Document) -> Prompt | None:
        """None if it is too long."""
        messages, answer = parts_of(document.fields, document.origin)
        (encoded,) = self._format.encode([document], self.tokenizer)
        ids = encoded.tokens.tolist()
        if len(ids) > self._longest:
            if not self._too_long:
                logger.warning(
                    "{}: a prompt of {} tokens; those of more than {} (data.seq_len less "
                    "trainer.max_new_tokens) are left out.", document.origin, len(ids),
                    self._longest,
                )  # fmt: skip
            self._too_long += 1
            return None
        return Prompt(ids, Example(tuple(messages), answer, document.fields))


def _held_out(documents: Sequence[Sequence[Document]], fraction: float) -> list[np.ndarray]:
    """Which documents are held out, bool [D] of each source."""
    texts = [[document.text.encode() for document in of_one] for of_one in documents]
    return held_out_documents([hashes_of(of_one) for of_one in texts], fraction)
