"""How the C library's allocator treats the large arrays that XLA takes from it on a CPU.

XLA takes a program's temporary arrays from the C library at each call. By default glibc asks the
system for each large array, which clears it page by page at first touch, every time: a fifth of a
training step of a small model. One heap that never shrinks hands the same pages out again.

C libraries other than glibc (of macOS, musl) have no such settings; with them nothing is changed.
"""

from __future__ import annotations

import ctypes

# Numbers of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def use_one_arena() -> None:
    """Have all threads that start from now on share one heap.

    The heaps that threads otherwise get of their own never hold large arrays.
    """
    _set(_M_ARENA_MAX, 1)


def keep_freed_memory() -> bool:
    """Have what is freed kept for the next array instead of given back to the system.

    For processes that run the same programs again and again: the heap stays as large as it ever
    was. Takes `use_one_arena`, before XLA has started its threads.

    Returns:
        Whether the C library could be told.
    """
    global _keeps  # noqa: PLW0603
    # No array apart from the heap, and no end of the heap given back (-1: whatever its size).
    _keeps = _set(_M_MMAP_MAX, 0) and _set(_M_TRIM_THRESHOLD, -1)
    return _keeps


def give_back() -> None:
    """Give what is kept back to the system, once.

    For after other work than the program that runs again and again: what that left in the heap may
    have divided the place of the program's arrays, which then are elsewhere, and both are kept.
    """
    if _keeps:
        ctypes.CDLL(None).malloc_trim(0)


_keeps = False


def _set(name: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(name, value) == 1
