"""A small sound source of every format: the same run, as the writer of each format leaves it.

``test_contract.py`` and ``test_damage.py`` read every row of ``SOUND``. A new format adds one.
"""

import io
import json
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from microscope_tui.sources.records import SHARES_SUM
from tests.sources import event_bytes, gguf_bytes, wandb_bytes

GOLDEN = Path(__file__).with_name("golden")
Counts = Sequence[Sequence[int]]
Steps = Sequence[tuple[int, float, Mapping[str, float]]]
COUNTS = [[[6, 1, 1, 0], [2, 2, 2, 2]], [[4, 2, 1, 1], [3, 3, 1, 1]], [[8, 0, 0, 0], [2, 3, 2, 1]]]
"""What the golden databases hold: three steps, two layers, four experts; eight choices per step."""
LOSSES = [3.5, 3.25, 3.0]
RUN = [[[4, 2, 1, 1], [2, 2, 2, 2]], [[3, 3, 1, 1], [4, 4, 0, 0]], [[1, 2, 2, 3], [1, 3, 4, 0]]]
"""The run of the sound files: 4 tokens per step, k = 2, and no token chooses an expert twice."""


@dataclass(frozen=True)
class Sound:
    form: str
    file: str
    """What its writer calls the file."""
    content: Callable[[Sequence[Counts]], bytes]
    """The file after the steps with these counts, from step 1."""
    is_read_whole: bool = False
    """A file that grew is read again from the start."""
    is_database: bool = False
    times: int = 1
    """What the counts are multiplied with where only shares are known."""
    one_moment: bool = False
    """Only the last step is in the file, and is called step 1."""

    def steps(self, run: Sequence[Counts]) -> dict[int, dict[str, list[int] | None]]:
        """What a reader must make of ``content(run)``: step, name of the router, counts."""
        return {
            step: {f"L{at}": [n * self.times for n in row] for at, row in enumerate(counts)}
            for step, counts in enumerate(run[-1:] if self.one_moment else run, 1)
        }


def named(step: int, counts: Counts) -> dict[str, float]:
    name = "moe-expert/tokens_per_expert_layer{}_expert{}"
    cells = [(at, expert, n) for at, row in enumerate(counts) for expert, n in enumerate(row)]
    loss = {"loss": LOSSES[(step - 1) % len(LOSSES)]}
    return loss | {name.format(at, expert): float(n) for at, expert, n in cells}


def counts_row(step: int) -> dict[str, float]:
    return named(step, COUNTS[step - 1])


def rows(run: Sequence[Counts]) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Step, time and numbers of every step; another run has other times."""
    return (
        (step, 1e9 + 100 * counts[0][0] + step, named(step, counts))
        for step, counts in enumerate(run, 1)
    )


def lines(objects: Sequence[Mapping[str, object]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in objects)


def wandb(run: Sequence[Counts], others: Mapping[str, float] = {}) -> bytes:
    history = [wandb_bytes.history({**others, **row}, step) for step, _, row in rows(run)]
    return wandb_bytes.log([wandb_bytes.run(), *history])


def tensorboard(run: Sequence[Counts] = (), steps: Steps = ()) -> bytes:
    return event_bytes.file_of(
        *(
            event_bytes.event(step, at, event_bytes.value(tag, number))
            for step, at, row in steps or rows(run)
            for tag, number in row.items()
        )
    )


def jsonl(run: Sequence[Counts]) -> bytes:
    return lines([{"step": step, "time": at, **row} for step, at, row in rows(run)])


def csv(run: Sequence[Counts]) -> bytes:
    table: list[list[object]] = [["step", *named(1, run[0])]]
    table += [[step, *row.values()] for step, _, row in rows(run)]
    return "".join(",".join(map(str, row)) + "\n" for row in table).encode()


def megatron(run: Sequence[Counts], rank: int = 0) -> bytes:
    return lines(
        [
            call(rank, step, layer, choices(row))
            for step, counts in enumerate(run)
            for layer, row in enumerate(counts)
        ]
    )


def call(rank: int, step: int, layer: int, ids: Sequence[Sequence[int]], **more: object) -> dict:  # type: ignore[type-arg]
    """One line of a trace, with the keys and the order of Megatron's ``RouterTracer``."""
    found: dict[str, object] = {"step": step, "stage": "pre_dispatch", "block": "decoder"}
    found |= {"layer": layer, "rank": rank, "num_tokens": len(ids), "topk": len(ids[0])}
    return found | more | {"top_indices": ids}


