"""Writers of other tools' files at work: whole steps, half of a step, the rest of it, and death."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.sources import sound
from tests.sources.reading import settle
from tests.sources.sqlite_writer import Writer

FIRST = 3
"""Steps that are there at first. They are complete: nothing was written to them for a while."""
LAYERS = ("L0", "L1")
RUN = sound.RUN * 2


class Live:
    """A writer that appends to one file, which has ``content(RUN[:n])`` after ``n`` steps."""

    def __init__(self, path: Path, content: Any, cut: int = 2) -> None:
        """``cut``: a torn step has one ``cut``-th of its bytes."""
        self.path = path
        self._file, self._content, self._cut = path, content, cut
        path.write_bytes(content(RUN[:FIRST]))
        settle(path)

    def tear(self, step: int) -> None:
        there, whole = self._file.stat().st_size, len(self._content(RUN[:step]))
        self._append(step, there + (whole - there) // self._cut)

    def finish(self, step: int) -> None:
        self._append(step, len(self._content(RUN[:step])))

    def die(self) -> None:
        settle(self._file)

    def _append(self, step: int, end: int) -> None:
        with self._file.open("ab") as file:
            file.write(self._content(RUN[:step])[file.tell() : end])


def appended(form: str, cut: int = 2, by_folder: bool = False) -> Callable[[Path], Live]:
    """A writer of the one file of a format.

    Args:
        by_folder: the folder is opened: no event of the file system announces its file.
    """

    def begin(folder: Path) -> Live:
        (found,) = (one for one in sound.SOUND if one.form == form)
        live = Live(folder / found.file, found.content, cut)
        live.path = folder if by_folder else live.path
        return live

    begin.__name__ = form
    return begin


class WandbInBlocks(Live):
    """A step of 100 KB, torn between two blocks of 32 KiB."""

    def __init__(self, folder: Path) -> None:
        others = {f"train/other_{i}": 0.5 for i in range(2500)}
        super().__init__(folder / "run-x.wandb", lambda run: sound.wandb(run, others))

    def tear(self, step: int) -> None:
        there = self.path.stat().st_size
        self._append(step, (there // sound.wandb_bytes.BLOCK + 2) * sound.wandb_bytes.BLOCK)


class Megatron(Live):
    def __init__(self, folder: Path) -> None:
        self._first = Live(folder / "router_trace_rank0.jsonl", sound.megatron)
        path = folder / "router_trace_rank1.jsonl"
        super().__init__(path, lambda run: sound.megatron([step[::-1] for step in run], 1))
        self.path = folder

    def tear(self, step: int) -> None:
        self._first.finish(step)
        self._append(step, len(self._content(RUN[:step])) - 20)


class Trackio(Live):
    """A connection that stays open, with a log beside the database; torn is a transaction."""

    def __init__(self, folder: Path) -> None:
        self.path = self._file = folder / "project.db"
        self.path.write_bytes(sound.trackio(RUN[: FIRST - 1]))
        self._writer = Writer(self.path)
        self._writer.run("PRAGMA journal_mode=WAL", self._insert(FIRST))

    @staticmethod
    def _insert(step: int) -> list[object]:
        row = ["r1", "2026-01-01", "first", step, json.dumps(sound.named(step, RUN[step - 1]))]
        return [f"INSERT INTO metrics ({sound.TRACKIO_COLUMNS}) VALUES (?, ?, ?, ?, ?)", row]

    def tear(self, step: int) -> None:
        self._writer.run("BEGIN IMMEDIATE", self._insert(step))

    def finish(self, step: int) -> None:
        self._writer.run("COMMIT")

    def die(self) -> None:
        self._writer.kill()
        settle(self._file.parent)


class SGLang(Live):
    def __init__(self, folder: Path) -> None:
        self.path = folder
        for step in range(1, FIRST + 1):
            self._dump(step).write_bytes(self._bytes(step))
        settle(folder)

    def tear(self, step: int) -> None:
        whole = self._bytes(step)
        self._dump(step).write_bytes(whole[: len(whole) // 2])

    def finish(self, step: int) -> None:
        self._dump(step).write_bytes(self._bytes(step))

    def die(self) -> None:
        settle(self.path)

    def _dump(self, step: int) -> Path:
        return self.path / f"expert_distribution_recorder_{1_700_000_000 + step}.5.pt"

    @staticmethod
    def _bytes(step: int) -> bytes:
        return sound.sglang([RUN[step - 1]])


WRITERS: Sequence[Callable[[Path], Live]] = (
    appended("wandb", by_folder=True),
    WandbInBlocks,
    appended("tensorboard", cut=20),  # within its first number
    Trackio,
    appended("jsonl"),
    appended("csv"),
    Megatron,
    SGLang,
)
