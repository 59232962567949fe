"""The tokens of a large probe: opening the screen, jumping in the text, and what that costs.

    python -m benchmarks.anatomy_screens [--tokens 1000000] [--layers 27] [--folder DIR]

Writes a ``routing.bin`` of random choices (64 experts, top-6; about 650 bytes a token and 27
layers) into a temporary folder and removes it at the end. In a real pseudo-terminal of 120 × 40:
from the start of the process to the text, by way of the main screen and key 7; from key 7 to the
text; from the Enter of a jump to the token, anywhere and in any layer; from ``e`` to the next token
of an expert; to the only token of an expert, through the whole layer; finding a text; the peak
memory after all of it. On a busy machine the CPU seconds are more reliable than the elapsed time.
Exits with 1 if a target is missed.
"""

import os
import random
import struct
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine, options_of, say
from benchmarks.terminal import Terminal, microscope
from microscope_tui.extensions.anatomy.layout import Shape, Tables
from microscope_tui.extensions.anatomy.routing_file import RoutingWriter
from microscope_tui.runlog import ROUTING_NAME
from microscope_tui.scenarios import Shape as RunShape, write_run

EXPERTS, TOP_K = 64, 6
RARE = EXPERTS - 1
"""The expert that only one token chose, in every layer, near the end."""
SLICES = ("code", "prose", "greek", "dialogue")
MOST_OPENING_S, MOST_MB, MOST_JUMP_MS = 0.7, 150.0, 50.0
_CHUNK = 50_000
_OPENINGS, _JUMPS = 5, 40


def main() -> None:
    options = options_of(__doc__, tokens=1_000_000, layers=27, folder=Path)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run = Path(folder) / "probe"
        size = write_probe(run, options.tokens, options.layers)
        print(machine())
        print(f"{options.tokens:,} tokens x {options.layers} layers, {size / 1e6:,.0f} MB")
        missed = sum(not met for met in measured(run, options.tokens))
    sys.exit(1 if missed else 0)


