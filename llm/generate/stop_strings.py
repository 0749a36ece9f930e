"""Ending an answer at a string, which need not begin or end where a token does."""

from __future__ import annotations

from collections.abc import Sequence

from llm.data.tokenizer import Tokenizer


class Cut:
    """Cuts answers before the first of some strings.

    Args:
        tokenizer: of the answers.
        strings: none empty; without any, nothing is cut.
    """

    def __init__(self, tokenizer: Tokenizer, strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._strings = strings

    def is_over(self, ids: list[int]) -> bool:
        """Whether one of the strings is there."""
        text = self._tokenizer.decode(ids)
        return any(string in text for string in self._strings)

    def text(self, ids: list[int]) -> str:
        """The text before the first of the strings."""
        text = self._tokenizer.decode(ids)
        return text[: min([text.find(s) for s in self._strings if s in text], default=len(text))]

    def ids(self, ids: list[int]) -> list[int]:
        """The fewest tokens whose text has one of the strings; all if there is none."""
        if not self._strings or not self.is_over(ids):
            return ids
        enough, too_few = len(ids), 0
        while enough - too_few > 1:  # more tokens never make the string go away again
            middle = (enough + too_few) // 2
            if self.is_over(ids[:middle]):
                enough = middle
            else:
                too_few = middle
        return ids[:enough]
