"""A small probed run with planted routing: which class of token goes to which experts is known.

Three slices that are unlike, in ``texts/``: code, prose from the licence of Python, and Greek. A
word is cut into tokens of a few bytes, so that letters are split over tokens as real tokenizers
split them.
"""

import math
import random
import re
import struct
from collections import Counter
from pathlib import Path

from microscope_tui.extensions.anatomy.layout import Shape, Tables
from microscope_tui.extensions.anatomy.routing_file import RoutingWriter
from microscope_tui.runlog import ROUTING_NAME
from microscope_tui.scenarios import Shape as RunShape, write_run

TEXTS = Path(__file__).with_name("texts")
SLICES, _REPEATED = ("code", "prose", "greek"), (3, 6, 4)
LAYERS, EXPERTS, TOP_K, SEED = 6, 16, 2, 7
_WORDS = "def return if else for in self class import not and is or None while"
_KEYWORDS = frozenset(_WORDS.split())
CLASSES = ("keyword", "indent", "punctuation", "number", "name", "word", "greek", "break")


def tokenized(text: str) -> list[bytes]:
    """Words with the blank in front of them, cut into pieces of at most six bytes."""
    tokens: list[bytes] = []
    for piece in re.findall(r" ?[^\W\d_]+|\d+|\n+|\s+|.", text):
        encoded = piece.encode()
        size = 8 if piece.isascii() else 5
        tokens += [encoded[at : at + size] for at in range(0, len(encoded), size)]
    return tokens


def class_of(token: bytes, slice_: str) -> str:
    text = token.decode("utf-8", "replace")
    if b"\n" in token:
        return "break"
    if not text.strip():
        return "indent"
    if any(byte >= 0x80 for byte in token):
        return "greek"
    if text.strip() in _KEYWORDS and slice_ == "code":
        return "keyword"
    if text.strip().isdigit():
        return "number"
    if not text.strip().isalpha():
        return "punctuation"
    return "name" if slice_ == "code" else "word"


def texts() -> list[tuple[str, list[bytes]]]:
    read = [(TEXTS / f"{name}.txt").read_text("utf-8") for name in SLICES]
    return [
        (name, tokenized(text * times))
        for name, text, times in zip(SLICES, read, _REPEATED, strict=True)
    ]


