"""Lernaean: one experiment platform for language models in JAX and Flax.

`import llm` is fast and touches no device: the names below are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llm.generate.language_model import LanguageModel, load, save_hf

__all__ = ["LanguageModel", "load", "save_hf"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from llm.generate import language_model

        return getattr(language_model, name)
    raise AttributeError(f"module 'llm' has no attribute '{name}'")
