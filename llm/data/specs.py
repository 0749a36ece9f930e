"""What data a run reads: sources, tokenizer and the form of its rows, as plain specs.

Nothing here touches a disk; `DataSpec.build` does, through `llm.data.pipeline`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from llm.core.spec import RefusedError, Spec, knob
from llm.data import patterns
from llm.data.special_names import END_NAMES

if TYPE_CHECKING:
    from llm.data.conversations import ChatSettings
    from llm.data.pipeline import Data
    from llm.data.tokenizer import Tokenizer

LOSS_ON = ("assistant", "last", "completion", "all")
TOO_LONG = ("cut_right", "cut_left", "split", "drop")
SOURCES = ("stdlib", "text", "jsonl", "parquet", "hf", "task")
_BYTES = 256
_SMALLEST_BUCKET = 16
_DEFAULT_BUCKETS = 5


@dataclass(frozen=True, kw_only=True)
class DocumentsSpec(Spec):
    """Where documents come from: the fields that a lone source and a mixture's member share."""

    source: str = knob("stdlib", "kind of source", choices=SOURCES)
    path: str | None = knob(
        None,
        "file, folder or glob; hf: a dataset's name or local folder; task: one kind, "
        "reasoning_gym/PATTERN, or null: all of our own",
    )
    text_field: str = knob("text", "jsonl, parquet, hf: the field that holds a document's text")
    config: str | None = knob(None, "hf: name of the dataset's configuration")
    split: str = knob("train", "hf: which split to read")
    streaming: bool = knob(False, "hf: read over the network without a local Arrow copy")
    max_documents: int | None = knob(None, "read only the first so many documents", ge=1)

    def check(self) -> None:
        """Refuse a missing path and settings that this kind of source would not read."""
        if self.source not in ("stdlib", "task") and not self.path:
            raise RefusedError(f"path: source={self.source} needs one (a file, folder or glob)")
        if self.source == "stdlib" and self.path:
            raise RefusedError(
                f"path={self.path}: source=stdlib reads the running Python's own library. "
                f"For other files take one of source={'|'.join(SOURCES[1:])}"
            )
        if self.source in ("stdlib", "text", "task") and self.text_field != "text":
            raise RefusedError(f"text_field={self.text_field}: source={self.source} has no fields")
        if self.source != "hf":
            for name, default in (("config", None), ("split", "train"), ("streaming", False)):
                if (value := getattr(self, name)) != default:
                    raise RefusedError(f"{name}={value}: only source=hf reads it")


@dataclass(frozen=True, kw_only=True)
class SourceSpec(DocumentsSpec):
    """One member of a mixture."""

    weight: float = knob(1.0, "share of the rows, relative to the other members'", gt=0)


@dataclass(frozen=True, kw_only=True)
class BPESpec(Spec):
    """A byte-level BPE tokenizer to train."""

    vocab_size: int = knob(4096, "tokens to train, special ones included", gt=_BYTES)
    min_frequency: int = knob(2, "tokens that are merged must stand together so often", ge=1)
    special_tokens: list[str] = knob(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "tokens that no text contains"
    )
    pattern: str = knob(
        patterns.LLAMA3,
        "how text is cut into words, which no token crosses; llama3 is OpenAI's cl100k",
        choices=patterns.NAMES,
    )
    max_digits: int | None = knob(
        None, "cut numbers after so many digits; null: llama3 after 3, gpt2 never", ge=1
    )
    separator: str | None = knob(None, "the token between documents; by default found by name")

    def check(self) -> None:
        """Refuse a vocabulary without room, doubled names and a separator that is not there."""
        if len(set(self.special_tokens)) != len(self.special_tokens) or "" in self.special_tokens:
            raise RefusedError(f"special_tokens={list(self.special_tokens)}: empty or doubled name")
        needed = _BYTES + len(self.special_tokens)
        if self.vocab_size < needed:
            raise RefusedError(
                f"vocab_size={self.vocab_size}: {_BYTES} bytes and {len(self.special_tokens)} "
                f"special tokens need at least {needed}"
            )
        if not self.special_tokens:
            raise RefusedError("special_tokens=[]: name at least the separator of documents")
        if self.separator is not None and self.separator not in self.special_tokens:
            raise RefusedError(
                f"separator={self.separator}: not among special_tokens={list(self.special_tokens)}"
            )
        if self.separator is None and not set(END_NAMES) & set(self.special_tokens):
            raise RefusedError(
                f"special_tokens={list(self.special_tokens)}: none is known to end a text; say "
                "separator=... which one does"
            )


@dataclass(frozen=True, kw_only=True)
class TokenizerSpec(BPESpec):
    """A tokenizer to load, or (no path) a byte-level BPE to train on the source."""

    path: str | None = knob(
        None,
        "tokenizer.json, SentencePiece .model, a folder with one (such as a run's), or "
        "hf:org/name[@revision]; null: train one",
    )
    characters: int | None = knob(
        None, "train it on about so many, spread evenly; null: 2,048 for each token", ge=1
    )

    def check(self) -> None:
        """With a path the rest says nothing."""
        if self.path is None:
            super().check()


