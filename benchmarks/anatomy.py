"""Do the experts of a small mixture specialise? Train one on three unlike texts, then probe it.

    python -m benchmarks.anatomy [--folder anatomy] [--steps 1500] [--seed 0]

The texts come with Python: code of the standard library without comments, prose of the language
reference, and other prose of it in Cyrillic letters. ``train.py`` trains the preset tiny on 90 %
of each with byte pairs; ``moe-microscope probe`` traces the rest, as three slices, with the trained
model and with the same model after one step. An untrained router already sends equal tokens to
equal experts, so only what the trained one shows beyond that is learned. What is finished in
``--folder`` is kept. Then look at it: ``moe-microscope FOLDER/logs/trained``.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import math
import subprocess
import sys
from pathlib import Path

from benchmarks.machine import machine
from microscope_tui.routing.file import Routing
from microscope_tui.routing.layout import FEWEST_EXPECTED

KIND_CHARACTERS, FILES = 250_000, 20
HELD_OUT = 2
"""Of every 20 files of a kind."""
MODULES = (
    "argparse", "ast", "asyncio.base_events", "collections", "configparser", "csv", "dataclasses",
    "datetime", "difflib", "doctest", "email.message", "enum", "fractions", "functools", "gzip",
    "http.client", "inspect", "ipaddress", "json.decoder", "locale", "logging", "mailbox",
    "optparse", "pathlib", "pdb", "pickle", "pickletools", "platform", "random", "shutil",
    "smtplib", "socket", "ssl", "statistics", "subprocess", "tarfile", "tempfile", "textwrap",
    "threading", "tokenize", "traceback", "turtle", "typing", "unittest.mock", "urllib.request",
    "uuid", "zipfile",
)  # fmt: skip
LATIN = "abcdefghijklmnopqrstuvwxyz"
CYRILLIC = "абцдефгхийклмнопярстувшщыз"


def code() -> str:
    """Source of the standard library without comments and docstrings."""
    parts = []
    for name in MODULES:
        tree = ast.parse(inspect.getsource(importlib.import_module(name)))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            first = body[0] if isinstance(body, list) and body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                body[0] = ast.Pass()
        parts.append(ast.unparse(tree))
    return "\n\n".join(parts)


def prose(odd: bool) -> str:
    """Every second topic of the language reference behind ``help()``."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    names = sorted(topics, key=lambda name: (len(topics[name]), name))
    return "\n\n".join(topics[name].strip() for name in names[int(odd) :: 2])


def write_texts(folder: Path) -> None:
    """``train/`` and ``held-out/``, with a folder for each kind."""
    letters = str.maketrans(LATIN + LATIN.upper(), CYRILLIC + CYRILLIC.upper())
    kinds = {"code": code(), "prose": prose(False), "cyrillic": prose(True).translate(letters)}
    for kind, text in kinds.items():
        size = min(len(text), KIND_CHARACTERS) // FILES
        for number in range(FILES):
            part = "held-out" if number % (FILES // HELD_OUT) == 0 else "train"
            path = folder / part / kind / f"{number:02}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text[number * size : (number + 1) * size], encoding="utf-8")


def run(*command: str) -> None:
    sys.stderr.write(f"{' '.join(command)}\n")
    subprocess.run([sys.executable, *command], check=True)


def make(folder: Path, steps: int, seed: int) -> None:
    """Train and probe what is missing."""
    if not (folder / "train").exists():
        write_texts(folder)
    logs, checkpoints = folder / "logs", folder / "checkpoints"
    kinds = [f"{kind}={folder / 'held-out' / kind}" for kind in ("code", "prose", "cyrillic")]
    for name, length in (("untrained", 1), ("trained", steps)):
        model = checkpoints / f"{name}-run"
        if not model.exists():
            run(
                "train.py", "--data", str(folder / "train"), "--tokenizer", "bpe",
                "--model.vocab_size", "2048", "--steps", str(length), "--run", f"{name}-run",
                "--seed", str(seed), "--log-dir", str(logs), "--checkpoint-dir", str(checkpoints),
            )  # fmt: skip
        if not (logs / name).exists():
            run(
                "-m", "microscope_tui.cli", "probe", str(model / "latest"), *kinds,
                "-o", str(logs / name),
            )  # fmt: skip


def show(name: str, routing: Routing) -> None:
    """What differs between slices beyond the shuffled baseline, and what identity explains."""
    tables, shape = routing.tables, routing.shape
    print(f"\n{name}: {routing.tokens:,} tokens, {shape.num_experts} experts, k {shape.top_k}")
    print("  noise of |log2 ratio|  ", *(
        f"{one} {level:.2f} " for one, level in zip(routing.slices, tables.noise, strict=True)
    ))  # fmt: skip
    for layer, label in enumerate(shape.layer_names):
        rows = [tables.counts[one][layer] for one in range(len(routing.slices))]
        overall = [sum(column) for column in zip(*rows, strict=True)]
        beyond, largest = 0, (0.0, 0, 0)
        for place, row in enumerate(rows):
            for expert, count in enumerate(row):
                expected = sum(row) * overall[expert] / sum(overall)
                if expected < FEWEST_EXPECTED:
                    continue
                ratio = math.log2(max(count, 0.5) / expected)
                beyond += abs(ratio) > tables.noise[place]
                largest = max(largest, (ratio, place, expert))
        ratio, place, expert = largest
        identity, chance = tables.identity[layer] or 0.0, tables.identity_noise[layer] or 0.0
        print(
            f"  {label}: {beyond} of {len(rows) * len(overall)} slice x expert beyond noise; "
            f"largest: expert {expert} {2**ratio:.1f}x in {routing.slices[place]}; identity "
            f"explains {identity:.0%} (chance {chance:.0%})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path("anatomy"))
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make(options.folder, options.steps, options.seed)
    print(f"{machine()}; {options.steps} steps, seed {options.seed}")
    for name in ("untrained", "trained"):
        with Routing(options.folder / "logs" / name / "routing.bin") as routing:
            show(name, routing)


if __name__ == "__main__":
    main()
