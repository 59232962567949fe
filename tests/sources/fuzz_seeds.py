"""A small sound file of each format that the catalogue opens, for the fuzzing of its reader."""

import io
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from tests.sources.sqlite_writer import golden
from tests.sources.tables import counts_row
from tests.sources.truth import GOLDEN


def _jsonl() -> bytes:
    return "".join(json.dumps({"step": n, **counts_row(n)}) + "\n" for n in (1, 2, 3)).encode()


def _csv() -> bytes:
    rows = [["step", *counts_row(1)], *([n, *counts_row(n).values()] for n in (1, 2, 3))]
    return "".join(",".join(map(str, row)) + "\n" for row in rows).encode()


def _streamlit() -> bytes:
    load = {"layer_0_load": [0.5, 0.25, 0.25], "layer_0_entropy": 1.0, "layer_0_droprate": 0.1}
    return json.dumps([{"step": n, **load} for n in (1000, 2000)]).encode()


def _megatron() -> bytes:
    call = {"stage": "pre_dispatch", "block": "decoder", "layer": 1, "rank": 0, "num_tokens": 2}
    call |= {"topk": 2, "top_indices": [[0, 1], [2, 3]]}
    return "".join(json.dumps({"step": n, **call}) + "\n" for n in range(3)).encode()


def _database(name: str) -> Callable[[], bytes]:
    def made() -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return golden(Path(folder) / "x.db", name).read_bytes()

    return made


def _sglang() -> bytes:
    import torch

    file = io.BytesIO()
    counts = torch.arange(24, dtype=torch.int32).view(2, 3, 4)
    torch.save({"rank": 0, "logical_count": counts}, file)
    return file.getvalue()


def _tensorrt_llm() -> bytes:
    import torch
    from safetensors.torch import save

    return save({"7_3": torch.tensor([5, 3, 0, 8], dtype=torch.int32)})


_MAKERS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "csv": ("metrics.csv", _csv),
    "imatrix": ("imatrix.gguf", (GOLDEN / "imatrix.gguf").read_bytes),
    "jsonl": ("metrics.jsonl", _jsonl),
    "megatron": ("router_trace_rank0.jsonl", _megatron),
    "mlflow": ("mlflow.db", _database("mlflow.sql")),
    "sglang": ("expert_distribution_recorder_1.5.pt", _sglang),
    "streamlit": ("training_metrics.json", _streamlit),
    "tensorrt-llm": ("rank0.safetensors", _tensorrt_llm),
    "trackio": ("project.db", _database("trackio.sql")),
}
NAMES = tuple(_MAKERS)
"""Formats of which a sound file is opened as the catalogue does."""


def file_name(form: str) -> str:
    """What its writer calls such a file."""
    return _MAKERS[form][0]


@cache
def seed_of(form: str) -> bytes:
    """The sound file."""
    return _MAKERS[form][1]()
