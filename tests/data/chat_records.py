"""Conversations of all kinds, and what becomes of them."""

from __future__ import annotations

from typing import Any

from chat_templates import CHATML

from llm.data.conversations import ChatSettings, Conversations
from llm.data.tokenizer import Tokenizer

SPECIALS = [
    "<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "[INST]", "[/INST]",
]  # fmt: skip

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}],
    "several turns": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c  d\n"},
        {"role": "user", "content": " 1 + 1?"},
        {"role": "assistant", "content": "2"},
    ],
    "emoji": [
        {"role": "user", "content": "👩‍👩‍👧 Grüße 🙂"},
        {"role": "assistant", "content": "🇨🇭 日本語 🙂x"},
    ],
    "empty": [
        {"role": "user", "content": ""},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "still there?"},
        {"role": "assistant", "content": "yes"},
    ],
    "tools": [
        {"role": "user", "content": "What is 2 + 3?"},
        {"role": "assistant", "content": "", "tool_calls": [{"name": "add", "a": 2}]},
        {"role": "tool", "content": "5"},
        {"role": "assistant", "content": "It is 5."},
    ],
    "no answer": [{"role": "user", "content": "Hello?"}],
}


def encode(tokenizer: Tokenizer, record: dict[str, Any], template: str = CHATML, **settings: Any):
    format = Conversations(ChatSettings(template, **settings))
    (encoded,) = format.encode([format.document(record, "here")], tokenizer)
    return encoded


def trained_text(tokenizer: Tokenizer, encoded: Any) -> str:
    return tokenizer.decode(encoded.tokens[encoded.trained], skip_specials=False)
