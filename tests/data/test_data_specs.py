import subprocess
import sys

import pytest

from llm.core.spec import RefusedError, spec_from_json
from llm.data.specs import PackedSpec, PaddedSpec, SourceSpec, TokenizerSpec


def test_json_round_trip():
    spec = PaddedSpec(
        mixture=[SourceSpec(source="text", path="a", weight=2.0), SourceSpec()], buckets=[32, 64]
    )
    again = spec_from_json(spec.to_json())
    assert again == spec
    assert hash(again) == hash(spec)
    assert isinstance(again.mixture[0], SourceSpec)


def test_mixture_members_may_be_plain_mappings():
    spec = PackedSpec(mixture=[{"source": "text", "path": "a", "weight": 3}])
    assert spec.sources == (SourceSpec(source="text", path="a", weight=3),)


def test_one_source_is_a_mixture_of_one():
    spec = PackedSpec(source="jsonl", path="a", text_field="body", max_documents=3)
    member = SourceSpec(source="jsonl", path="a", text_field="body", max_documents=3)
    assert spec.sources == (member,)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PackedSpec(source="text"), "needs one"),
        (lambda: PackedSpec(path="x"), "own library"),
        (lambda: PackedSpec(source="csv"), "expected one of stdlib, text"),
        (lambda: PackedSpec(source="text", path="a", streaming=True), "only source=hf"),
        (lambda: PackedSpec(source="text", path="a", text_field="t"), "no fields"),
        (lambda: PackedSpec(mixture=[SourceSpec()], max_documents=3), "not read"),
        (lambda: PackedSpec(eval_fraction=1.0), "less than 1"),
        (lambda: PackedSpec(seq_len=1), "at least 2"),
        (lambda: SourceSpec(weight=0.0), "greater than 0"),
        (lambda: PaddedSpec(buckets=[64, 32]), "ascending"),
        (lambda: PaddedSpec(buckets=[512]), "seq_len=256"),
        (lambda: TokenizerSpec(vocab_size=257), "at least 259"),
        (lambda: TokenizerSpec(special_tokens=["a", "a"]), "doubled"),
        (lambda: TokenizerSpec(special_tokens=[]), "separator"),
        (lambda: TokenizerSpec(special_tokens=["<|tool|>"]), "none is known to end a text"),
        (lambda: TokenizerSpec(separator="<sep>"), "not among"),
        (lambda: PackedSpec().build(seed=-1), "not negative"),
        (lambda: PackedSpec(batch_size=3).build(0, 0, 2), "2 hosts"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(RefusedError, match=message):
        make()


def test_buckets():
    assert PackedSpec(seq_len=100).row_lengths() == (100,)
    assert PaddedSpec(seq_len=256).row_lengths() == (16, 32, 64, 128, 256)
    assert PaddedSpec(seq_len=2048).row_lengths() == (128, 256, 512, 1024, 2048)
    assert PaddedSpec(seq_len=100).row_lengths() == (16, 32, 64, 100)
    assert PaddedSpec(seq_len=8).row_lengths() == (8,)
    assert PaddedSpec(seq_len=100, buckets=[10]).row_lengths() == (10, 100)
    assert PaddedSpec(seq_len=100, buckets=[10, 100]).row_lengths() == (10, 100)


def test_specs_import_nothing_heavy():
    heavy = "jax numpy grain tokenizers datasets pyarrow rich loguru"
    code = f"import sys, llm.data.specs\nfor m in {heavy.split()}: assert m not in sys.modules, m"
    subprocess.run([sys.executable, "-c", code], check=True)
