"""Does a mixture of experts pay? Models of equal active size, trained on the same tokens.

    python -m benchmarks.learning facts|sources|text --results FILE.jsonl
        [--only dense 16 64] [--seeds 0 1] [--table]

A mixture has k experts a token, each 1/k as wide as the dense feed-forward; with k in all it is the
control. One seed gives all models the same data in the same order, and the same initial weights
outside of the feed-forwards. Of the paired differences in loss (nats a predicted token) the table
has mean ± standard error: bold, and claimed, only where the mean is at least three of these.

Finished runs are kept in ``--results``, one line each: only what is missing is run, and processes
with other ``--seeds`` or ``--only`` may share the file. ``--table`` runs nothing.
"""

import importlib
import itertools
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine, options_of

QUESTIONS = ("facts", "sources", "text")


def main() -> None:
    asked = options_of(
        __doc__, "question", only=[], seeds=[0, 1, 2, 3, 4], table=False, results=Path("out.jsonl")
    )
    name = str(asked.question)
    if name not in QUESTIONS:
        raise SystemExit(f"{name!r} is unknown: choose {', '.join(QUESTIONS)}.")
    torch.set_num_threads(1)
    question = importlib.import_module(f"benchmarks.learning.{name}")
    for recipe, models, seeds in question.PLAN:
        for seed, model in itertools.product(seeds, models):
            if not asked.table and seed in asked.seeds and model in (asked.only or models):
                run(question, asked.results, {"recipe": recipe, "model": model, "seed": seed})
    print(f"\n{machine()}, one thread a run, torch {torch.__version__}")
    rows = finished(asked.results)
    for recipe in {str(recipe): recipe for recipe, *_ in question.PLAN}.values():
        print_table(recipe, [row for row in rows if row["recipe"] == recipe])


def run(question: Any, results: Path, asked: dict[str, Any]) -> None:
    """Unless it is finished, perhaps by another process."""
    if any(asked.items() <= row.items() for row in finished(results)):
        return
    started = time.perf_counter()
    experts = 0 if asked["model"] == "dense" else int(asked["model"])
    values = question.measure(asked["recipe"], experts, asked["seed"])
    row = {**asked, "values": values, "seconds": round(time.perf_counter() - started)}
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print({name: row[name] for name in ("model", "seed", "seconds", "values")}, flush=True)


def finished(results: Path) -> list[dict[str, Any]]:
    lines = results.read_text("utf-8").splitlines() if results.exists() else []
    return [json.loads(line) for line in lines]


def print_table(recipe: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Means over the seeds of each model, and its difference from dense and from the control."""
    control = str(recipe["num_experts_per_tok"])
    names = list(dict.fromkeys(name for row in rows for name in row["values"]))
    print("\n" + ", ".join(f"{name} {value}" for name, value in recipe.items()) + "\n")
    print(f"| model | seeds | {' | '.join(names)} | loss - dense | loss - {control} experts |")
    print("|---" * (len(names) + 4) + "|")
    losses: dict[str, dict[int, float]] = {}
    for row in rows:
        losses.setdefault(row["model"], {})[row["seed"]] = row["values"]["loss"]
    for model in sorted(losses, key=lambda model: (model != "dense", len(model), model)):
        of_model = [row["values"] for row in rows if row["model"] == model]
        means = [statistics.mean(one.get(name, math.nan) for one in of_model) for name in names]
        cells = [f"{mean:,.0f}" if mean > 1000 else f"{mean:.4g}" for mean in means]
        cells += [paired(losses[model], losses.get(other, {})) for other in ("dense", control)]
        print(f"| {model} | {len(of_model)} | {' | '.join(cells)} |")


def paired(losses: dict[int, float], others: dict[int, float]) -> str:
    """Of the seeds that both have."""
    differences = [losses[seed] - others[seed] for seed in losses.keys() & others.keys()]
    if len(differences) < 2 or losses == others:
        return ""
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    mark = "**" if abs(mean) >= 3 * error else ""
    return f"{mark}{mean:+.4f} ± {error:.4f}{mark}"


if __name__ == "__main__":
    main()
