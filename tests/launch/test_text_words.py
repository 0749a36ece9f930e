"""A text on the command line is what it says."""

import pytest
from hydra import compose

from launch.config import spec_from_config
from launch.text_words import paths_quoted, taken_literally
from llm.generate.specs import GenerateSpec

TEXTS = [
    "def main(", "a, b", 'say "hi"', "it's", 'a back\\slash, \\"', "", "{x: 1}", "[1", "null",
    " spaces ", "two\nlines", "end\\", "${seed}", "a=b", "1e3", "true", "$HOME # x",
]  # fmt: skip


@pytest.mark.usefixtures("tree")
@pytest.mark.parametrize("text", TEXTS)
def test_a_prompt_means_what_it_says(text: str) -> None:
    words = taken_literally([f"prompt={text}", "seed=3"], "prompt")
    spec = spec_from_config(compose("generate", words), GenerateSpec)
    assert (spec.prompt, spec.seed) == (text, 3)


def test_what_stands_in_quotes_is_left_alone() -> None:
    words = ["prompt='def x'", 'prompt="a b"', "prompts_file=x"]
    assert taken_literally(words, "prompt") == words


@pytest.mark.usefixtures("tree")
def test_a_folder_with_grammar_in_its_name_can_be_named(tmp_path) -> None:
    folder = tmp_path / "2-seed=1,lr=[3e-4] it's"
    folder.mkdir()
    words = paths_quoted([f"checkpoint={folder}", "seed=3", "max_new_tokens=4"])
    spec = spec_from_config(compose("generate", words), GenerateSpec)
    assert (spec.checkpoint, spec.seed) == (str(folder), 3)
    others = [
        "seed=1,2",
        f"resume={folder}",
        f"checkpoint=[{folder},last]",
        "--cfg",
        "x=" + "a," * 9999,
    ]
    assert paths_quoted(others) == others


def test_a_prompt_from_the_shell(command, trained_run) -> None:
    words = [f"checkpoint={trained_run}", "prompt=def main(", "max_new_tokens=2"]
    done = command(*words, script="generate.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def main(")
