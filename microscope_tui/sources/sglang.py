"""Dumps of SGLang's expert distribution recorder as a run: one step per forward pass.

A dump of ``stat`` is a buffer that is not rotated: its unused passes are zero and dropped, and the
order of the others is not guaranteed. In ``per_pass`` and ``per_token`` the step is
``forward_pass_id`` + 1 (passes completed), and the files of all ranks are summed. Layers without a
router are rows of zeros: they are dropped, the others keep their numbers. The router of a server
does not learn, so the profile is ``eval``.

Where all ranks see the same tokens (tensor parallelism without data-parallel attention), SGLang's
own sums are a multiple of the counts: the shares are right, ``tokens`` is therefore left out.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from microscope_tui.runlog import safe_text
from microscope_tui.sources import sglang_dump
from microscope_tui.sources.dumps import MOST_FILES, DumpReader, Late, begins_with, candidates
from microscope_tui.sources.exact_bytes import Bytes, opened
from microscope_tui.sources.exact_counts import Counted, ExactCounts, Router
from microscope_tui.sources.header import Asked
from microscope_tui.sources.reader import Record
from microscope_tui.sources.sglang_dump import Detail, Pass, Stat

NAMES = re.compile(r"expert_distribution_recorder_(\d{1,12}(?:\.\d{1,9})?)(?:_(\d{1,6}))?\.pt")
UNORDERED = "a circular buffer that is not rotated: the order of the passes is not guaranteed"
ONE_RANK = "one rank of the server; open the folder of its dumps for all ranks"
_KEYS = (b"logical_count", b"global_physical_count")


def recognises(path: Path) -> bool:
    """Whether it is such a dump, or a folder with one."""
    for file in candidates(path, NAMES):
        head = begins_with(file)
        if head.startswith(b"PK\3\4") and b"/data.pkl" in head[:256]:
            return any(key in head for key in _KEYS)
    return False


class SGLangReader(DumpReader):
    """Reads one dump, or the folder of the recorder, in which more dumps may appear."""

    def __init__(self, path: Path, name: str, asked: Asked) -> None:
        """``name``: of the run; ``asked``: E and k, where the user knows them."""
        super().__init__(path, NAMES)
        self._name, self._asked = name, asked
        self._start()

    def _start(self) -> None:
        self._kind: type[Stat] | type[Detail] | None = None
        self._run: ExactCounts | None = None
        self._steps = 0  # of stat dumps: they have no number
        self._returned: dict[int, set[int]] = {}  # forward passes, by rank, since a restart

    def _read_files(self, paths: Sequence[Path]) -> Iterator[tuple[float, Record]]:
        details: list[tuple[Path, Detail]] = []
        for number, path in enumerate(sorted(paths, key=_time_of)):
            with self._opened(path) as data:
                dump = sglang_dump.load(data)
                self._kind = self._kind or type(dump)
                if type(dump) is not self._kind:
                    raise data.broken(
                        "this folder has dumps of two modes of the recorder; name one file, or "
                        "move the others away"
                    )
                if isinstance(dump, Detail):
                    details.append((path, dump))
                    continue
                for done, counted in self._stat(data, dump):
                    for record in self._begin(counted, paths).add(counted):
                        yield (number + done) / len(paths), record
        yield from self._details(details, paths)
        for record in self._waiting():
            yield 1.0, record

    def _waiting(self) -> Iterator[Record]:
        if self._run is not None:
            yield from self._run.flush()

    def _stat(self, data: Bytes, dump: Stat) -> Iterator[tuple[float, Counted]]:
        passes = dump.counts.shape[0]
        for index in range(passes):
            rows = _routers(sglang_dump.rows_of(data, dump.counts, index))
            if rows:
                self._steps += 1
                yield index / passes, Counted(self._steps, rows)

    def _details(
        self, dumps: list[tuple[Path, Detail]], paths: Sequence[Path]
    ) -> Iterator[tuple[float, Record]]:
        """The records of the passes, in the order of their numbers between two restarts."""
        todo = sum(len(dump.passes) for _, dump in dumps)
        done = 0
        for group in self._between_restarts(dumps):
            by_number: dict[int, list[tuple[Path, Detail, Pass]]] = {}
            for path, dump in group:
                for one in dump.passes:
                    by_number.setdefault(one.number, []).append((path, dump, one))
            for number in sorted(by_number):
                done += len(by_number[number])
                counted = self._sum(number, by_number[number])
                if counted.rows:
                    for record in self._begin(counted, paths).add(counted):
                        yield done / todo, record

    def _between_restarts(
        self, dumps: list[tuple[Path, Detail]]
    ) -> Iterator[list[tuple[Path, Detail]]]:
        """The dumps in groups; a server that restarts counts its passes from the start again."""
        group: list[tuple[Path, Detail]] = []
        earlier = {number for numbers in self._returned.values() for number in numbers}
        for path, dump in dumps:
            numbers = {one.number for one in dump.passes}
            if numbers & self._returned.get(dump.rank, set()):
                yield group
                group, earlier, self._returned = [], set(), {}
            if numbers & earlier:
                raise Late  # another rank of passes that were returned without it
            self._returned.setdefault(dump.rank, set()).update(numbers)
            group.append((path, dump))
        yield group

    def _sum(self, number: int, ranks: list[tuple[Path, Detail, Pass]]) -> Counted:
        total: dict[Router, list[int]] = {}
        top_k = None
        for path, dump, one in ranks:
            with self._opened(path) as data:
                physical = sglang_dump.rows_of(data, one.counts)
                rows = _routers(sglang_dump.by_logical(physical, dump.logical))
                if one.choices is not None and rows and self._run is None:
                    layer = min(rows).layer
                    top_k = max(top_k or 0, sglang_dump.top_k_of(data, one.choices, layer) or 0)
            for router, row in rows.items():
                summed = total.setdefault(router, [0] * len(row))
                summed += [0] * (len(row) - len(summed))
                for expert, count in enumerate(row):
                    summed[expert] += count
        return Counted(number + 1, total, top_k=top_k or None)

    def _begin(self, counted: Counted, paths: Sequence[Path]) -> ExactCounts:
        if self._run is None:
            alone = self._kind is Detail and self._misses_ranks()
            times = [time for path in paths if (time := _time_of(path)[0])]
            self._run = ExactCounts(
                self._name,
                "sglang",
                self._asked,
                profile="eval",
                counts="local_rank" if alone else "exact",
                top_k=counted.top_k,
                note=ONE_RANK if alone else UNORDERED if self._kind is Stat else "",
                time=min(times, default=None),
            )
        return self._run

    def _misses_ranks(self) -> bool:
        """Whether another rank wrote a dump that is not among these."""
        ranks = set(self._returned)
        if not self.path.is_dir():
            for path in candidates(self.path.parent, NAMES, MOST_FILES):
                ranks.add(_time_of(path)[1])
        return len(ranks) > len(self._returned) or ranks != set(range(len(ranks)))

    @contextmanager
    def _opened(self, path: Path) -> Iterator[Bytes]:
        with opened(path) as data:
            self._check_unchanged(data, path)
            yield data


def _routers(rows: Sequence[Sequence[int]]) -> dict[Router, list[int]]:
    """The rows that counted something, by layer."""
    return {Router(0, layer): list(row) for layer, row in enumerate(rows) if any(row)}


def _time_of(path: Path) -> tuple[float, int, str]:
    found = NAMES.fullmatch(path.name)
    if found is None:
        return 0.0, 0, safe_text(path.name)
    return float(found[1]), int(found[2] or 0), ""
