"""What a hostile log is made of: values, texts and pieces of bytes that have hurt some reader."""

import json
import math
import random
from typing import Any

HEADER = b'{"kind":"run","format_version":1,"model":{"layers":[1],"num_experts":2,"top_k":1}}\n'
STEP = b'{"kind":"step","step":%d,"tokens":8,"tokens_per_expert":[[4,4]]}\n'
"""A sound log of one router."""

NUMBERS: list[Any] = [0, -0.0, 1, -1, 2, 7, 1.5, -3.7, 1e-308, 5e-324, 1e308, -1e308, 1e20]
NUMBERS += [2**31, 2**53, 2**62 - 1, 2**62, 2**63, 2**64, -(2**63), 10**30, 10**400, -(10**400)]
NUMBERS += [math.nan, math.inf, -math.inf, 0.1, 0.999999, 12345.678]

TEXTS = [
    "", "NaN", "Infinity", "-Infinity", "nan", "1", "bias", "exact", "finished",
    "\x1b[2J\x1b[H",  # clears the screen
    "\x1b]52;c;cm0gLXJmIH4=\x07",  # OSC 52: writes the clipboard
    "\x1b]0;title\x1b\\", "\x1bP1$r\x1b\\\x1b_x\x1b\\",
    "\x9b31m\x9d52;c;eA==\x9c",  # the same controls as single characters (C1)
    "\x00\x01\x07\x08\x0b\x0c\x7f", "two\nlines\r\rand\ttabs",
    "\u202eevil\u202c \u2066x\u2069 \u200f\u061c",  # bidi
    "zero\u200b\u200d\u2060\ufeffwidth", "line\u2028paragraph\u2029separators",
    "\ud800",  # half of a surrogate pair
    "\udfff\ud83d",
    "a" + "\u0301\u0489" * 60,  # smears over its neighbours
    "\u0301\u0489", "\ufe0f\U000e0100x", "日本語" * 9, "👩‍👩‍👧‍👦🏳️‍🌈",
    "[bold red]markup[/] [@click=app.quit]x[/] [link=file:///]y[/]",
    "<b>&amp;</b> %s %n {0} {x!r} ${HOME} `id`", "../../../../etc/passwd", "/dev/zero",
    "x" * 3000, "\U0010ffff\ue000\ufdd0\ufffe",
]  # fmt: skip

KEYS = ["kind", "step", "loss", "losses", "tokens", "router", "model", "balance", "values", "time"]
KEYS += ["tokens_per_expert", "expert_bias", "layers", "layer_names", "num_experts", "top_k"]
KEYS += ["name", "event", "reason", "count", "method", "entropy", "dead_experts", "", "\x1b[1m"]

DEPTHS = [20, 900, 10_000]

RAW_VALUES = [
    b"NaN", b"Infinity", b"-Infinity", b"nan", b"1e999", b"-1e999", b"1" + b"0" * 400,
    b"-" + b"9" * 5_000,  # more digits than Python turns into an int
    b"1." + b"3" * 2_000, b"01", b"+1", b".5", b"0x10", b"tru", b"'x'", b'"\xff\xfe\xc0\x80"',
    b'"\xed\xa0\x80"',  # a surrogate, encoded
    b'"\\ud800"', b'"\\u0000"', b'"\\x41"', b'"\x1b[2J"', b'"\xc2\x9b2J"', b"", b"[,]", b"{]",
]  # fmt: skip

RAW_PIECES = [
    b"\n", b"\r\n", b"\r", b"\n\n\n", b"\0", b"\0" * 97, b"\n" + b"\0" * 300 + b"\n",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\x1b[2J", b"\x1b]52;c;eA==\x07", b"\xc2\x85\xe2\x80\xae",
    b'"', b"\\", b"{", b"}", b"]}", b"[[", b",", b" " * 400, b'{"kind":"step"',
    b'{"kind":"step","step":3}', b'{"kind":"event","event":"end"}\n', b'"tokens_per_expert":[[',
    b'"expert_bias":[[1]]',
]  # fmt: skip


def value(rng: random.Random, depth: int = 0) -> Any:
    chance = rng.random()
    if chance < 0.45 or depth > 3:
        return rng.choice(NUMBERS)
    if chance < 0.65:
        return rng.choice(TEXTS)
    if chance < 0.75:
        return rng.choice([None, True, False])
    if chance < 0.9:
        return [value(rng, depth + 1) for _ in range(rng.choice([0, 1, 2, 3, 9]))]
    return {rng.choice(KEYS): value(rng, depth + 1) for _ in range(rng.choice([0, 1, 3]))}


def raw_value(rng: random.Random) -> bytes:
    """A value as bytes: what no encoder would write, and nesting that breaks recursive readers."""
    chance = rng.random()
    if chance < 0.75:
        return rng.choice(RAW_VALUES)
    if chance < 0.85:
        depth = rng.choice(DEPTHS)
        opening, inside, closing = rng.choice([(b"[", b"1", b"]"), (b'{"a":', b"1", b"}")])
        return opening * depth + inside + closing * (depth if rng.random() < 0.7 else 0)
    return encoded(value(rng))


def encoded(anything: Any) -> bytes:
    """As JSON; bare NaN and Infinity, and half surrogates as they are."""
    text = json.dumps(anything, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")


def noise(rng: random.Random, most: int) -> bytes:
    data = bytearray(rng.randbytes(rng.randrange(1, most)))
    for _ in range(rng.randrange(4)):
        data[rng.randrange(len(data))] = 10
    return bytes(data)
