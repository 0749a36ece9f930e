"""Training a tokenizer beside Hugging Face's own trainer; run by hand, not a test.

    python tests/bench_tokenizer.py

Both count and merge with the same Rust library; what differs is how text is read and cut. The text
is the standard library's, 2 % of its files held out, and the sides take turns, each in a process
of its own. "HF defaults" is `ByteLevelBPETokenizer().train(files)`, of which only the vocabulary's
size is set. Then peak memory over corpora of several sizes: copies of one text, and made-up words
of which each is new.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VOCABULARY, ROUNDS = 8192, 3
COPIES, NEW = (8, 32, 128), (2, 8)  # MB; of new words, 32 MB need 3 GiB


def prepare(folder: Path) -> None:
    """The files to train on, and held-out.json."""
    from llm.data.passages import HeldOut
    from llm.data.source import Skipped
    from llm.data.sources import open_source
    from llm.data.specs import SourceSpec

    source = open_source(SourceSpec(), folder)
    held_out = HeldOut([source], 0.02)
    (folder / "text").mkdir()
    for number, document in enumerate(source.documents(Skipped())):
        if text := held_out.without(0, document.text):
            (folder / "text" / f"{number:05}.txt").write_text(text, "utf-8", newline="")
    (folder / "held-out.json").write_text(json.dumps(held_out.texts()[0]))


def corpus(folder: Path, megabytes: int, *, new: bool) -> Path:
    """A folder with so much text in files of 1 MB: copies, or words that are all new."""
    texts = "".join(f.read_text("utf-8") for f in sorted((folder / "text").iterdir()))[: 8 * 2**20]
    path, rng = folder / f"{megabytes}-{'new' if new else 'copies'}", random.Random(0)
    path.mkdir()
    for number in range(megabytes):
        start = number % 8 * 2**20
        text = texts[start : start + 2**20]
        if new:
            letters = "abcdefghijklmnopqrstuvwxyz"
            text = " ".join("".join(rng.choices(letters, k=9)) for _ in range(2**20 // 10))
        (path / f"{number}.txt").write_text(text, "utf-8", newline="")
    return path


def ours(path: str, pattern: str) -> object:
    """Our training, streaming."""
    from llm.data.bpe import train_bpe
    from llm.data.passages import Passages
    from llm.data.sources import open_source
    from llm.data.specs import BPESpec, SourceSpec

    source = open_source(SourceSpec(source="text", path=path), Path(path).parent)
    return train_bpe(
        Passages([source], [1.0], None), BPESpec(vocab_size=VOCABULARY, pattern=pattern)
    )._inner


def theirs(path: str) -> object:
    """The library's ready-made byte-level BPE with its default settings."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    files = sorted(str(file) for file in Path(path).iterdir())
    tokenizer.train(files, vocab_size=VOCABULARY, show_progress=False)
    return tokenizer._tokenizer


def side(name: str, path: str, held_out: str) -> None:
    """Train one side; prints seconds, and bytes per token of the held-out text."""
    started = time.perf_counter()
    inner = theirs(path) if name == "HF defaults" else ours(path, name.removeprefix("ours, "))
    seconds = time.perf_counter() - started
    texts = json.loads(Path(held_out).read_text())
    tokens = sum(len(e.ids) for e in inner.encode_batch(texts, add_special_tokens=False))
    sys.stdout.write(f"{seconds} {sum(len(t.encode()) for t in texts) / tokens}\n")


def run(name: str, path: Path, folder: Path) -> tuple[float, float, float, float]:
    """Seconds, bytes per token, peak memory in MiB, seconds of all cores (of the whole process)."""
    command = [sys.executable, __file__, name, str(path), str(folder / "held-out.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{name}: status {status}")
    seconds, quality = map(float, said.split())
    return seconds, quality, usage.ru_maxrss / 2**10, usage.ru_utime + usage.ru_stime


def main() -> None:
    """Print medians and ratios."""
    sides = ("ours, llama3", "ours, gpt2", "HF defaults")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        results = {one: [] for one in sides}
        for _ in range(ROUNDS):
            for one in sides:
                results[one].append(run(one, folder / "text", folder))
        for one, runs in results.items():
            pairs = list(zip(runs, results["HF defaults"], strict=True))
            ratio = statistics.median(mine[0] / its[0] for mine, its in pairs)
            work = statistics.median(mine[3] / its[3] for mine, its in pairs)
            seconds, quality, memory, _ = (statistics.median(c) for c in zip(*runs, strict=True))
            sys.stdout.write(
                f"{one:13s} {seconds:5.1f} s ({ratio:.2f} x HF; CPU time {work:.2f} x)  "
                f"{quality:.3f} bytes/token  peak {memory:.0f} MiB\n"
            )
            sys.stdout.flush()
        for sizes, new in ((COPIES, False), (NEW, True)):
            peaks = [
                run("ours, llama3", corpus(folder, size, new=new), folder)[2] for size in sizes
            ]
            shown = ", ".join(
                f"{size} MB: {peak:.0f} MiB" for size, peak in zip(sizes, peaks, strict=True)
            )
            sys.stdout.write(f"peak over {'new words' if new else 'copies':9s}  {shown}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    side(*sys.argv[1:]) if len(sys.argv) > 1 else main()
