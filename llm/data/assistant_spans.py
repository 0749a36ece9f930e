"""Which characters of a rendered conversation the assistant wrote, its end-of-turn token included.

A template with `{% generation %}` tags says so itself. For others it is derived: an answer is what
the template adds when the answer's message is added. That holds only if the template writes the
conversation from left to right, which is checked turn by turn: some do not (they drop the thinking
of earlier turns, say), and then nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llm.core.spec import RefusedError
from llm.data.chat_template import ChatTemplate
from llm.data.chat_tokens import Messages, Span, SpecialNames

_ADVICE = "write its answers between {% generation %} and {% endgeneration %} in trainer.template"


class AssistantSpans:
    """Finds the assistant's parts of conversations.

    Args:
        template: makes the text.
        names: what the conversations are marked with.
    """

    def __init__(self, template: ChatTemplate, names: SpecialNames) -> None:
        self._template = template
        self._names = names

    def find(
        self, messages: Messages, wanted: Sequence[int], variables: Mapping[str, Any]
    ) -> tuple[str, list[Span]]:
        """The text, and what the assistant wrote of it.

        Args:
            messages: the conversation, marked (see `SpecialNames`).
            wanted: which of the messages, all of them the assistant's.
            variables: what else the template looks at.

        Raises:
            RefusedError: the template does not accept it, or does not let one tell.
        """
        rendered = self._template.render(messages, **variables)
        text = rendered.text
        if rendered.assistant_spans is None:
            return text, [self._derive(text, messages, i, variables) for i in wanted]
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        parts = [Span(*part) for part in rendered.assistant_spans]
        if len(parts) > len(turns) and list(wanted) == turns:
            return text, parts  # some templates mark what a turn ends with on its own
        if len(parts) != len(turns):
            raise RefusedError(
                f"the chat template marks {len(parts)} parts for {len(turns)} assistant turns; "
                "expected one {% generation %} part for each"
            )
        return text, [part for turn, part in zip(turns, parts, strict=True) if turn in wanted]

    def prompt_length(self, messages: Messages, text: str, variables: Mapping[str, Any]) -> int:
        """Characters of `text` that come before the answer to `messages`.

        Raises:
            RefusedError: the text does not begin with them.
        """
        before = self._template.render(messages, add_generation_prompt=True, **variables).text
        if not text.startswith(before):
            raise RefusedError(
                "the chat template writes an answer in another way than it begins one: "
                f"{_difference(before, text)}. {_ADVICE}"
            )
        return len(before)

    def _derive(self, text: str, messages: Messages, i: int, variables: Mapping[str, Any]) -> Span:
        start = self.prompt_length(messages[:i], text, variables)
        after = text
        if i + 1 < len(messages):
            after = self._template.render(messages[: i + 1], **variables).text
        if not text.startswith(after):
            raise RefusedError(
                f"the chat template writes message {i + 1} in another way once others follow: "
                f"{_difference(after, text)}. {_ADVICE}"
            )
        # Space between the end-of-turn token and the next turn is nothing a model would write: it
        # is stopped at the token.
        return Span(start, self._names.without_space_after(after, start))


def _difference(a: str, b: str) -> str:
    """Where two texts part."""
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), len(a))
    return f"{a[same : same + 30]!r} became {b[same : same + 30]!r}"
