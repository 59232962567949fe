"""Writers of other tools' files at work: whole steps, half of a step, the rest of it, and death."""

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tests.sources import event_bytes, wandb_bytes
from tests.sources.dumped import settle
from tests.sources.sqlite_writer import Writer
from tests.sources.test_everywhere import flat
from tests.sources.test_megatron import chosen, line
from tests.sources.test_trackio import NEWER, logged

FIRST = 3
"""Steps that are there at first. They are complete: nothing was written to them for a while."""
LAYERS = ("L0", "L1")


class Live:
    """A writer that appends to one file, whose content after ``n`` steps is ``content(n)``."""

    def __init__(self, path: Path, content: Callable[[int], bytes], cut: int = 2) -> None:
        """``cut``: a torn step has one ``cut``-th of its bytes."""
        self.path = path
        self._file, self._content, self._cut = path, content, cut
        path.write_bytes(content(FIRST))
        settle(path)

    def tear(self, step: int) -> None:
        """Write the first part of a step."""
        there, whole = self._file.stat().st_size, len(self._content(step))
        self._append(step, there + (whole - there) // self._cut)

    def finish(self, step: int) -> None:
        """Write the rest of it."""
        self._append(step, len(self._content(step)))

    def die(self) -> None:
        """End for good; the files look as if that was a while ago."""
        settle(self._file)

    def _append(self, step: int, end: int) -> None:
        with self._file.open("ab") as file:
            file.write(self._content(step)[file.tell() : end])


def wandb(folder: Path) -> Live:
    """Opened by its folder: no event of the file system announces it."""
    live = Live(folder / "run-x.wandb", lambda n: wandb_bytes.log(_history(n)))
    live.path = folder
    return live


def wandb_in_blocks(folder: Path) -> Live:
    """A step of 100 KB, torn between two blocks of 32 KiB."""
    others = {f"train/other_{i}": 0.5 for i in range(2500)}
    live = Live(folder / "run-x.wandb", lambda n: wandb_bytes.log(_history(n, others)))

    def tear(step: int) -> None:
        there = live.path.stat().st_size
        live._append(step, (there // wandb_bytes.BLOCK + 2) * wandb_bytes.BLOCK)

    live.tear = tear  # type: ignore[method-assign]
    return live


def _history(steps: int, others: dict[str, float] | None = None) -> list[bytes]:
    rows = [wandb_bytes.history({**(others or {}), **flat(n)}, n) for n in range(1, steps + 1)]
    return [wandb_bytes.run(), *rows]


def tensorboard(folder: Path) -> Live:
    def content(steps: int) -> bytes:
        events = [
            event_bytes.event(n, 1e9 + n, event_bytes.value(tag, number))
            for n in range(1, steps + 1)
            for tag, number in flat(n).items()
        ]
        return event_bytes.file_of(*events)

    return Live(folder / "events.out.tfevents.1.host", content, cut=20)  # within its first number


def jsonl(folder: Path) -> Live:
    def content(steps: int) -> bytes:
        rows = [{"step": n, "time": 1e9 + n, **flat(n)} for n in range(1, steps + 1)]
        return "".join(json.dumps(row) + "\n" for row in rows).encode()

    return Live(folder / "metrics.jsonl", content)


def csv(folder: Path) -> Live:
    def content(steps: int) -> bytes:
        rows: list[list[object]] = [["step", *flat(1)]]
        rows += [[n, *flat(n).values()] for n in range(1, steps + 1)]
        return "".join(",".join(map(str, row)) + "\n" for row in rows).encode()

    return Live(folder / "metrics.csv", content)


class Megatron(Live):
    """Two ranks; torn is the last line of the second."""

    def __init__(self, folder: Path) -> None:
        ids = [chosen(rank, range(len(LAYERS)), steps=2 * FIRST) for rank in (0, 1)]

        def content(rank: int, steps: int) -> bytes:
            calls = ids[rank].items()
            return "".join(line(rank, n, at, c) for (n, at), c in calls if n < steps).encode()

        self._first = Live(folder / "router_trace_rank0.jsonl", lambda n: content(0, n))
        super().__init__(folder / "router_trace_rank1.jsonl", lambda n: content(1, n), cut=1)
        self.path = folder

    def tear(self, step: int) -> None:
        self._first.finish(step)
        self._append(step, len(self._content(step)) - 20)


class Trackio(Live):
    """A connection that stays open, with a log beside the database; torn is a transaction."""

    def __init__(self, folder: Path) -> None:
        self.path = self._file = folder / "project.db"
        self._writer = Writer(self.path)
        rows = [logged("a run", n, flat(n)) for n in range(1, FIRST + 1)]
        self._writer.run("PRAGMA journal_mode=WAL", NEWER, *rows)

    def tear(self, step: int) -> None:
        self._writer.run("BEGIN IMMEDIATE", logged("a run", step, flat(step)))

    def finish(self, step: int) -> None:
        self._writer.run("COMMIT")

    def die(self) -> None:
        self._writer.kill()
        settle(self._file.parent)


class SGLang(Live):
    """A dump per step, with the two layers that have routers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for step in range(1, FIRST + 1):
            self._dump(step).write_bytes(self._bytes(step))
        settle(folder)
        self.path = folder

    def tear(self, step: int) -> None:
        whole = self._bytes(step)
        self._dump(step).write_bytes(whole[: len(whole) // 2])

    def finish(self, step: int) -> None:
        whole = self._bytes(step)
        with self._dump(step).open("ab") as file:
            file.write(whole[file.tell() :])

    def die(self) -> None:
        settle(self._folder)

    def _dump(self, step: int) -> Path:
        return self._folder / f"expert_distribution_recorder_{1_700_000_000 + step}.5.pt"

    @staticmethod
    def _bytes(step: int) -> bytes:
        counts = torch.full((1, len(LAYERS), 4), 10 + step, dtype=torch.int32)
        file = io.BytesIO()
        torch.save({"rank": 0, "logical_count": counts}, file)
        return file.getvalue()


WRITERS: Sequence[Callable[[Path], Live]] = (
    wandb,
    wandb_in_blocks,
    tensorboard,
    Trackio,
    jsonl,
    csv,
    Megatron,
    SGLang,
)
