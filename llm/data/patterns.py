"""How text is cut into words before bytes are merged: no token crosses these cuts.

GPT-2's pattern (Radford et al. 2019) keeps a word together with the space before it, and a number
of any length. OpenAI's cl100k, which Llama 3 took over, keeps any one sign before a word with it
(`(word`, `_word`), cuts numbers after three digits, and line ends from indentation.
"""

from __future__ import annotations

GPT2 = "gpt2"
LLAMA3 = "llama3"
NAMES = (LLAMA3, GPT2)

_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def cutting_pattern(name: str, max_digits: int | None = None) -> str:
    r"""The regular expression whose matches are the words.

    Args:
        name: `llama3` or `gpt2`.
        max_digits: cut a number after so many digits, from its start; the space before it is
            then a word of its own, as with `llama3`. None: as the pattern has it, three with
            `llama3` and without limit with `gpt2`.
    """
    if name == LLAMA3:
        return _LLAMA3.replace(r"\p{N}{1,3}", rf"\p{{N}}{{1,{max_digits or 3}}}")
    return (
        _GPT2 if max_digits is None else _GPT2.replace(r" ?\p{N}+", rf"\p{{N}}{{1,{max_digits}}}")
    )