def choices(counts: Sequence[int]) -> list[list[int]]:
    chosen = [expert for expert, count in enumerate(counts) for _ in range(count)]
    half = len(chosen) // 2
    return [[a, b] for a, b in zip(chosen[:half], chosen[half:], strict=True)]


def saved(value: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def sglang(run: Sequence[Counts]) -> bytes:
    return saved({"rank": 0, "logical_count": torch.tensor(run, dtype=torch.int32)})


def rollout(run: Sequence[Counts]) -> bytes:
    arrays = (np.array([choices(row) for row in counts], np.int32) for counts in run)
    routes = [one.swapaxes(0, 1).copy() for one in arrays]
    samples = [{"tokens": [5] * len(one), "rollout_routed_experts": one} for one in routes]
    return saved({"rollout_id": 3, "samples": samples})


def tensorrt_llm(run: Sequence[Counts]) -> bytes:
    cells = ((s, layer, row) for s, counts in enumerate(run) for layer, row in enumerate(counts))
    return save({f"{step}_{layer}": torch.tensor(row) for step, layer, row in cells})


def imatrix(run: Sequence[Counts]) -> bytes:
    name = "blk.{}.ffn_up_exps.weight.counts"
    return gguf_bytes.imatrix({name.format(at): row for at, row in enumerate(run[-1])}, 1, 4)


def streamlit(run: Sequence[Counts]) -> bytes:
    entries: list[dict[str, object]] = [{"step": step} for step in range(1, len(run) + 1)]
    for entry, counts in zip(entries, run, strict=True):
        for layer, row in enumerate(counts):
            entry[f"layer_{layer}_load"] = [count / sum(row) for count in row]
            entry |= {f"layer_{layer}_entropy": 1.0, f"layer_{layer}_droprate": 0.1}
    return json.dumps(entries).encode()


def database(name: str, *statements: tuple[str, Sequence[object]]) -> bytes:
    """A database of a real writer, made again from the statements that hold it, and changed."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.db"
        with closing(sqlite3.connect(path)) as base:
            base.executescript(f"BEGIN; {(GOLDEN / name).read_text()} COMMIT;")
            for statement in statements:
                base.execute(*statement)
            base.commit()
        return path.read_bytes()


TRACKIO_COLUMNS = "run_id, timestamp, run_name, step, metrics"


def trackio(run: Sequence[Counts] = (), steps: Steps = ()) -> bytes:
    values = "'r1', datetime(?, 'unixepoch'), 'first', ?, ?"
    insert = f"INSERT INTO metrics ({TRACKIO_COLUMNS}) VALUES ({values})"
    logged = [(insert, (at, step, json.dumps(row))) for step, at, row in steps or rows(run)]
    return database("trackio.sql", ("DELETE FROM metrics", ()), *logged)


def mlflow(run: Sequence[Counts]) -> bytes:
    insert = "INSERT INTO metrics SELECT ?, ?, ?, run_uuid, ?, 0 FROM runs WHERE name = 'first try'"
    logged = [
        (insert, (key, number, 1000 * at, step))
        for step, at, row in rows(run)
        for key, number in row.items()
    ]
    return database("mlflow.sql", ("DELETE FROM metrics", ()), *logged)


SOUND = (
    Sound("wandb", "run-a1b2.wandb", wandb),
    Sound("tensorboard", "events.out.tfevents.1795711952.host.42.0", tensorboard),
    Sound("trackio", "project.db", trackio, is_database=True),
    Sound("mlflow", "mlflow.db", mlflow, is_database=True),
    Sound("megatron", "router_trace_rank0.jsonl", megatron),
    Sound("jsonl", "metrics.jsonl", jsonl),
    Sound("csv", "metrics.csv", csv),
    Sound("sglang", "expert_distribution_recorder_1751349033.84.pt", sglang, is_read_whole=True),
    Sound("routed-experts", "rollout_3.pt", rollout, is_read_whole=True),
    Sound("tensorrt-llm", "rank0.safetensors", tensorrt_llm, is_read_whole=True),
    Sound("imatrix", "imatrix.gguf", imatrix, is_read_whole=True, one_moment=True),
    Sound("streamlit", "training_metrics.json", streamlit, times=SHARES_SUM // 8),
)
