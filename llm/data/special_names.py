"""Names that special tokens have in the tokenizers that are around; the first present counts."""

# Of tokens that end a text. Those that end a turn stand last: chat models usually have both.
END_NAMES = (
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "[EOS]",
    "<|end▁of▁sentence|>",
    "[SEP]",
    "<|eot_id|>",
    "<|im_end|>",
)
START_NAMES = (
    "<|begin_of_text|>",
    "<s>",
    "<bos>",
    "[BOS]",
    "<|startoftext|>",
    "<|begin▁of▁sentence|>",
    "[CLS]",
)
