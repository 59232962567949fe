"""Draw docs/screenshots: build products, so that they cannot go stale.

    make screenshots          (or: python docs/draw_screenshots.py [readme] [troubles] [probe])

``readme`` shows a real run: the script trains the tiny preset with 64 experts a layer for 300 steps
with ``--force-collapse 3@100``, ten minutes on two cores. ``troubles`` are the pictures of
docs/reading.md: synthetic runs with known truth, one per kind of trouble. ``probe`` is a real model
again: the tiny preset after 300 steps on three unlike texts that come with Python, code of the
standard library without comments, prose of the language reference, and other prose of it in
Cyrillic letters. It is probed with files that it was not trained on. All three by default.
"""

import ast
import asyncio
import importlib
import inspect
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# The exporter paints in truecolor whatever the terminal; the palette has to be chosen for that.
os.environ["TEXTUAL_COLOR_SYSTEM"] = "truecolor"
os.environ.pop("NO_COLOR", None)

from msgspec.structs import replace

from microscope_tui.app.picture import draw
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.extensions.anatomy.slices_text import ExpertRow, explained, slice_table
from microscope_tui.kit.session import PictureRequest
from microscope_tui.runlog import ROUTING_NAME
from microscope_tui.scenarios import write_run
from microscope_tui.watch import Fleet

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "docs" / "screenshots"
PICTURES = {
    "main": PictureRequest("main", 112, 34),
    "course": PictureRequest("course", 112, 34),
    "map": PictureRequest("map", 112, 24),
    "collapse-animated": PictureRequest("main", 120, 34, played=range(80, 151, 2)),
}
_SMALL = PictureRequest("main", 100, 24)
TROUBLES = {
    "collapse": _SMALL,
    "slow-collapse": _SMALL,
    "shock": replace(_SMALL, step=765),
    "dead-experts": _SMALL,
    "starving-finetune": _SMALL,
    "hot-expert": _SMALL,
    "overflow": _SMALL,
    "rank-skew": _SMALL,
    "bias-limit-cycle": _SMALL,
    "bias-runaway": _SMALL,
    "divergence": PictureRequest("course", 100, 24),
    "dead-gradient": _SMALL,
    "double-counting": _SMALL,
    "lint-no-balance": _SMALL,
}
"""Scenarios of docs/reading.md, and what to draw of each."""
PROBED = {
    "probe-slices": PictureRequest("slices", 100, 24),
    "probe-tokens": PictureRequest("tokens", 80, 24),
}
KIND_CHARACTERS, FILES = 250_000, 20
"""The most characters of a kind of text, and the files that they are cut into."""
HELD_OUT = (0, 10)
"""The numbers of the files that are probed; the model is trained on the others."""
MODULES = (
    "argparse", "ast", "asyncio.base_events", "collections", "configparser", "csv", "dataclasses",
    "datetime", "difflib", "doctest", "email.message", "enum", "fractions", "functools", "gzip",
    "http.client", "inspect", "ipaddress", "json.decoder", "locale", "logging", "mailbox",
)  # fmt: skip
CYRILLIC = str.maketrans(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "абцдефгхийклмнопярстувшщызАБЦДЕФГХИЙКЛМНОПЯРСТУВШЩЫЗ",
)


def main() -> None:
    kinds = {"readme": draw_readme, "troubles": draw_troubles, "probe": draw_probe}
    for kind in sys.argv[1:] or kinds:
        with tempfile.TemporaryDirectory() as folder:
            asyncio.run(kinds[kind](Path(folder)))


async def draw_readme(folder: Path) -> None:
    """Every picture of ``PICTURES``, of a training with a forced collapse."""
    train(
        folder, "tiny-collapse", "--force-collapse", "3@100",
        "--model.n_routed_experts", "64", "--model.num_experts_per_tok", "8",
    )  # fmt: skip
    for name, wanted in PICTURES.items():
        await save(folder / "tiny-collapse", wanted, f"{name}.svg")


