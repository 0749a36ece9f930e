"""Conversations as training examples: tokens, and which of them are trained.

A record has one of TRL's forms:

* `messages`: a list of messages with `role` and `content`;
* `prompt` and `completion`: two texts, or two lists of messages;
* `text` (or the field that `data.text_field` names): a text, trained from beginning to end.

Messages may come with `tools` (JSON schemas) and `chat_template_kwargs`; both go to the template.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from llm.core.spec import RefusedError
from llm.data.assistant_spans import AssistantSpans
from llm.data.chat_template import ChatTemplate
from llm.data.chat_tokens import Encoding, Messages, Span, SpecialNames, template_of
from llm.data.formats import Document, Encoded, Format, text_of
from llm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class ChatSettings:
    """How conversations are read."""

    template: str
    """Jinja source."""
    loss_on: str = "assistant"
    """assistant: what the assistant says (a completion counts as that; a text is trained whole);
    last: its last turn; completion: all that follows the prompt; all: everything."""
    too_long: str = "cut_right"
    """What becomes of a conversation that is longer than a row, see `llm.data.fitting.fit`."""
    end: str | None = None
    """Name of the token that ends what the model says (the template's `eos_token`); None: the
    tokenizer's separator."""
    new_tokens: tuple[str, ...] = ()
    """Special tokens that the tokenizer is given if it lacks them: those of a template that is not
    the model's own."""


class Conversations(Format):
    """Reads records of the forms above.

    Args:
        settings: how.
        text_field: name of the field that holds a plain text.
    """

    trains_all = False

    def __init__(self, settings: ChatSettings, text_field: str = "text") -> None:
        self._settings = settings
        self._text_field = text_field

    def columns(self, available: Sequence[str], where: str) -> list[str]:  # noqa: D102
        field = self._text_field
        if not _has_form(available, field):
            raise RefusedError(
                f"{where} has {', '.join(available)}: expected messages, or prompt and "
                f"completion, or {field}"
            )
        known = {"messages", "prompt", "completion", "tools", "chat_template_kwargs", field}
        return [name for name in available if name in known]

    def identity(self) -> Sequence[object]:  # noqa: D102
        settings = self._settings
        return ["chat", self._text_field, settings.template, settings.loss_on, settings.end]

    def document(self, record: Mapping[str, Any], origin: str) -> Document:  # noqa: D102
        text = "\n".join(_said(self._parts(record, origin)))
        return Document(text, origin, record)

    def encode(self, documents: Sequence[Document], tokenizer: Tokenizer) -> Iterator[Encoded]:  # noqa: D102
        encoder = ChatEncoder(self._settings, tokenizer)
        for document in documents:
            prompt, completion = self._parts(document.fields, document.origin)
            try:
                if isinstance(completion, str):
                    yield encoder.of_text(prompt, completion)
                else:
                    yield encoder.of_messages(
                        prompt, completion, template_variables(document.fields)
                    )
            except RefusedError as error:
                raise RefusedError(f"{document.origin}: {error}") from None

    def _parts(self, record: Mapping[str, Any], origin: str) -> tuple[Any, Any]:
        """Prompt (None where there is none) and the rest: texts, or lists of messages."""
        if record.get("messages") is not None:
            return None, messages_of(record["messages"], "messages", origin)
        if record.get("prompt") is not None and record.get("completion") is not None:
            prompt, completion = record["prompt"], record["completion"]
            if isinstance(prompt, str) and isinstance(completion, str):
                return prompt, completion
            return (
                messages_of(prompt, "prompt", origin),
                messages_of(completion, "completion", origin),
            )
        if self._text_field in record:
            return None, text_of(record, self._text_field, origin)
        raise RefusedError(
            f"{origin}: it has {', '.join(map(str, record)) or 'nothing'}: expected messages, or "
            f"prompt and completion, or {self._text_field}"
        )


def end_of_turn(settings: ChatSettings, tokenizer: Tokenizer) -> int | None:
    """The special token that ends an answer; None if the template writes none.

    Raises:
        RefusedError: the template does not accept a question and an answer.
    """
    encoder = ChatEncoder(dataclasses.replace(settings, loss_on="assistant"), tokenizer)
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tokens, trained = encoder.of_messages(None, messages, {})
    last = int(tokens[trained][-1])
    return last if last in tokenizer.special_ids.values() else None


class ChatEncoder:
    """Conversations to tokens.

    Args:
        settings: how.
        tokenizer: of the model.

    Raises:
        RefusedError: not a Jinja template.
    """

    def __init__(self, settings: ChatSettings, tokenizer: Tokenizer) -> None:
        end_id = tokenizer.special_ids.get(settings.end or "", tokenizer.separator_id)
        self._template: ChatTemplate = template_of(tokenizer, settings.template, end_id)
        self._loss_on = settings.loss_on
        self._tokenizer = tokenizer
        self._names = SpecialNames(tokenizer)
        self._assistant = AssistantSpans(self._template, self._names)

    def of_text(self, prompt: str | None, text: str) -> Encoded:
        """Start token, text, separator; what follows the prompt is trained."""
        if prompt is None and self._loss_on in ("last", "completion"):
            raise RefusedError(f"loss_on={self._loss_on}: a plain text has no such part")
        tokenizer = self._tokenizer
        border = 0 if prompt is None or self._loss_on == "all" else len(prompt)
        ids, spans = tokenizer.encode_with_spans((prompt or "") + text)
        trained = [stop > border for _, stop in spans]
        return Encoded(
            np.array([tokenizer.start_id, *ids, tokenizer.separator_id], np.int32),
            np.array([border == 0, *trained, True]),
        )

    def of_messages(
        self, prompt: Messages | None, rest: Messages, variables: Mapping[str, Any]
    ) -> Encoded:
        """What the template writes, nothing added."""
        messages = self._names.mark([*(prompt or []), *rest])
        text, spans = self._trained(messages, len(prompt or []), variables)
        encoding = self._names.encode(text)
        return Encoded(np.array(encoding.ids, np.int32), _mask(encoding, spans))

    def _trained(
        self, messages: Messages, n_prompt: int, variables: Mapping[str, Any]
    ) -> tuple[str, list[Span]]:
        """The text, and the parts of it that are trained."""
        if self._loss_on == "completion" and not n_prompt:
            raise RefusedError(
                "loss_on=completion: needs prompt and completion, found messages; "
                "loss_on=last trains the last answer"
            )
        if self._loss_on in ("all", "completion"):
            text = self._template.render(messages, **variables).text
            border = 0
            if self._loss_on == "completion":
                border = self._assistant.prompt_length(messages[:n_prompt], text, variables)
            return text, [Span(border, len(text))]
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        turns = [i for i in turns if i >= n_prompt]
        wanted = turns[-1:] if self._loss_on == "last" else turns
        return self._assistant.find(messages, wanted, variables)


def _mask(encoding: Encoding, spans: Sequence[Span]) -> Any:
    """Tokens with at least one character in one of the spans."""
    bounds = np.array(encoding.spans, np.int64).reshape(-1, 2)
    mask = np.zeros(len(bounds), bool)
    for start, stop in spans:
        mask |= (bounds[:, 1] > start) & (bounds[:, 0] < stop)
    return mask


def _has_form(names: Sequence[str], text_field: str) -> bool:
    return "messages" in names or {"prompt", "completion"} <= set(names) or text_field in names


def messages_of(value: Any, name: str, origin: str) -> list[dict[str, Any]]:
    """Checked messages, without what tables add: null for keys that other rows have."""
    if not isinstance(value, list) or not all(
        isinstance(message, Mapping) and isinstance(message.get("role"), str) for message in value
    ):
        raise RefusedError(
            f"{origin}: {name}: expected a list of messages, each with a role, found "
            f"{json.dumps(value, default=str)[:80]}"
        )
    return [
        {k: _without_null(v) for k, v in message.items() if v is not None or k == "content"}
        for message in value
    ]


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_null(item) for item in value]
    return value


def template_variables(record: Mapping[str, Any]) -> dict[str, Any]:
    """What goes to the template besides the messages."""
    tools = record.get("tools")
    if isinstance(tools, str):  # tables hold schemas, which differ from tool to tool, as text
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise RefusedError(f"tools: not valid JSON ({error}): {tools[:80]!r}") from None
    return {**(record.get("chat_template_kwargs") or {}), "tools": _without_null(tools) or None}


def _said(parts: tuple[Any, Any]) -> Iterator[str]:
    """All texts of an example."""
    for part in parts:
        if isinstance(part, str):
            yield part
            continue
        for message in part or ():
            content = message.get("content")
            pieces = content if isinstance(content, list) else [content]
            for piece in pieces:
                text = piece.get("text") if isinstance(piece, Mapping) else piece
                if isinstance(text, str) and text:
                    yield text
