"""The verifier: whether a completion is the answer, and nothing but the answer.

It compares whole texts and searches for nothing inside them, so that a completion which names
several candidates, or hides the answer in a sentence, earns nothing.
"""

from __future__ import annotations

import re

_WHOLE_NUMBER = re.compile(r"-?[0-9]+")
# Digits plain or in groups of three: 1234567 or 1,234,567, but not 12,34.
_WRITTEN_NUMBER = re.compile(r"[+-]?(?:[0-9]+|[0-9]{1,3}(?:,[0-9]{3})+)")
_AFTER_COMMA = re.compile(r"(?<=,) +")
_QUOTES = {('"', '"'), ("'", "'"), ("`", "`"), ("\u201c", "\u201d"), ("\u2018", "\u2019")}
_MINUS_SIGN = "\u2212"


def is_correct(task_answer: str, completion: str, any_case: bool = False) -> bool:
    """Whether a completion is the answer to a task.

    Both texts must be equal after these steps, the last two of which follow from the answer:

    1. White space around the text is dropped, then one full stop at its end and one pair of
       quotes or backticks around it, in either order.
    2. With `any_case`, capital letters are made small.
    3. If the answer is a whole number, commas may group its digits by threes, a plus sign may
       stand before it, and its minus sign may be the typographic one.
    4. If the answer is a list, spaces after its commas do not count.

    An empty completion is never right.

    Args:
        task_answer: the right answer.
        completion: what a model wrote: the answer alone, without special tokens.
        any_case: whether capital letters make no difference.
    """
    answer, given = _bare(task_answer), _bare(completion)
    if any_case:
        answer, given = answer.lower(), given.lower()
    if _WHOLE_NUMBER.fullmatch(answer):
        given = _plain_number(given)
    elif "," in answer:
        answer, given = _AFTER_COMMA.sub("", answer), _AFTER_COMMA.sub("", given)
    return given == answer != ""


def _bare(text: str) -> str:
    """The text without the white space, full stop and quotes around it."""
    text = text.strip()
    if not _in_quotes(text):
        text = text.removesuffix(".").rstrip()
        return text[1:-1].strip() if _in_quotes(text) else text
    return text[1:-1].strip().removesuffix(".").rstrip()


def _in_quotes(text: str) -> bool:
    return len(text) >= 2 and (text[0], text[-1]) in _QUOTES


def _plain_number(text: str) -> str:
    """A number as Python writes it; text that is no number stays as it is."""
    number = text.replace(_MINUS_SIGN, "-")
    if _WRITTEN_NUMBER.fullmatch(number):
        return number.replace(",", "").removeprefix("+")
    return text
