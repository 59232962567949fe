"""No file can hurt a reader, whatever its format: damaged, cut off, or made to cost memory.

``python -m benchmarks.fuzz_sources`` tries more cases of the first test.
"""

import struct
import tracemalloc
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from microscope_tui.sources import FORMATS, SourceRequest, Unreadable, wandb
from microscope_tui.sources.tensorboard import masked_crc32c
from tests.sources import event_bytes, sound, wandb_bytes
from tests.sources.damage import NAMES, case, read_damaged, seeds_of
from tests.sources.reading import settle

CASES, CUTS = 40, 12
MOST_MEMORY = 40 << 20


@pytest.mark.parametrize("name", NAMES)
def test_damaged_bytes_are_read_or_refused_in_one_line(name: str) -> None:
    refused = [bool(read_damaged(name, case(name, seed))) for seed in range(CASES)]
    assert not all(refused)  # some damage is harmless: what was damaged is a sound file


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_is_cut_off_is_read_or_refused_in_one_line(name: str) -> None:
    whole = seeds_of(name)[0]
    assert not read_damaged(name, whole)
    for cut in range(0, len(whole), -(-len(whole) // CUTS)):
        read_damaged(name, whole[:cut])


ROW = b'{"step": 1, "max_vio/max": 1}\n'
LONG = 20 << 20
Parts = Sequence[bytes | int]
"""Bytes, and sizes of holes between them."""
ENDLESS_LENGTH = struct.pack("<Q", 1 << 60)
ENDLESS_EVENT = ENDLESS_LENGTH + struct.pack("<I", masked_crc32c(ENDLESS_LENGTH))
ENDLESS_DIRECTORY = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, LONG, 0, 0)
LONG_NAME = b', "' + b"x" * 1_000_000 + b'": {"0":0' + b',"1":1' * 10_000 + b"}}\n"
LONG_RECORD = wandb_bytes.part(2, bytes(4 << 20))
HISTORY = wandb_bytes.history({"max_vio/max": 1}, 1)
EVENT = event_bytes.event(1, 1.0, event_bytes.value("max_vio/max", 1))
HUGE = torch.zeros(1, 1, 1, dtype=torch.int8).expand(1, 4096, 1 << 15)
LONG_METRICS = sound.database("trackio.sql", ("UPDATE metrics SET metrics = zeroblob(9000000)", ()))
LONG_VALUE = sound.database("mlflow.sql", ("UPDATE params SET value = zeroblob(9000000)", ()))
HOSTILE: dict[str, tuple[str, Parts, str, list[int]]] = {
    "endless line": ("jsonl", [ROW, b'{"step": 2, "x": "', LONG, b'"}\n', ROW], "", [1]),
    "long name of an object": ("jsonl", [ROW[:-2], LONG_NAME], "", [1]),
    "nested lists": ("jsonl", [b"[" * 100_000, b"\n", ROW], "", [1]),
    "nested objects": ("jsonl", [b'{"a":' * 100_000, b"\n", ROW], "", [1]),
    "endless digits": ("jsonl", [b'{"step":1,"loss":', b"9" * 5000, b"\n", ROW], "", [1]),
    "endless row": ("csv", [b'step,max_vio/max\n1,1\n2,"', LONG, b'"\n'], "", [1]),
    "endless field": ("csv", [b'step,max_vio/max\n1,"', b"9" * 200_000, b'"\n2,1\n'], "", [2]),
    "endless call": ("megatron", [b'{"top_indices": [', LONG, b"]}\n"], "longer than", []),
    "nested calls": ("megatron", [b"[" * 100_000, b"\n"], "not a line of a router trace", []),
    "endless record": ("wandb", [wandb_bytes.log([HISTORY, LONG_RECORD])], "longer than", [1]),
    "endless event": ("tensorboard", [event_bytes.file_of(EVENT), ENDLESS_EVENT, LONG], "", [1]),
    "endless directory": ("sglang", [LONG, ENDLESS_DIRECTORY], "the end of the zip file", []),
    "huge tensor": ("sglang", [sound.saved({"logical_count": HUGE})], "strided view", []),
    "endless header": ("tensorrt-llm", [struct.pack("<Q", 1 << 60), LONG], "at most", []),
    "nested header": ("tensorrt-llm", [struct.pack("<Q", 100_000), b"[" * 100_000], "damaged", []),
    "endless tensors": ("imatrix", [b"GGUF", struct.pack("<IQQ", 3, 1 << 40, 0)], "at most", []),
    "endless file": ("streamlit", [b"[", LONG, b"]"], "at most 8,388,608", []),
    "nested file": ("streamlit", [b"[" * 100_000], "nested too deeply", []),
    "endless metrics": ("trackio", [LONG_METRICS], "too big", []),
    "endless parameter": ("mlflow", [LONG_VALUE], "too big", []),
}
"""Format, content, part of the refusal (empty: it is read), and the steps that are read."""


@pytest.mark.parametrize("hostile", HOSTILE)
def test_sizes_and_depths_without_end_cost_no_memory(
    hostile: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb, "MAX_RECORD_BYTES", 2 << 20)
    name, parts, why, steps = HOSTILE[hostile]
    path = tmp_path / NAMES[name]
    with path.open("wb") as file:
        for part in parts:
            file.seek(part, 1) if isinstance(part, int) else file.write(part)
        file.truncate()
    settle(path)
    run = {"trackio": "first", "mlflow": "first try"}.get(name, "")
    reader = FORMATS[name].open(path, run, "hostile", SourceRequest())
    found: list[int] = []
    tracemalloc.start()
    with pytest.raises(Unreadable, match=why) if why else nullcontext():
        while not reader.exhausted:
            found += [r["step"] for r in reader.read().records if r["kind"] == "step"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found == steps
    assert peak < MOST_MEMORY
