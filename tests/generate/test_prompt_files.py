"""Prompts from files, answers to files."""

import json
from pathlib import Path

import pytest

from llm.core.new_file import check_new_file
from llm.core.spec import RefusedError
from llm.generate.prompts import read_prompts, write_answers


def test_lines_are_prompts(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("first\n\nthird é\n")
    assert read_prompts(file) == ["first", "", "third é"]


def test_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "a\\nb"}\n{"prompt": "", "id": 3}\n')
    assert read_prompts(file) == ["a\nb", ""]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_a_line_feed_ends_a_line(tmp_path: Path, end: str) -> None:
    odd = "a\u2028b\x0cc\x85d"
    (tmp_path / "p.txt").write_bytes(f"\ufeff{odd}{end}second{end}".encode())
    (tmp_path / "p.jsonl").write_bytes(f'\ufeff{{"prompt": "a\u2028b"}}{end}'.encode())
    assert read_prompts(tmp_path / "p.txt") == [odd, "second"]
    assert read_prompts(tmp_path / "p.jsonl") == ["a\u2028b"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.txt", b"", "no prompt in it"),
        ("p.txt", b"\xff\xfe\x00", "cannot be read"),
        (
            "p.jsonl",
            b'{"prompt": "x"}\n{"text": "x"}\n',
            r"p.jsonl:2: expected {\"prompt\": \"text\"}",
        ),
        ("p.jsonl", b'{"prompt": 3}\n', "p.jsonl:1: expected"),
        ("p.jsonl", b"[]\n", "p.jsonl:1: expected"),
        ("p.jsonl", b"{\n", "p.jsonl:1: expected"),
    ],
)
def test_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(RefusedError, match=message):
        read_prompts(file)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="nowhere: cannot be read"):
        read_prompts(tmp_path / "nowhere")


def test_answers(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    check_new_file(file, "out")
    write_answers(file, ["a", "é"], [["1", "2"], ["3", "4"]])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert lines == [
        {"prompt": "a", "completions": ["1", "2"]},
        {"prompt": "é", "completions": ["3", "4"]},
    ]
    with pytest.raises(RefusedError, match="exists already"):
        check_new_file(file, "out")
    with pytest.raises(RefusedError, match="there is no folder"):
        check_new_file(tmp_path / "nowhere" / "answers.jsonl", "out")


def test_half_an_answer_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"):
        write_answers(tmp_path / "answers.jsonl", ["a", "b"], [["1"]])
    assert list(tmp_path.iterdir()) == []