def measured(run: Path, tokens: int) -> list[bool]:
    """Every row of the table as it is measured; whether each target is met."""
    opened = [opening(run, tokens) for _ in range(_OPENINGS)]
    met = [
        say("start to the tokens, s", [s + ms / 1000 for s, ms, *_ in opened], MOST_OPENING_S),
        say("of this key 7 to the tokens, s", [ms / 1000 for _, ms, *_ in opened], MOST_OPENING_S),
        say("CPU until then, s", [row[2] for row in opened]),
        say("peak memory after opening, MB", [row[3] for row in opened], MOST_MB),
    ]
    with Terminal(microscope(run)) as terminal:
        open_tokens(terminal, tokens)
        draw = random.Random(0)
        before = terminal.usage().cpu_s
        jumps = [jump(terminal, draw.randrange(tokens)) for _ in range(_JUMPS)]
        met.append(say("jump to a token, ms", jumps, MOST_JUMP_MS))
        say("CPU of a jump and its typing, ms", [(terminal.usage().cpu_s - before) / _JUMPS * 1000])
        layers = [react(terminal, "j", r"  L") for _ in range(20)]
        met.append(say("another layer, ms", layers, MOST_JUMP_MS))
        before = terminal.usage().cpu_s
        nexts = [react(terminal, key, " of ") for key in "eE" * (_JUMPS // 2)]
        met.append(say("next token of an expert, ms", nexts, MOST_JUMP_MS))
        say("CPU of it, ms", [(terminal.usage().cpu_s - before) / _JUMPS * 1000])
        met.append(say("the only token of an expert, ms", rare(terminal, tokens), MOST_JUMP_MS))
        found = [find(terminal, tokens) for _ in range(5)]
        met.append(say("find a text near the end, ms", found, MOST_JUMP_MS))
        met.append(say("peak memory at the end, MB", [terminal.usage().peak_mb], MOST_MB))
    return met


def opening(run: Path, tokens: int) -> tuple[float, float, float, float]:
    """Seconds from the start to the main screen, ms from key 7 to the text, CPU s, peak MB."""
    with Terminal(microscope(run)) as terminal:
        main_s = wait_for_main(terminal)
        key_ms = open_tokens(terminal, tokens)
        cost = terminal.usage()
        return main_s, key_ms, cost.cpu_s, cost.peak_mb


def open_tokens(terminal: Terminal, tokens: int) -> float:
    """Wait for the main screen, press 7; milliseconds until the text is there."""
    wait_for_main(terminal)
    return terminal.react("7", lambda text: f"token 0 of {tokens:,}" in text and "weight" in text)


def wait_for_main(terminal: Terminal) -> float:
    """Seconds from the start of the process to the main screen."""
    return terminal.wait_until(lambda text: "step 40" in text and "L1" in text)


def enter(terminal: Terminal, typed: str, prompt: str, token: int) -> float:
    """Milliseconds from the Enter after ``typed`` to the token that it leads to."""
    terminal.press(typed)
    terminal.wait_until(lambda text: prompt in text)
    return terminal.react("\r", lambda text: f"token {token:,} of" in text)


def jump(terminal: Terminal, token: int) -> float:
    return enter(terminal, f":{token}", f"go to token {token}", token)


def react(terminal: Terminal, key: str, part: str) -> float:
    """Milliseconds from a key to another title."""
    before = title(terminal.text)
    return terminal.react(key, lambda text: part in title(text) and title(text) != before)


def rare(terminal: Terminal, tokens: int) -> list[float]:
    """From the first token to the only one of an expert: the search reads the whole layer."""
    taken = []
    for _ in range(5):
        jump(terminal, 0)
        taken.append(enter(terminal, f":e{RARE}", f"go to token e{RARE}", tokens - 10))
    return taken


def find(terminal: Terminal, tokens: int) -> float:
    """From the first token to the only place of a text."""
    jump(terminal, 0)
    return enter(terminal, "/needle", "find needle", tokens - 20)


def title(text: str) -> str:
    """The line of the layer and the cursor."""
    return text.split("\n")[1]


def write_probe(run: Path, tokens: int, layers: int) -> int:
    """A finished run with a ``routing.bin`` of random choices; returns its size in bytes."""
    size = RunShape(routers=layers, num_experts=EXPERTS, top_k=TOP_K, steps=40)
    write_run(run, "healthy", shape=size)
    names = tuple(f"L{n}" for n in range(1, layers + 1))
    shape = Shape(tuple(range(1, layers + 1)), names, EXPERTS, TOP_K, tokens)
    path = run / ROUTING_NAME
    writer = RoutingWriter(path, shape, slices=SLICES, model="random/moe", dtype="bf16")
    _put_text(writer, tokens)
    weights = struct.pack("<6e", 0.4, 0.2, 0.15, 0.1, 0.08, 0.07)
    one = struct.pack("<e", 0.0313)
    table = bytes(n % RARE for n in range(256))
    for layer in range(layers):
        for first in range(0, tokens, _CHUNK):
            count = min(_CHUNK, tokens - first)
            writer.put("ids", layer, first, os.urandom(count * TOP_K).translate(table))
            writer.put("weights", layer, first, weights * count)
            writer.put("margins", layer, first, one * count)
            writer.put("entropies", layer, first, one * count)
        writer.put("ids", layer, tokens - 10, bytes([RARE, *range(TOP_K - 1)]))
    writer.finish(_tables(layers))
    return path.stat().st_size


def _put_text(writer: RoutingWriter, tokens: int) -> None:
    draw = random.Random(0)
    letters = b"etaoinshrdlu"
    words = [b" " + bytes(draw.choices(letters, k=draw.randrange(1, 8))) for _ in range(9000)]
    words += [b"\n", b".", b","] * 100
    for first in range(0, tokens, _CHUNK):
        count = min(_CHUNK, tokens - first)
        ids = draw.choices(range(len(words)), k=count)
        texts = [words[one] for one in ids]
        if first + count == tokens:
            texts[-20] = b" needle"
        at = first * len(SLICES) // tokens
        writer.put_tokens(ids, texts, [at] * count, [first // 2048] * count)


def _tables(layers: int) -> Tables:
    draw = random.Random(1)
    counts = [
        [[draw.randrange(1000, 9000) for _ in range(EXPERTS)] for _ in range(layers)]
        for _ in SLICES
    ]
    lifts = [
        [[(draw.randrange(9000), 50, 4.5) for _ in range(8)] for _ in range(EXPERTS)]
        for _ in range(layers)
    ]
    return Tables(counts=counts, noise=[0.1] * len(SLICES), lifts=lifts)


if __name__ == "__main__":
    main()
