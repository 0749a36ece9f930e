"""Models to be evaluated: the tiny trained one, and one that transformers has too."""

from pathlib import Path

import pytest

from llm.generate.language_model import LanguageModel, load


@pytest.fixture(scope="session")
def lm(trained_run: Path) -> LanguageModel:
    return load(str(trained_run))
