"""Texts that begin alike, each beginning once: a tree of tokens in depth-first order.

A token sees those on its way from the root, which stand before it; all that goes on from it follows
it directly, up to its end. So one number per token is the whole mask, and what is computed for a
text is what would be computed for it alone (Cai et al. 2024, Medusa, have such masks for decoding).

T tokens of the tree, N scored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int32


class Text(NamedTuple):
    """Token ids: what is given, and what goes on from it and is scored. Neither is empty."""

    beginning: Sequence[int]
    continuation: Sequence[int]


class PrefixTree(NamedTuple):
    """What a model reads, and what is asked about it."""

    tokens_T: Int32[np.ndarray, " T"]
    positions_T: Int32[np.ndarray, " T"]
    """Of each token in its texts."""
    ends_T: Int32[np.ndarray, " T"]
    """The place after the last token that goes on from each."""
    places_N: Int32[np.ndarray, " N"]
    """Whose hidden state predicts each scored token."""
    targets_N: Int32[np.ndarray, " N"]
    """The scored tokens; those that texts have in common, after the same beginning, once."""
    scored: list[Int32[np.ndarray, " n"]]
    """For each text, which of the N are the tokens of its continuation."""


def shared_length(one: Int[np.ndarray, " n"], other: Int[np.ndarray, " m"]) -> int:
    """Tokens at the beginning that are the same."""
    n = min(len(one), len(other))
    differ = one[:n] != other[:n]
    return int(differ.argmax()) if differ.any() else n


def common_length(texts: Sequence[Sequence[int]]) -> int:
    """Tokens that all of these texts begin with, of which there is at least one."""
    lists = [list(text) for text in texts]
    return shared_length(np.asarray(min(lists)), np.asarray(max(lists)))  # the two least alike


def prefix_tree(texts: Sequence[Text]) -> PrefixTree:
    """The tree of these texts. A text's last token is scored, and not read for its sake.

    Raises:
        ValueError: a text without beginning or continuation.
    """
    if any(len(part) == 0 for text in texts for part in text):
        raise ValueError("a text without beginning or continuation")
    most = sum(len(beginning) + len(continuation) for beginning, continuation in texts)
    tokens, positions, ends, places, targets = (np.zeros(most, np.int32) for _ in range(5))
    scored: list[np.ndarray] = [np.empty(0, np.int32)] * len(texts)
    T = N = 0
    # Of the text before: its tokens, where those that are read stand, which of the N each is or -1.
    ids = path = asked = np.empty(0, np.int32)
    whole = [np.asarray([*beginning, *continuation], np.int32) for beginning, continuation in texts]
    for number in sorted(range(len(texts)), key=lambda n: whole[n].tolist()):  # is depth-first
        before, ids = ids, whole[number]
        shared = shared_length(before, ids)
        read = min(shared, len(path))
        new = len(ids) - 1 - read
        ends[path[read:]] = T
        tokens[T : T + new] = ids[read:-1]
        positions[T : T + new] = range(read, read + new)
        path = np.concatenate([path[:read], np.arange(T, T + new, dtype=np.int32)])
        T += new
        asked = np.concatenate([asked[:shared], np.full(len(ids) - shared, -1, np.int32)])
        begin = len(texts[number].beginning)
        (missing,) = np.nonzero(asked[begin:] < 0)
        missing += begin
        here = slice(N, N + len(missing))
        asked[missing] = range(N, N + len(missing))
        places[here], targets[here] = path[missing - 1], ids[missing]
        N += len(missing)
        scored[number] = asked[begin:].copy()
    ends[path] = T
    return PrefixTree(tokens[:T], positions[:T], ends[:T], places[:N], targets[:N], scored)
