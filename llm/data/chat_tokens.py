"""From a conversation to ids: the template's special tokens, and nobody else's.

A template writes the names of special tokens, `<|im_end|>`, and they mean those tokens. The same
name in a message is what somebody said, as text: it must not end the message.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from llm.data.chat_template import ChatTemplate
from llm.data.tokenizer import Tokenizer

# Private-use characters: nobody's text. They stand around a name while the template is at work.
_BEFORE, _AFTER = "\U0010fffa", "\U0010fffb"


def encode_chat(
    tokenizer: Tokenizer,
    template: ChatTemplate,
    messages: Sequence[Mapping[str, Any]],
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
    # The longest first: a name may begin with another one.
    names = sorted(tokenizer.special_ids, key=len, reverse=True)
    special = re.compile("|".join(map(re.escape, names)))
    marked = [_mark(message, special) for message in messages]
    text = template.render(marked, add_generation_prompt=add_generation_prompt, **variables).text
    said = re.compile(f"{_BEFORE}({special.pattern}){_AFTER}|[{_BEFORE}{_AFTER}]")
    ids: list[int] = []
    for number, part in enumerate(said.split(text)):
        # Every other part is a name that was marked; None if a template has cut one in pieces.
        if part:
            ids += tokenizer.encode(part, specials=number % 2 == 0)
    return ids


def _mark(value: Any, special: re.Pattern[str]) -> Any:
    """A message with marks around the names in what was said."""
    if isinstance(value, str):
        without = value.replace(_BEFORE, "").replace(_AFTER, "")
        return special.sub(f"{_BEFORE}\\g<0>{_AFTER}", without)
    if isinstance(value, Mapping):
        return {key: _mark(item, special) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mark(item, special) for item in value]
    return value
