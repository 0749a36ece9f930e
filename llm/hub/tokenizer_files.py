"""The tokenizer's files of a Hugging Face folder: for transformers, vLLM and llama.cpp alike."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llm.core.spec import RefusedError
from llm.data.tokenizer import Tokenizer
from llm.hub.pretrained import Pretrained

# `{% generation %}` marks what an assistant says, for masks in training. Most readers of templates
# do not know the tag.
_MARK = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def write_tokenizer(pretrained: Pretrained, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json and the chat template.

    Raises:
        RefusedError: the tokenizer has tokens that the model has no embedding for.
    """
    tokenizer, spec = pretrained.tokenizer, pretrained.spec
    if tokenizer.vocab_size > spec.vocab:
        raise RefusedError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model vocab_size={spec.vocab}: "
            "expected an embedding for every token"
        )
    template = pretrained.chat_template
    names = special_names(tokenizer, pretrained.end_ids)
    config = tokenizer_config(tokenizer, names) | {"model_max_length": spec.max_seq_len}
    if template is not None:
        config["chat_template"] = plain_template(template)
        (folder / "chat_template.jinja").write_text(config["chat_template"], "utf-8")
    (folder / "tokenizer.json").write_text(tokenizer.to_hf_json(), "utf-8")
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", names)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer alone, for our own runs and for others; tokenizer.json last, each whole."""
    names = special_names(tokenizer)
    contents = {
        "special_tokens_map.json": as_json(names),
        "tokenizer_config.json": as_json(tokenizer_config(tokenizer, names)),
        "tokenizer.json": tokenizer.to_hf_json(),
    }
    for name, content in contents.items():
        unfinished = folder / f".{name}.unfinished"
        unfinished.write_text(content, "utf-8")
        unfinished.replace(folder / name)


def special_names(tokenizer: Tokenizer, end_ids: Sequence[int] = ()) -> dict[str, str]:
    """transformers' names of the special tokens around a text.

    Args:
        tokenizer: has them.
        end_ids: tokens that end what a model says, the usual one first; none: its separator.
    """
    name_of = {index: name for name, index in tokenizer.special_ids.items()}
    ends = [name_of[index] for index in end_ids if index in name_of]
    return {
        "bos_token": name_of[tokenizer.start_id],
        "eos_token": ends[0] if ends else tokenizer.separator,
        # Not what ends an answer, if that is another: who masks padding would mask the end as well.
        "pad_token": tokenizer.separator,
    }


def tokenizer_config(tokenizer: Tokenizer, names: Mapping[str, str]) -> dict[str, Any]:
    """Content of tokenizer_config.json, by which transformers and `Tokenizer.load` open it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **names,
        "separator": tokenizer.separator,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def plain_template(template: str) -> str:
    """A chat template without `{% generation %}`; what it renders does not change.

    A comment takes the tag's place, since whitespace around both is treated alike.
    """
    return _MARK.sub(lambda m: f"{{#{m[1]} {'end' if m[2] else 'assistant'} {m[3]}#}}", template)


def write_json(path: Path, data: Any) -> None:
    """As indented JSON."""
    path.write_text(as_json(data), "utf-8")


def as_json(data: Any) -> str:
    """Indented, and with a line's end."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
