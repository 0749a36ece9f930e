"""Many prompts through a few rows.

Prompts are prefilled once each, whatever the number of samples, in groups that are known from the
beginning, and take turns in the rows of a batch: a row that is done is given the next prompt, and
when none wait the batch shrinks. What all prompts begin with, such as what a chat template puts
first, is prefilled once for all. The cache is as large as the texts are by now, in powers of two.
The host is asked once per segment of tokens, and when half of the rows could be given to others.

Where each row takes time, which is on CPUs, samples that still say the same go through the model as
one text, while no more than half of the rows say something of their own; and the host is asked when
they differ more, and when a quarter of the rows is left.

Groups, batch and cache have few sizes and go from one to the next, so that a long list soon has all
its programs, whichever rows happen to be free.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from llm.data.prefix_tree import common_length
from llm.generate.prompt_groups import prompt_groups
from llm.generate.rows import (
    SMALLEST,
    SMALLEST_REST,
    Admitted,
    Alike,
    Written,
    admit,
    bucket,
    empty_rows,
    mark_seen,
    reshape_rows,
    seen_tokens,
)
from llm.generate.specs import Sampling
from llm.generate.watch import Watch
from llm.models.cache import KVCache

if TYPE_CHECKING:
    from llm.generate.engine import Engine

SEGMENT = 32  # tokens between two looks of the host
_SHRINK = 4  # the batch gets so many times smaller
_LEAST_ROWS = 16  # fewer take a CPU as long: reading the weights takes more


@dataclass(frozen=True)
class Completion:
    """One answer."""

    ids: list[int]
    """New tokens, the stop token included."""
    log_probs: Float[np.ndarray, " n"]
    """Of these tokens, fp32; see `llm.generate.sampler.sample`."""
    stopped: bool
    """It ended by itself and not at the limit."""


@dataclass(eq=False)
class _Slot:
    """What a row is busy with."""

    prompt: int
    sample: int
    length: int
    """Tokens in the cache."""
    ids: list[int]
    log_probs: list[np.ndarray]


class Batch:
    """One call of `Engine.generate`, whose arguments these are."""

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        key: Key[Array, ""],
        stop_ids: np.ndarray,
        n: int,
        watch: Watch | None = None,
    ) -> None:
        self.engine = engine
        self.watch = watch or Watch()
        self.watch.total += n * len(prompts)
        self.prompts = prompts
        self.sampling = sampling
        self.key = key
        self.stop_ids = stop_ids
        # Prompts of like length come together: less padding, smaller caches.
        groups = prompt_groups(prompts, engine.spec.max_seq_len, engine.platform, engine.dtype)
        self.groups = deque(groups)
        self.waiting = deque((p, s) for group in groups for p in group.prompts for s in range(n))
        self.slots: list[_Slot | None] = []
        self.rows: Any = None  # `Rows`, once it is known how many and how long
        self.group: list[int] = []  # the prompts in `prefilled`
        self.prefilled: KVCache | None = None
        self.common = _common(prompts)
        self.beginning: KVCache | None = None  # one row, of so many tokens
        self.n = n
        self.answers: dict[tuple[int, int], Completion] = {}

    def run(
        self, batch_size: int, is_over: Callable[[list[int]], bool] | None
    ) -> list[list[Completion]]:
        """Write all answers, `batch_size` rows at a time; [prompt][sample]."""
        self.slots = [None] * bucket(min(batch_size, len(self.waiting)), largest=batch_size)
        while self.waiting or any(self.slots):
            coming = self._seat()
            self._make_room()
            with self.watch.prefilling():
                self._admit(coming)
            self._shrink()
            # Short answers leave rows to those who wait before a segment is over, or leave the
            # batch so empty that a smaller one takes less time.
            smaller = len(self.slots) // _SHRINK
            few = len(self.slots) // 2 if self.waiting else smaller if self._pays(smaller) else 0
            with self.watch.decoding():
                self.rows, written = self.engine.decode(
                    self.rows, self.sampling, self.stop_ids, SEGMENT, few, self._alike()
                )
            before = len(self.answers)
            self._harvest(written, is_over)
            done = self.watch.done + len(self.answers) - before
            self.watch.changed(int(written.counts_B.sum()), done)
        return [[self.answers[p, s] for s in range(self.n)] for p in range(len(self.prompts))]

    def _pays(self, rows: int) -> bool:
        """Whether it takes less time to compute so many rows than more of them."""
        alone = self.engine.platform == "cpu" and self.engine.mesh is None
        return alone and rows >= _LEAST_ROWS

    def _alike(self) -> Alike | None:
        """Which rows say the same, if that many do."""
        B = len(self.slots)
        if not self._pays(B // 2):
            return None
        first: dict[tuple[int, ...], int] = {}
        numbers = [
            -1 if slot is None else first.setdefault((slot.prompt, *slot.ids), row)
            for row, slot in enumerate(self.slots)
        ]
        widths = [B // parts for parts in (8, 4, 2) if self._pays(B // parts)]
        width = next((width for width in widths if len(first) <= width), None)
        return None if width is None else Alike(np.array(numbers, np.int32), width)

    def _seat(self) -> list[_Slot]:
        """Give the free rows to those who wait, and say who that was."""
        coming = []
        for row, slot in enumerate(self.slots):
            if slot is None and self.waiting:
                prompt, sample = self.waiting.popleft()
                self.slots[row] = _Slot(prompt, sample, len(self.prompts[prompt]) - 1, [], [])
                coming.append(self.slots[row])
        return [slot for slot in coming if slot]

    def _admit(self, coming: list[_Slot]) -> None:
        """Fill the rows of those who come, which they do in the order of the groups."""
        while coming:
            if coming[0].prompt not in self.group:
                self._prefill_next()
            members = [slot for slot in coming if slot.prompt in self.group]
            self._place(members)
            coming = coming[len(members) :]
        if not self.waiting:
            self.prefilled = self.beginning = None

    def _prefill_next(self) -> None:
        self.prefilled = None  # there is room for one
        self.group, rows = self.groups.popleft()
        if self.common and self.beginning is None:
            self.beginning = self.engine.prefill([self.prompts[0][: self.common + 1]], 1)
        prompts = [self.prompts[p] for p in self.group]
        self.prefilled = self.engine.prefill(prompts, rows, self.beginning, self.common)
        jax.block_until_ready(self.prefilled.lengths_B)  # else its time would be that of the tokens

    def _place(self, members: list[_Slot]) -> None:
        B = len(self.slots)
        columns = {name: np.zeros(B, np.int32) for name in Admitted._fields}
        columns["source_B"][:] = -1
        texts = {}
        for row, slot in enumerate(self.slots):
            if slot is None or slot not in members:
                continue
            texts[row] = self.prompts[slot.prompt]
            values = (
                self.group.index(slot.prompt), texts[row][-1],
                self.sampling.max_new_tokens, slot.prompt, slot.sample,
            )  # fmt: skip
            for column, value in zip(columns.values(), values, strict=True):
                column[row] = value
        new = Admitted(**columns)
        self.rows = admit(self.rows, self.prefilled, new, self.key)
        if self.rows.seen_BV is not None:
            tokens_BT = seen_tokens(texts, B, self.engine.spec.vocab)
            self.rows = mark_seen(self.rows, tokens_BT, new.source_B >= 0)

    def _make_room(self) -> None:
        """Make the cache as large as the next segment needs it."""
        limit, most = self.sampling.max_new_tokens, self.engine.spec.max_seq_len
        needed = max(
            slot.length + min(SEGMENT, limit - len(slot.ids)) for slot in self.slots if slot
        )
        if self.rows is None:
            B, capacity = len(self.slots), bucket(needed, SMALLEST, most)
            plan, place = self.engine.plan(self.sampling), self.engine.place_of(B)
            self.rows = empty_rows(self.engine.spec, self.key, (B, capacity), plan, place)
        while (capacity := self.rows.cache.capacity) < needed:
            self._reshape(range(len(self.slots)), min(2 * capacity, most))

    def _shrink(self) -> None:
        """Leave out rows that nobody waits for."""
        busy = len(self.slots) - self.slots.count(None)
        while not self.waiting and busy <= (B := len(self.slots) // _SHRINK):
            busy_first = sorted(range(len(self.slots)), key=lambda row: self.slots[row] is None)
            self._reshape(busy_first[:B], self.rows.cache.capacity)
            if B // _SHRINK < _LEAST_ROWS:
                break  # the next has a program of its own, and would save little in a segment

    def _reshape(self, kept: Sequence[int], capacity: int) -> None:
        """One size further."""
        place = self.engine.place_of(len(kept))
        self.rows = reshape_rows(self.rows, np.asarray(kept, np.int32), capacity, place)
        self.slots = [self.slots[row] for row in kept]

    def _harvest(self, written: Written, is_over: Callable[[list[int]], bool] | None) -> None:
        """Take what was written; free the rows that are done."""
        ended = np.zeros(len(self.slots), bool)
        for row, slot in enumerate(self.slots):
            if slot is None:
                continue
            count = int(written.counts_B[row])
            slot.ids += written.tokens_BN[row, :count].tolist()
            slot.log_probs.append(written.log_probs_BN[row, :count])
            slot.length += count
            over = is_over is not None and is_over(slot.ids)
            if written.done_B[row] or over:
                stopped = over or slot.ids[-1] in self.stop_ids
                answer = Completion(slot.ids, np.concatenate(slot.log_probs), bool(stopped))
                self.answers[slot.prompt, slot.sample] = answer
                self.slots[row] = None
                ended[row] = True
        if is_over is not None:
            self.rows = self.rows._replace(done_B=self.rows.done_B | ended)


def _common(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, if fewer are gone through when those are so once."""
    if len(prompts) < 2:
        return 0
    lengths = [len(prompt) - 1 for prompt in prompts]  # the last token goes through later
    before, longest = min(common_length(prompts), *lengths), max(lengths)
    rests, whole = bucket(longest - before, SMALLEST_REST), bucket(longest, SMALLEST)
    n = len(prompts)
    return before if bucket(before, SMALLEST) + n * rests < n * whole else 0
