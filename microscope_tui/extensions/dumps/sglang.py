"""Dumps of SGLang's expert distribution recorder as a run: one step per forward pass.

``stat`` and ``stat_approx`` write counts over all ranks, from a buffer that is not rotated: its
unused passes are zero and dropped, and the order of the others is not guaranteed. ``per_pass`` and
``per_token`` write counts of *physical* experts, a file per rank: they are summed, and the step is
``forward_pass_id`` + 1 (passes completed). The choices of each token in ``per_token`` are not read:
``--top-k`` gives their number. Layers without a router are rows of zeros: they are
dropped, the others keep their numbers. The router of a server does not learn: the profile is
``eval``.

Where all ranks see the same tokens (tensor parallelism without data-parallel attention), SGLang's
own sums are a multiple of the counts: the shares are right, ``tokens`` is therefore left out.
Layout: ``sglang/srt/eplb/expert_distribution.py``.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from microscope_tui.runlog import safe_text
from microscope_tui.sources import torch_file
from microscope_tui.sources.dumps import (
    Bytes,
    Counted,
    DumpReader,
    ExactCounts,
    Late,
    Router,
    add_counts,
    by_logical,
    misses_ranks,
    routed,
)
from microscope_tui.sources.keys import MAX_EXPERTS, MAX_LAYERS, Rule
from microscope_tui.sources.reader import Record
from microscope_tui.sources.torch_file import Tensor

UNORDERED = "a circular buffer that is not rotated: the order of the passes is not guaranteed"
ONE_RANK = "one rank of the server; open the folder of its dumps for all ranks"
_MOST_COUNT = 2**40
_KEYS = (b"logical_count", b"global_physical_count")


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward pass on one rank."""

    path: Path
    rank: int
    number: int
    """``forward_pass_id``"""
    counts: Tensor
    """``[layers, physical experts]``"""
    logical: Sequence[Sequence[int]]
    """The logical expert of each physical one ``[layers, physical experts]``."""


class SGLangReader(DumpReader):
    """Reads one dump, or the folder of the recorder, in which more dumps may appear."""

    names = re.compile(
        r"expert_distribution_recorder_(\d{1,12}(?:\.\d{1,9})?)(?:_(?P<rank>\d{1,6}))?\.pt"
    )

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        is_zip = head.startswith(b"PK\3\4") and b"/data.pkl" in head[:256]
        return is_zip and any(key in head for key in _KEYS)

    def _start(self) -> None:
        super()._start()
        self._kind: type | None = None  # of what the dumps hold: counts of all ranks, or passes
        self._steps = 0  # of stat dumps: they have no number
        self._returned: dict[int, set[int]] = {}  # forward passes, by rank, since a restart

    def _read_files(self, paths: Sequence[Path]) -> Iterator[tuple[float, Record]]:
        dumps: list[list[Pass]] = []
        for number, path in enumerate(sorted(paths, key=_time_of)):
            with self._opened(path) as data:
                dump = _load(data, path)
                self._kind = self._kind or type(dump)
                if type(dump) is not self._kind:
                    raise data.broken(
                        "this folder has dumps of two modes of the recorder; name one file, or "
                        "move the others away"
                    )
                if isinstance(dump, list):
                    dumps.append(dump)
                    continue
                for done, counted in self._stat(data, dump):
                    for record in self._run_of(paths, dump.shape[1]).add(counted):
                        yield (number + done) / len(paths), record
        yield from self._details(dumps, paths)

    def _stat(self, data: Bytes, counts: Tensor) -> Iterator[tuple[float, Counted]]:
        passes = counts.shape[0]
        for index in range(passes):
            rows = routed(_rows_of(data, counts, index))
            if rows:
                self._steps += 1
                yield index / passes, Counted(self._steps, rows)

    def _details(
        self, dumps: list[list[Pass]], paths: Sequence[Path]
    ) -> Iterator[tuple[float, Record]]:
        todo = sum(map(len, dumps))
        done = 0
        for by_number in self._between_restarts(dumps):
            for number in sorted(by_number):
                done += len(by_number[number])
                counted = self._sum(number, by_number[number])
                if counted.rows:
                    layers = by_number[number][0].counts.shape[0]
                    for record in self._run_of(paths, layers).add(counted):
                        yield done / todo, record

    def _between_restarts(self, dumps: list[list[Pass]]) -> Iterator[dict[int, list[Pass]]]:
        """The passes by number; a server that restarts counts them from the start again."""
        group: dict[int, list[Pass]] = {}
        earlier = {number for numbers in self._returned.values() for number in numbers}
        for dump in filter(None, dumps):
            rank = dump[0].rank
            numbers = {one.number for one in dump}
            if numbers & self._returned.get(rank, set()):
                yield group
                group = {}
                earlier = set()
                self._returned = {}
            if numbers & earlier:
                raise Late  # another rank of passes that were returned without it
            self._returned.setdefault(rank, set()).update(numbers)
            for one in dump:
                group.setdefault(one.number, []).append(one)
        yield group

    def _sum(self, number: int, ranks: list[Pass]) -> Counted:
        total: dict[Router, list[int]] = {}
        for one in ranks:
            with self._opened(one.path) as data:
                physical = _rows_of(data, one.counts)
                rows = routed(by_logical(physical, one.logical))
            for router, row in rows.items():
                add_counts(total.setdefault(router, []), row)
        return Counted(number + 1, total)

    def _run_of(self, paths: Sequence[Path], layers: int) -> ExactCounts:
        if self._run is not None:
            return self._run
        of_ranks = "exact"
        note = UNORDERED if self._kind is Tensor else ""
        if self._kind is list and misses_ranks(self, self._returned):
            of_ranks = "local_rank"
            note = ONE_RANK
        times = [time for path in paths if (time := _time_of(path)[0])]
        return self._begin(
            "sglang",
            profile="eval",
            counts=of_ranks,
            note=note,
            time=min(times, default=None),
            hidden_layers=layers,
        )


