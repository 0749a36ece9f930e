"""Words that run an experiment again."""

import pytest

from llm.report.again import words_again


@pytest.mark.parametrize(
    ("word", "checkpoint", "again"),
    [
        ("init_from=last", "outputs/a/checkpoints/30", "init_from=outputs/a/checkpoints/30"),
        ("init_from=last:sft", "outputs/s,e=1/3", "init_from='outputs/s,e=1/3'"),
        ("init_from=[last:sft,pypi:x]", "outputs/a/3", "init_from=outputs/a/3"),
        ("init_from=outputs/last/3", "outputs/last/3", "init_from=outputs/last/3"),
        ("init_from=[last,pypi:x]", None, "init_from=[last,pypi:x]"),
        ("name=last", "outputs/a/3", "name=last"),
    ],
)
def test_last_is_what_it_was(word: str, checkpoint: str | None, again: str) -> None:
    """None: the checkpoint was not one of ours, but another of the list."""
    run = {"overrides": ["model=gpt", word], "parent": {"checkpoint": checkpoint}}
    assert words_again(run) == ["model=gpt", again]