@dataclass(frozen=True, kw_only=True)
class DataSpec(DocumentsSpec):
    """Rows of tokens from one source (this spec's own fields) or from a weighted mixture."""

    name: ClassVar[str] = ""

    mixture: list[SourceSpec] = knob([], "several weighted sources instead of the one above")
    tokenizer: TokenizerSpec = knob(TokenizerSpec(), "which tokenizer")
    seq_len: int = knob(256, "positions in a row", ge=2)
    batch_size: int = knob(8, "rows in a batch, over all hosts", ge=1)
    eval_fraction: float = knob(0.005, "share of the documents held out for evaluation", ge=0, lt=1)
    workers: int = knob(0, "loader processes; 0 = threads of this process", ge=0)
    cache_dir: str = knob("outputs/cache", "folder for trained tokenizers and tokenised documents")

    def __post_init__(self) -> None:
        members = tuple(
            SourceSpec(**{k: v for k, v in member.items() if k != "_target_"})
            if isinstance(member, Mapping)
            else member
            for member in self.mixture
        )
        object.__setattr__(self, "mixture", members)
        super().__post_init__()

    def check(self) -> None:
        """Refuse a mixture next to a source of its own: one of them would not be read."""
        if not self.mixture:
            super().check()
            return
        alone = DocumentsSpec()
        for name in alone.__dataclass_fields__:
            if (value := getattr(self, name)) != getattr(alone, name):
                raise RefusedError(f"{name}={value}: not read, because mixture names the sources")

    @property
    def sources(self) -> tuple[SourceSpec, ...]:
        """The sources that are read, each with its weight."""
        if self.mixture:
            return tuple(self.mixture)
        own: dict[str, Any] = {n: getattr(self, n) for n in DocumentsSpec.__dataclass_fields__}
        return (SourceSpec(**own),)

    def row_lengths(self) -> tuple[int, ...]:
        """Every row length (in positions) a batch may have, ascending."""
        return (self.seq_len,)

    def more_rows(self, row_length: int) -> int:
        """How many times `batch_size` rows of this length make a batch."""
        del row_length
        return 1

    def build(
        self,
        seed: int,
        shard_index: int = 0,
        shard_count: int = 1,
        tokenizer: Tokenizer | None = None,
        chat: ChatSettings | None = None,
    ) -> Data:
        """Read, tokenise (both cached) and plan the rows.

        Args:
            seed: decides the order of the rows, together with the epoch.
            shard_index: which slice of each batch's rows this host gets.
            shard_count: number of hosts.
            tokenizer: the one to use instead of this spec's, such as a checkpoint's.
            chat: read conversations, in this way; None reads plain text.

        Raises:
            RefusedError: missing or unusable files, broken lines, a batch the hosts cannot share.
        """
        from llm.data.pipeline import build_data

        return build_data(self, seed, shard_index, shard_count, tokenizer, chat)


@dataclass(frozen=True, kw_only=True)
class PackedSpec(DataSpec):
    """Several documents per row, kept apart by segment ids; less than 1 % padding."""

    name: ClassVar[str] = "packed"


@dataclass(frozen=True, kw_only=True)
class PaddedSpec(DataSpec):
    """One document per row; a batch holds rows of similar length, padded to its bucket."""

    name: ClassVar[str] = "padded"

    buckets: list[int] = knob([], "row lengths; empty = powers of two up to seq_len, at most 5")
    batch_by: str = knob(
        "rows",
        "rows: each batch has batch_size rows; tokens: those of shorter rows have more, about "
        "batch_size x seq_len tokens in all",
        choices=("rows", "tokens"),
    )

    def check(self) -> None:
        """Refuse buckets out of order or longer than a row may be."""
        super().check()
        buckets = list(self.buckets)
        if buckets != sorted(set(buckets)) or (buckets and buckets[0] < 2):
            raise RefusedError(f"buckets={buckets}: expected ascending row lengths of at least 2")
        if buckets and buckets[-1] > self.seq_len:
            raise RefusedError(f"buckets={buckets}: longer than seq_len={self.seq_len}")

    def row_lengths(self) -> tuple[int, ...]:
        """The buckets; `seq_len` is always the last, so that no document is dropped."""
        lengths = set(self.buckets)
        if not lengths:
            powers = [2**n for n in range(31) if _SMALLEST_BUCKET <= 2**n < self.seq_len]
            lengths = set(powers[1 - _DEFAULT_BUCKETS :])
        return (*sorted(lengths - {self.seq_len}), self.seq_len)

    def more_rows(self, row_length: int) -> int:  # noqa: D102
        # A multiple of batch_size: hosts, devices and micro-batches divide it as well.
        return self.seq_len // row_length if self.batch_by == "tokens" else 1
