import gzip
import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from llm.core.spec import RefusedError
from llm.data.digests import digest_files
from llm.data.source import Skipped
from llm.data.sources import open_source
from llm.data.specs import SourceSpec


def read(spec, tmp_path):
    skipped = Skipped()
    texts = [document.text for document in open_source(spec, tmp_path / "c").documents(skipped)]
    return texts, skipped


def refused(tmp_path, message, **fields):
    with pytest.raises(RefusedError, match=message):
        read(SourceSpec(**fields), tmp_path)


def test_text_file_folder_and_glob(tmp_path):
    root = tmp_path / "texts"
    (root / "deep").mkdir(parents=True)
    (root / ".hidden").mkdir()
    (root / ".hidden" / "x.txt").write_text("hidden")
    (root / "b.txt").write_bytes("b\r\né".encode())
    (root / "deep" / "a.md").write_text("a")
    (root / "bom.txt").write_bytes(b"\xef\xbb\xbfbom")
    one = SourceSpec(source="text", path=str(root / "b.txt"))
    assert read(one, tmp_path)[0] == ["b\r\né"]
    folder = SourceSpec(source="text", path=str(root))
    assert read(folder, tmp_path)[0] == ["b\r\né", "bom", "a"]
    assert read(folder.replace(max_documents=2), tmp_path)[0] == ["b\r\né", "bom"]
    matching = SourceSpec(source="text", path=str(root / "**" / "*.md"))
    assert read(matching, tmp_path)[0] == ["a"]


def test_empty_binary_and_undecodable_files_are_counted_and_named(tmp_path):
    root = tmp_path / "texts"
    root.mkdir()
    (root / "empty.txt").touch()
    (root / "junk.bin").write_bytes(bytes(range(256)))
    (root / "latin.txt").write_bytes("café".encode("latin-1"))
    (root / "good.txt").write_text("good")
    texts, skipped = read(SourceSpec(source="text", path=str(root)), tmp_path)
    assert texts == ["good"]
    assert skipped.counts == Counter({"empty": 1, "binary": 1, "not UTF-8": 1})
    assert "junk.bin" in skipped.describe()
    assert "latin.txt" in skipped.describe()


def test_missing_paths(tmp_path):
    refused(tmp_path, "no such file or folder", source="text", path=str(tmp_path / "no"))
    refused(tmp_path, "no files that match", source="text", path=str(tmp_path / "*.no"))
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "no .jsonl or", source="jsonl", path=str(tmp_path / "empty"))


def test_jsonl(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"text": null}\n{"text": "\\ud800"}\n{"text": "two\\n"}')
    texts, skipped = read(SourceSpec(source="jsonl", path=str(path)), tmp_path)
    assert texts == ["one", "two\n"]
    assert skipped.counts == Counter({"empty": 1, "with unpaired surrogates": 1})
    packed = tmp_path / "b.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"text": "three"}\n'))
    assert read(SourceSpec(source="jsonl", path=str(packed)), tmp_path)[0] == ["three"]
    both = SourceSpec(source="jsonl", path=str(tmp_path))
    assert read(both, tmp_path)[0] == ["one", "two\n", "three"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "cut', r"a\.jsonl:3: not valid JSON .*cut"),
        (b"[" * 100_000, r"a\.jsonl:3: "),
        (b'{"text": "\xff"}', r"a\.jsonl:3: not UTF-8 at byte 10"),
        (b'["text"]', r"a\.jsonl:3: expected a JSON object"),
        (b'{"body": "x", "id": 1}', r"a\.jsonl:3: no field 'text'; it has body, id"),
        (b'{"text": 5}', r"a\.jsonl:3: field 'text' holds a int"),
    ],
)
def test_broken_lines_are_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n{"text": "good"}\n' + line + b'\n{"text": "good"}\n')
    refused(tmp_path, message, source="jsonl", path=str(path))


def test_parquet(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    texts = [f"text {n}" for n in range(1000)]
    parquet.write_table(pa.table({"n": range(1000), "body": texts}), tmp_path / "a.parquet")
    spec = SourceSpec(source="parquet", path=str(tmp_path), text_field="body")
    assert read(spec, tmp_path)[0] == texts
    assert open_source(spec, tmp_path).size >= sum(map(len, texts)) // 2
    refused(tmp_path, "a.parquet has n, body", source="parquet", path=str(tmp_path))
    (tmp_path / "b.parquet").write_bytes(b"not parquet at all")
    refused(
        tmp_path, "b.parquet: not a readable", source="parquet", path=str(tmp_path / "b.parquet")
    )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_hf_from_a_local_folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    datasets.disable_progress_bars()
    texts = [f"text {n}" for n in range(300)]
    lines, tables, saved = tmp_path / "lines", tmp_path / "tables", tmp_path / "saved"
    lines.mkdir()
    tables.mkdir()
    (lines / "train.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    whole = datasets.Dataset.from_dict({"body": texts})
    whole.to_parquet(str(tables / "train.parquet"))
    datasets.DatasetDict({"train": whole}).save_to_disk(str(saved))
    prints = set()
    for path, field in ((lines, "text"), (tables, "body"), (saved, "body")):
        spec = SourceSpec(source="hf", path=str(path), text_field=field)
        assert read(spec, tmp_path)[0] == texts
        prints.add(open_source(spec, tmp_path).fingerprint())
        if path != saved:
            stream = spec.replace(streaming=True, max_documents=7)
            assert read(stream, tmp_path)[0] == texts[:7]
            assert open_source(stream, tmp_path).size is None
    assert len(prints) == 3
    refused(tmp_path, "has body", source="hf", path=str(tables))
    refused(tmp_path, "split=test", source="hf", path=str(tables), split="test")
    refused(tmp_path, "cannot load", source="hf", path=str(tmp_path / "no" / "such"))


def test_stdlib_is_this_pythons(tmp_path):
    source = open_source(SourceSpec(), tmp_path)
    names = [path.name for path in source.files]
    assert "argparse.py" in names
    assert not any("site-packages" in path.parts for path in source.files)
    assert all(f"python3.{sys.version_info[1]}" in str(path) for path in source.files)


def test_fingerprint_follows_content_not_name(tmp_path):
    def fingerprint(path, **fields):
        spec = SourceSpec(source="text", path=str(path), **fields)
        return open_source(spec, tmp_path / "c").fingerprint()

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text("same")
    first = fingerprint(tmp_path / "a")
    assert fingerprint(tmp_path / "b") == first
    assert fingerprint(tmp_path / "b", max_documents=1) != first
    (tmp_path / "b" / "b.txt").write_text("diff")
    assert fingerprint(tmp_path / "b") != first


def test_big_files_are_hashed_once(tmp_path, monkeypatch):
    from llm.data import digests

    monkeypatch.setattr(digests, "_REMEMBERED_FROM", 4)
    big = tmp_path / "big"
    big.write_text("content")
    hashed = []
    real = digests._hash_file
    monkeypatch.setattr(digests, "_hash_file", lambda path: hashed.append(path) or real(path))
    first = digest_files([big], tmp_path)
    assert digest_files([big], tmp_path) == first
    assert hashed == [big]
    big.write_text("content, changed")
    assert digest_files([big], tmp_path) != first
    (tmp_path / "digests.json").write_text("{broken")
    digest_files([big], tmp_path)


def test_relative_paths_name_the_folder_they_start_from(tmp_path):
    refused(tmp_path, str(Path.cwd()), source="text", path="no/such/folder")