def write_probed(folder: Path) -> Path:
    """A run of profile eval, and its ``routing.bin`` with planted routing."""
    shape = RunShape(routers=LAYERS, num_experts=EXPERTS, top_k=TOP_K, steps=40, tokens=2048)
    write_run(folder, "healthy", shape=shape, seed=3)
    names = tuple(f"L{n}" for n in range(1, LAYERS + 1))
    slices = texts()
    tokens = [token for _, part in slices for token in part]
    of_slice = [at for at, (_, part) in enumerate(slices) for _ in part]
    classes = [class_of(t, SLICES[s]) for t, s in zip(tokens, of_slice, strict=True)]
    known = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    ids = [known[token] for token in tokens]
    writer = RoutingWriter(
        folder / ROUTING_NAME,
        Shape(tuple(range(1, LAYERS + 1)), names, EXPERTS, TOP_K, len(tokens)),
        slices=SLICES,
        model="planted/moe-tiny",
        dtype="bf16",
    )
    writer.put_tokens(ids, tokens, of_slice, [n // 256 for n in range(len(tokens))])
    chosen = [_put_layer(writer, layer, classes) for layer in range(LAYERS)]
    writer.finish(_tables(chosen, of_slice, ids))
    return folder


def _put_layer(writer: RoutingWriter, layer: int, classes: list[str]) -> list[list[int]]:
    """Deeper layers follow the class less, as noise takes over."""
    rng, order = random.Random(SEED + layer), list(range(EXPERTS))
    rng.shuffle(order)
    per = max(TOP_K, EXPERTS // len(CLASSES))
    home = {
        name: [order[(at * per + n) % EXPERTS] for n in range(per)]
        for at, name in enumerate(CLASSES)
    }
    strength = 3.2 / (1 + 0.25 * layer)
    rows: list[list[int]] = []
    flat, weights, margins, entropies = [], [], [], []
    for name in classes:
        logits = [rng.gauss(0, 1) for _ in range(EXPERTS)]
        for expert in home[name]:
            logits[expert] += strength
        top = max(logits)
        exps = [math.exp(x - top) for x in logits]
        total = sum(exps)
        probs = [x / total for x in exps]
        best = sorted(range(EXPERTS), key=lambda e: -probs[e])
        rows.append(best[:TOP_K])
        flat += best[:TOP_K]
        weights += [probs[e] for e in best[:TOP_K]]
        margins.append(probs[best[TOP_K - 1]] - probs[best[TOP_K]])
        entropies.append(-sum(p * math.log(p) for p in probs if p > 0))
    writer.put("ids", layer, 0, bytes(flat))
    for section, values in (("weights", weights), ("margins", margins), ("entropies", entropies)):
        writer.put(section, layer, 0, struct.pack(f"<{len(values)}e", *values))
    return rows


def _counts(rows: list[list[int]], of_slice: list[int]) -> list[list[int]]:
    pairs = zip(rows, of_slice, strict=True)
    found = Counter((at, expert) for row, at in pairs for expert in row)
    return [[found[at, expert] for expert in range(EXPERTS)] for at in range(len(SLICES))]


def _ratios(row: list[int], columns: list[int]) -> list[float]:
    """How far each expert's share in a slice is from its share in all, in powers of two."""
    shares = [n / sum(columns) for n in columns]
    pairs = zip(row, shares, strict=True)
    return [abs(math.log2(max(n, 0.5) / sum(row) / s)) if s else 0.0 for n, s in pairs]


def _tables(chosen: list[list[list[int]]], of_slice: list[int], ids: list[int]) -> Tables:
    rng, counts = random.Random(SEED), [_counts(rows, of_slice) for rows in chosen]
    shuffled = list(of_slice)
    rng.shuffle(shuffled)
    noise = []
    chance = [_counts(rows, shuffled) for rows in chosen]
    for at in range(len(SLICES)):
        sums = [[sum(column) for column in zip(*layer, strict=True)] for layer in chance]
        layers = zip(chance, sums, strict=True)
        values = sorted(x for layer, columns in layers for x in _ratios(layer[at], columns))
        noise.append(values[int(0.99 * (len(values) - 1))])
    mixed = list(ids)
    rng.shuffle(mixed)
    return Tables(
        counts=[[layer[at] for layer in counts] for at in range(len(SLICES))],
        noise=noise,
        identity=[_explained(rows, ids) for rows in chosen],
        identity_noise=[_explained(rows, mixed) for rows in chosen],
        lifts=[_lifts(rows, ids) for rows in chosen],
    )


def _explained(rows: list[list[int]], ids: list[int]) -> float:
    """Share of the variance of the first choice that the mean per token explains."""
    total, means = Counter(row[0] for row in rows), Counter[tuple[int, int]]()
    seen = Counter(ids)
    for row, token in zip(rows, ids, strict=True):
        means[token, row[0]] += 1
    count = len(rows)
    whole = 1 - sum((n / count) ** 2 for n in total.values())
    within = 1 - sum(n * n / seen[token] for (token, _), n in means.items()) / count
    return 1 - within / whole


def _lifts(rows: list[list[int]], ids: list[int]) -> list[list[tuple[int, int, float]]]:
    seen, pairs, load = Counter(ids), Counter[tuple[int, int]](), Counter[int]()
    for row, token in zip(rows, ids, strict=True):
        for expert in row:
            pairs[expert, token] += 1
            load[expert] += 1
    found: list[list[tuple[int, int, float]]] = [[] for _ in range(EXPERTS)]
    for (expert, token), n in pairs.items():
        if n >= 5:
            lift = n / seen[token] / (load[expert] / len(rows))
            found[expert].append((token, n, round(lift, 3)))
    return [sorted(one, key=lambda t: (-t[2], t[0]))[:8] for one in found]