async def draw_troubles(folder: Path) -> None:
    """Every picture of ``TROUBLES``."""
    for scenario, wanted in TROUBLES.items():
        write_run(folder / scenario, scenario)
        await save(folder / scenario, wanted, f"reading/{scenario}.svg")


async def draw_probe(folder: Path) -> None:
    """Every picture of ``PROBED``, at the expert that prefers a slice most, where that begins."""
    write_texts(folder)
    train(
        folder, "texts", "--data", str(folder / "train"),
        "--tokenizer", "bpe", "--model.vocab_size", "2048",
    )  # fmt: skip
    run(
        "-m", "microscope_tui.cli", "probe", str(folder / "checkpoints" / "texts"),
        *(f"{path.name}={path}" for path in sorted((folder / "held-out").iterdir())),
        "-o", str(folder / "probe"),
    )  # fmt: skip
    with Routing(folder / "probe" / ROUTING_NAME) as routing:
        say_what_is_read(routing)
        _, number, layer, row = strongest(routing)
        token = routing.slices_of(0, routing.tokens).index(number)
        name = routing.shape.layer_names[layer]
    for picture, wanted in PROBED.items():
        here = replace(wanted, layer=name, expert=row.expert, token=token)
        await save(folder / "probe", here, f"reading/{picture}.svg")


def train(folder: Path, name: str, *options: str) -> None:
    """300 steps of the tiny preset; the run log is ``folder/name``."""
    run(
        "train.py", "--preset", "tiny", "--steps", "300", "--run", name, *options,
        "--log-dir", str(folder), "--checkpoint-dir", str(folder / "checkpoints"),
    )  # fmt: skip


def run(*command: str) -> None:
    subprocess.run([sys.executable, *command], check=True, cwd=ROOT)


async def save(log: Path, wanted: PictureRequest, name: str) -> None:
    path = FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text((await draw(Fleet(log), wanted)).svg, encoding="utf-8")
    print(path.relative_to(ROOT))


def write_texts(folder: Path) -> None:
    """``train`` and ``held-out``, with a folder for each kind of text."""
    kinds = {"code": code(), "prose": prose(0), "cyrillic": prose(1).translate(CYRILLIC)}
    for kind, text in kinds.items():
        size = min(len(text), KIND_CHARACTERS) // FILES
        for number in range(FILES):
            part = "held-out" if number in HELD_OUT else "train"
            path = folder / part / kind / f"{number:02}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text[number * size : (number + 1) * size], encoding="utf-8")


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


def prose(first: int) -> str:
    """Every second topic of the language reference behind ``help()``."""
    topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    names = sorted(topics, key=lambda name: (len(topics[name]), name))
    return "\n\n".join(topics[name].strip() for name in names[first::2])


def strongest(routing: Routing) -> tuple[float, int, int, ExpertRow]:
    """Where a slice is preferred most: log2 ratio, number of the slice, layer, and expert."""
    every = [
        (cell.ratio, number, layer, row)
        for layer in range(len(routing.shape.layers))
        for row in rows_of(routing, layer)
        for number, cell in enumerate(row.cells)
        if cell.beyond
    ]
    return max(every, key=lambda one: one[0])


def rows_of(routing: Routing, layer: int) -> list[ExpertRow]:
    experts = routing.shape.num_experts
    return list(slice_table(routing.tables, layer, len(routing.slices), experts).rows)


def say_what_is_read(routing: Routing) -> None:
    """The numbers that docs/reading.md has beside the pictures."""
    ratio, number, layer, row = strongest(routing)
    print(f"{routing.tokens:,} tokens")
    for at, name in enumerate(routing.shape.layer_names):
        cells = [cell for one in rows_of(routing, at) for cell in one.cells]
        beyond = sum(cell.beyond for cell in cells)
        print(name, f"{beyond} of {len(cells)} beyond chance", *explained(routing.tables, at))
    where = f"expert {row.expert} of {routing.shape.layer_names[layer]}"
    noise = routing.tables.noise[number]
    print(f"{routing.slices[number]}: {where}, {2**ratio:.2f} x, by chance {2**noise:.2f} x")


if __name__ == "__main__":
    main()
