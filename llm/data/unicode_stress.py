"""Text that tokenizers are known to break: does it come back as it went in?"""

# ruff: noqa: E501, RUF001
from __future__ import annotations

import random
from collections.abc import Mapping

_RUN = 2**14


def _random_code_points() -> str:
    """Any of the 1,112,064 scalar values: surrogates are no characters."""
    points = [*range(0xD800), *range(0xE000, 0x110000)]
    return "".join(map(chr, random.Random(0).choices(points, k=4096)))


STRESS: Mapping[str, str] = {
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽👍🏿 🇺🇳🇫🇷 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f 1️⃣ ❤️❤ 🙂",
    "combining marks": "e\u0301 é n\u0303 ñ A\u030a Å Å q\u0307\u0323 q\u0323\u0307 Z\u0351\u036b\u0343\u036a\u0302 ệ ẹ\u0302",
    "compatibility forms": "ﬁ ﷽ ① ｆｕｌｌ ﾊﾝｶｸ ² ½ Ω Ω K K ſ İ ı ß ẞ Ǆ ㎏ 𝐛𝐨𝐥𝐝",
    "right to left": "שָׁלוֹם עולם \u200fمرحبا بالعالم\u200e \u202e123\u202c \u2067اختبار\u2069 (نص) ١٢٣",
    "CJK": "中文字符，日本語のテキスト。한국어 텍스트 ᄒ\u1161\u11ab \U00020000\U0002a6d6 豈豈 葛\U000e0100",
    "other scripts": "हिन्दी क्षत्रिय ไทยไม่เว้นวรรค தமிழ் ភាសាខ្មែរ မြန်မာ ᠮᠣᠩᠭᠣᠯ Ελληνικά Кириллица Ἀθῆναι",
    "control characters": "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0)])) + "\ufeff\ufff9",
    "white space": " a  b   c\t\td\n\n\ne\r\nf\rg\x0bh\x0ci\u0085j\u00a0k\u2003l\u2028m\u3000n\u200bo \n ",
    "leading and trailing space": "   between   ",
    "numbers and code": '1234567890 3.14159 1e-5 0xFFFF x_1+=y[-1]//2; /* don\'t */ <a href="#">',
    "names of special tokens": "<s></s><|endoftext|> <unk> [CLS] <|im_start|>user <0x0A> ▁ <pad>",
    "random code points": _random_code_points(),
    "long run of a letter": "a" * _RUN,
    "long run of spaces": " " * _RUN + "x",
    "long run of line ends": "\n" * _RUN,
    "long run of an emoji": "🙂" * (_RUN // 4),
}
"""Name and text of each."""
