"""From a conversation to ids: the template's special tokens, and nobody else's.

A template writes the names of special tokens, `<|im_end|>`, and they mean those tokens. The same
name in a message is what somebody said, as text: it must not end the message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llm.data.chat_template import ChatTemplate
from llm.data.tokenizer import Tokenizer

# Private-use characters: nobody's text. They stand around a name while the template is at work.
_BEFORE, _AFTER = "\U0010fffa", "\U0010fffb"

Messages = Sequence[Mapping[str, Any]]


class Span(NamedTuple):
    """Characters [start, stop) of a text."""

    start: int
    stop: int


class Encoding(NamedTuple):
    """Ids, and the characters of the text that each stands for."""

    ids: list[int]
    spans: list[Span]


# The form of names such as <|im_start|> that stand in a template as they are.
_NAME = re.compile(r"<\|[A-Za-z0-9_]+\|>")


def special_names(source: str) -> list[str]:
    """Names of special tokens that a template writes, so that a tokenizer can be given them."""
    return sorted(set(_NAME.findall(source)))


def template_of(tokenizer: Tokenizer, source: str, end_id: int) -> ChatTemplate:
    """A template that knows the names of a tokenizer's own start and end tokens.

    Args:
        tokenizer: of the model.
        source: Jinja source.
        end_id: the token that ends what the model says, the template's `eos_token`.
    """
    names = {index: name for name, index in tokenizer.special_ids.items()}
    return ChatTemplate(
        source,
        bos=names.get(tokenizer.start_id, ""),
        eos=names.get(end_id, tokenizer.separator),
    )


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Messages,
    *,
    add_generation_prompt: bool = True,
    **variables: Any,
) -> list[int]:
    """The ids of a conversation.

    Args:
        tokenizer: of the model; nothing is added to what the template writes.
        template: makes the text.
        messages: see `ChatTemplate.render`.
        add_generation_prompt: end with the beginning of an answer.
        variables: see `ChatTemplate.render`.

    Raises:
        RefusedError: see `ChatTemplate.render`.
    """
    marks = SpecialNames(tokenizer)
    text = template.render(
        marks.mark(messages), add_generation_prompt=add_generation_prompt, **variables
    ).text
    return marks.encode(text).ids


class SpecialNames:
    """Tells the names of special tokens that a template writes from those that people write.

    Messages are marked before they are rendered, and the marks are taken out when the text is
    encoded. Positions in the text count the marks.

    Args:
        tokenizer: whose special tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # The longest first: a name may begin with another one.
        names = sorted(tokenizer.special_ids, key=len, reverse=True)
        self._name = re.compile("|".join(map(re.escape, names)))
        self._end = re.compile(f"(?:{self._name.pattern})(\\s*)\\Z")
        self._said = re.compile(f"{_BEFORE}({self._name.pattern}){_AFTER}|[{_BEFORE}{_AFTER}]")

    def mark(self, value: Any) -> Any:
        """Messages (or other JSON data) with marks around the names in their texts."""
        if isinstance(value, str):
            without = value.replace(_BEFORE, "").replace(_AFTER, "")
            return self._name.sub(f"{_BEFORE}\\g<0>{_AFTER}", without)
        if isinstance(value, Mapping):
            return {key: self.mark(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mark(item) for item in value]
        return value

    def without_space_after(self, text: str, start: int) -> int:
        """Where a text ends if the white space after a last special token is left out.

        Args:
            text: a rendered text; what comes before `start` is not looked at.
            start: the first character that counts.
        """
        space = self._end.search(text, start)
        return space.start(1) if space else len(text)

    def encode(self, text: str) -> Encoding:
        """Tokens of a rendered text."""
        ids: list[int] = []
        spans: list[Span] = []
        begin = 0
        # A lone mark is left where a template has cut a marked name in pieces.
        for match in [*self._said.finditer(text), None]:
            stop = match.start() if match else len(text)
            self._encode(text[begin:stop], begin, True, ids, spans)
            if match and match[1] is not None:
                self._encode(match[1], match.start(1), False, ids, spans)
            begin = match.end() if match else stop
        return Encoding(ids, spans)

    def _encode(
        self, part: str, begin: int, specials: bool, ids: list[int], spans: list[Span]
    ) -> None:
        if part:
            encoding = self._tokenizer.encode_with_spans(part, specials)
            ids += encoding[0]
            spans += [Span(begin + start, begin + stop) for start, stop in encoding[1]]
