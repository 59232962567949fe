"""Do the experts of a small mixture specialise? Train one on three unlike texts, then probe it.

    python -m benchmarks.anatomy [--folder anatomy] [--steps 1500] [--seed 0] [--pictures FOLDER]

The texts come with Python: code of the standard library without comments, prose of the language
reference, and other prose of it in Cyrillic letters. ``train.py`` trains the preset tiny on 90 %
of each with byte pairs; ``moe-microscope probe`` traces the rest, as three slices, with the trained
model and with the same model after one step. An untrained router already sends equal tokens to
equal experts, so only what the trained one shows beyond that is learned. What is finished in
``--folder`` is kept. Then look at it: ``moe-microscope FOLDER/probes``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, options_of
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.extensions.anatomy.slices_text import (
    ExpertRow,
    explained,
    slice_table,
)
from microscope_tui.extensions.anatomy.token_flow import shown_token
from microscope_tui.runlog import ROUTING_NAME

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
            body: Any = getattr(node, "body", None)
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


def make(folder: Path, steps: int, seed: int) -> Path:
    """Train and probe, unless that is done; the folder of the probe."""
    if not (folder / "train").exists():
        write_texts(folder)
    name = f"steps-{steps}-seed-{seed}"
    probe, checkpoints = folder / "probes" / name, folder / "checkpoints"
    if probe.exists():
        return probe
    if not (checkpoints / name / f"step-{steps:08}").exists():
        run(
            "train.py", "--run", name, "--resume", "auto", "--data", str(folder / "train"),
            "--tokenizer", "bpe", "--model.vocab_size", "2048", "--steps", str(steps),
            "--seed", str(seed), "--log-dir", str(folder / "logs"),
            "--checkpoint-dir", str(checkpoints),
        )  # fmt: skip
    kinds = [f"{kind}={folder / 'held-out' / kind}" for kind in ("code", "prose", "cyrillic")]
    run("-m", "microscope_tui.cli", "probe", str(checkpoints / name), *kinds, "-o", str(probe))
    return probe


def show(routing: Routing) -> None:
    """Per layer: what differs between slices beyond the shuffled baseline, and what the identity
    of a token explains. Then, of each slice, the expert that prefers it most in any layer."""
    tables, shape, slices = routing.tables, routing.shape, routing.slices
    print(f"  {routing.tokens:,} tokens, {shape.num_experts} experts, k {shape.top_k}")
    limits = zip(slices, tables.noise, strict=True)
    print("  chance  ", *(f"{one} ±{level:.2f} " for one, level in limits))
    for layer, label in enumerate(shape.layer_names):
        cells = [cell for row in rows_of(routing, layer) for cell in row.cells]
        beyond = sum(cell.beyond for cell in cells)
        identity, shuffled = explained(tables, layer)
        print(
            f"  {label}: {beyond} of {len(cells)} slice x expert beyond chance; token identity "
            f"explains {identity or 0.0:.2f}, shuffled {shuffled or 0.0:.2f}"
        )
    for number, one in enumerate(slices):
        ratio, layer, row = strongest(routing, number)
        tokens = " ".join(
            f"{shown_token(routing.text_of_id(token) or b'', 16)} {count}/{lift:.1f}"
            for token, count, lift in row.lifts[:8]
        )
        at = f"{shape.layer_names[layer]}, expert {row.expert}"
        print(f"  {one}: most in {at}: {2**ratio:.2f}x; reads {tokens}")


def rows_of(routing: Routing, layer: int) -> Sequence[ExpertRow]:
    experts = routing.shape.num_experts
    return slice_table(routing.tables, layer, len(routing.slices), experts).rows


def strongest(routing: Routing, number: int) -> tuple[float, int, ExpertRow]:
    """Where the slice is preferred most: log2 ratio, layer and expert."""
    every = [
        (row.cells[number].ratio if row.cells[number].beyond else 0.0, layer, row)
        for layer in range(len(routing.shape.layers))
        for row in rows_of(routing, layer)
    ]
    return max(every, key=lambda one: one[0])


def draw(probe: Path, folder: Path) -> None:
    """Pictures of the strongest preference: its layer, and its tokens where the slice begins."""
    with Routing(probe / ROUTING_NAME) as routing:
        number = max(range(len(routing.slices)), key=lambda one: strongest(routing, one)[0])
        _, layer, row = strongest(routing, number)
        token, name = routing.slices_of(0, routing.tokens).index(number), routing.shape.layer_names
    for screen, size in (("slices", "100x24"), ("tokens", "80x24")):
        run(
            "-m", "microscope_tui.cli", "snapshot", str(probe), "--screen", screen, "--size", size,
            "--layer", name[layer], "--expert", str(row.expert), "--token", str(token),
            "--format", "svg", "-o", str(folder / f"probe-{screen}.svg"),
        )  # fmt: skip


def main() -> None:
    options = options_of(__doc__, folder=Path("anatomy"), steps=1500, seed=0, pictures=Path)
    print(machine())
    for steps in (1, options.steps):
        probe = make(options.folder, steps, options.seed)
        print(f"\n{probe}")
        with Routing(probe / ROUTING_NAME) as routing:
            show(routing)
    if options.pictures:
        draw(probe, options.pictures)


if __name__ == "__main__":
    main()