def _time_of(path: Path) -> tuple[float, int, str]:
    found = SGLangReader.names.fullmatch(path.name)
    if found is None:
        return 0.0, 0, safe_text(path.name)
    return float(found[1]), int(found[2] or 0), ""


def _load(data: Bytes, path: Path) -> Tensor | list[Pass]:
    """Counts ``[passes, layers, logical experts]`` over all ranks, or the passes of one rank.

    The numbers stay in the file; unused passes of the former are zero. ``Unreadable``: as
    ``torch_file.load``, or it is not such a dump.
    """
    match torch_file.load(data):
        case {"logical_count": counts}:
            return _counts(data, counts, 3)
        case {"records": list()} as content:
            return _passes(data, path, content)
    raise data.broken(
        "not a dump of SGLang's expert distribution recorder: neither logical_count nor records"
    )


def _rows_of(data: Bytes, counts: Tensor, index: int | None = None) -> list[list[int]]:
    """The rows ``[layers][experts]`` of pass ``index``; without it, ``counts`` is one pass.

    ``Unreadable``: a count is negative or larger than any count can be.
    """
    flat = counts.numbers(data, index)
    if flat and not 0 <= min(flat) <= max(flat) <= _MOST_COUNT:
        raise data.broken("a count is negative or too large; is it such a dump?")
    width = counts.shape[-1]
    return [flat[at : at + width] for at in range(0, len(flat), width)]


def _passes(data: Bytes, path: Path, content: dict[Any, Any]) -> list[Pass]:
    found = content["records"]
    if not found:
        return []
    mapping = _counts(data, content.get("last_physical_to_logical_map"), 2)
    logical = _rows_of(data, mapping)
    if max(map(max, logical)) >= mapping.shape[-1]:
        raise data.broken("last_physical_to_logical_map has more experts than slots")
    passes = []
    for record in found:
        match record:
            case {"forward_pass_id": int(number), "rank": int(rank), "global_physical_count": t}:
                counts = _counts(data, t, 2)
            case _:
                raise data.broken("a record has no forward_pass_id, rank or global_physical_count")
        if counts.shape != mapping.shape or not 0 <= number < 2**62:
            raise data.broken(
                f"a record counts {counts.shape} experts, last_physical_to_logical_map has "
                f"{mapping.shape}; the dump is not consistent"
            )
        passes.append(Pass(path, rank, number, counts, logical))
    if len(ranks := {one.rank for one in passes}) > 1:
        raise data.broken(f"records of {len(ranks)} ranks in one file; a file holds one rank")
    return passes


def _counts(data: Bytes, value: Any, dimensions: int) -> Tensor:
    if not isinstance(value, Tensor) or not value.is_integer or len(value.shape) != dimensions:
        raise data.broken(f"the counts are not a tensor of integers with {dimensions} dimensions")
    layers, experts = value.shape[-2:]
    if not (0 < layers <= MAX_LAYERS and 0 < experts <= MAX_EXPERTS):
        raise data.broken(
            f"{layers:,} layers with {experts:,} experts; at least one of each, and at "
            f"most {MAX_LAYERS:,} with {MAX_EXPERTS:,}, are read"
        )
    return value
