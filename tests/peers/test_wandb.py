"""The real wandb writes, we read: its own service is the oracle of the format.

``UPDATE_GOLDEN=1`` also writes the golden file that ``tests/sources`` reads without wandb.
"""

import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.sources import FORMATS, Keys
from microscope_tui.sources.reader import Row
from microscope_tui.sources.wandb import WandbReader
from tests.sources import wandb_bytes as wb
from tests.sources.truth import CONFIG, GOLDEN, STEPS, expected, logged, numbers_of

recognises = WandbReader.recognises

wandb = pytest.importorskip("wandb")


def start(folder: Path, config: Mapping[str, object] = CONFIG) -> Any:
    silent = dict.fromkeys(("x_disable_stats", "x_disable_meta", "x_disable_machine_info"), True)
    silent |= {"disable_git": True, "silent": True, "save_code": False}
    settings = wandb.Settings(**silent, console="off", host="node")
    names = {"project": "moe", "name": "golden"}
    return wandb.init(mode="offline", dir=folder, config=config, settings=settings, **names)


def read_to_the_end(reader: WandbReader) -> tuple[list[Row], str]:
    """All rows, and how the run ended: the service of wandb still writes after ``finish``."""
    rows: list[Row] = []
    ended = ""
    until = time.monotonic() + 20
    while not ended and time.monotonic() < until:
        found = reader.read()
        rows += found.rows
        ended = found.ended
    return rows, ended


def file_of(folder: Path) -> Path:
    (path,) = folder.glob("wandb/offline-run-*/*.wandb")
    return path


def test_what_wandb_logs_is_what_is_read(tmp_path: Path) -> None:
    run = start(tmp_path)
    for step in STEPS:
        run.log({**logged(step), "nested": {"a": {"b": 1.0}}, "a text": "x\n\x12é"}, step=step)
    run.config.update({"num_experts_per_tok": 2})
    run.finish()
    path = file_of(tmp_path)
    assert FORMATS["wandb"].place_of(path) == path
    assert recognises(path)
    reader = WandbReader(path, Keys())
    rows, ended = read_to_the_end(reader)
    assert ended == "finished"
    assert numbers_of(rows) == expected()
    assert all(abs((row.time or 0) - time.time()) < 600 for row in rows)
    assert reader.name == "golden"
    assert reader.config == {"model": CONFIG["model"], "num_experts_per_tok": 2}
    assert "nested.a.b" in reader.keys
    if os.environ.get("UPDATE_GOLDEN"):
        shutil.copyfile(path, GOLDEN / "wandb")


def test_a_run_that_fails_is_seen_as_failed(tmp_path: Path) -> None:
    run = start(tmp_path)
    run.log(logged(10), step=10)
    run.finish(exit_code=3)
    _, ended = read_to_the_end(WandbReader(file_of(tmp_path), Keys()))
    assert ended == "failed"


def test_a_run_is_followed_while_wandb_writes(tmp_path: Path) -> None:
    """wandb 0.31 writes whole blocks of 32 KiB, and the rest every 15 s."""
    run = start(tmp_path)
    many = {f"other/number_{i}": 0.5 for i in range(400)}
    reader = None
    rows = []
    for step in range(1, 31):
        run.log({**many, **logged(step)}, step=step)
        time.sleep(0.05)
        if reader is None and list(tmp_path.glob("wandb/offline-run-*/*.wandb")):
            reader = WandbReader(file_of(tmp_path), Keys())
        if reader is not None:
            rows += reader.read().rows
    before_the_end = len(rows)
    run.finish()
    rows += read_to_the_end(reader)[0]
    assert [row.step for row in rows] == list(range(1, 31))
    assert before_the_end > 10


def test_wandb_reads_what_our_tests_write() -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    history = Record.FromString(wb.history({"a key": 1.5}, -3)).history
    (item,) = history.item
    assert (list(item.nested_key), item.value_json) == (["a key"], "1.5")
    assert history.step.num == -3
    old = Record.FromString(wb.history({"a key": 1.5}, old=True)).history
    assert [item.key for item in old.item] == ["a key"]
    run = Record.FromString(wb.run("abc", "name", lr=0.5)).run
    assert (run.run_id, run.display_name) == ("abc", "name")
    assert [item.value_json for item in run.config.update] == ["0.5"]
    assert Record.FromString(wb.exit_record(3)).exit.exit_code == 3
    config = Record.FromString(wb.config(lr=0.5)).config
    assert [list(item.nested_key) for item in config.update] == [["lr"]]
