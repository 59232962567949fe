"""Logs whose keys are laid out as in public training code: ``layouts.txt`` has the record."""

import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microscope_tui.sources.records import counts_of_shares
from tests.sources import sound, wandb_bytes
from tests.sources.reading import settle

TOKENS = 4096


@dataclass(frozen=True)
class Layout:
    name: str
    form: str
    layers: Sequence[int]
    experts: int
    k: int
    keys: Mapping[str, str]

    @property
    def config(self) -> dict[str, int]:
        return {key: self.k for key, number in self.keys.items() if number == "config"}

    def counts(self) -> Iterator[tuple[int, list[list[int]]]]:
        """Step and choices of every layer: uneven, slowly drifting, ``k`` per token."""
        draw = random.Random(self.name)
        loads = [[0.4 + draw.gammavariate(2, 1) for _ in range(self.experts)] for _ in self.layers]
        for step in range(10, 210, 10):
            loads = [[load * math.exp(draw.gauss(0, 0.06)) for load in row] for row in loads]
            rows = [[int(TOKENS * self.k * load / sum(row)) for load in row] for row in loads]
            for row in rows:
                row[row.index(min(row))] += TOKENS * self.k - sum(row)
            yield step, rows

    def truth(self) -> dict[int, dict[str, list[int] | None]]:
        """What the mapped log must hold: step, name of the router, counts or shares."""
        key, number = next(iter(self.keys.items()))
        found: dict[int, dict[str, list[int] | None]] = {step: {} for step, _ in self.counts()}
        for step, rows in self.counts():
            for layer, row in zip(self.layers, rows, strict=True):
                name = f"L{layer}" if "{l" in key else "all layers"
                shares = counts_of_shares(numbers(row, self.k)[number])
                found[step][name] = row if number == "counts" else shares
        return found

    def logged(self) -> Iterator[tuple[int, float, dict[str, float]]]:
        for step, rows in self.counts():
            row = {"train/loss": 2 + 20 / step, "train/lr": 3e-4, "train/grad_norm": 1 + step % 7}
            row |= {"time/step_time": 1.5 + step % 3 / 9}
            for key, number in self.keys.items():
                for layer, counts in zip(self.layers, rows, strict=True):
                    found = numbers(counts, self.k).get(number, [])
                    row |= {key.format(l=layer, e=e): value for e, value in enumerate(found)}
            yield step, 1e9 + step, row


def numbers(row: Sequence[int], k: int) -> dict[str, list[float]]:
    """What a key can hold: a number per expert, or one of the layer."""
    shares = [count / sum(row) for count in row]
    return {
        "counts": [float(count) for count in row],
        "share": shares,
        "percent": [100 * share for share in shares],
        "selected": [k * share for share in shares],
        "kept": [k * share * (1 - share / 10) for share in shares],
        "probability": [(share + 1 / len(row)) / 2 for share in shares],
        "bias": [0.01 * (1 / len(row) - share) for share in shares],
        "norm": [30 + 5 * share for share in shares],
        "entropy": [-sum(share * math.log(share) for share in shares if share)],
        "maximum": [max(shares)],
        "tokens": [float(TOKENS)],
    }


def entries() -> Iterator[Layout]:
    for line in re.findall(r"^\w.*", Path(__file__).with_suffix(".txt").read_text(), re.MULTILINE):
        name, form, layers, experts, k, *words = line.split()
        keys = dict(word.split("=") for word in words)
        numbered = [int(layer) for layer in layers.split(",")]
        yield Layout(name, form, numbered, int(experts), int(k), keys)


ALL = tuple(entries())
LAYOUTS, OTHERS = ALL[:20], ALL[20:]


def nested(row: Mapping[str, Any], separator: str) -> Any:
    found: dict[str, Any] = {}
    for key, value in row.items():
        name, _, rest = key.partition(separator)
        found.setdefault(name, {})[rest] = value
    found = {n: x[""] if "" in x else nested(x, separator) for n, x in found.items()}
    return list(found.values()) if all(map(str.isdigit, found)) else found


def write(folder: Path, layout: Layout) -> Path:
    """The log in its format; one of MLflow is written as one of Trackio."""
    steps = list(layout.logged())
    table = [["_step", *steps[0][2]], *([step, *row.values()] for step, _, row in steps)]
    history = [  # W&B writes the items in any order
        wandb_bytes.history([(key.split("."), x) for key, x in reversed(row.items())], step)
        for step, _, row in steps
    ]
    name, content = {
        "wandb": ("run-a.wandb", wandb_bytes.log([wandb_bytes.run(**layout.config), *history])),
        "tensorboard": ("events.out.tfevents.1.host", sound.tensorboard(steps=steps)),
        "csv": ("log.csv", "".join(",".join(map(str, line)) + "\n" for line in table).encode()),
        "jsonl": ("log.jsonl", sound.lines([{"step": s, **nested(r, "/")} for s, _, r in steps])),
        "trackio": ("moe.db", sound.trackio(steps=steps)),
    }[layout.form.replace("mlflow", "trackio")]
    (folder / name).write_bytes(content)
    return settle(folder) / name
