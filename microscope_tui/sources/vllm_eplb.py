"""Expert loads that vLLM writes for offline load balancing (pull request 41141) as a run.

A line holds the loads of one step of all slots, and the expert in each: ``{"record_type":
"eplb_load_stats", "step", "expert_load": [layer][slot], "p2l_map": [layer][slot]}``. A line
``eplb_load_meta`` before them has ``num_ranks``; in the first revision every line has it. Other
lines are those of scripts. The router of a server does not learn, so the profile is ``eval``.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from microscope_tui.runlog import Tail, safe_text
from microscope_tui.sources.dumps import Counted, CountsReader, by_logical, routed, tokens_of
from microscope_tui.sources.keys import MAX_ROW_BYTES, Rule
from microscope_tui.sources.reader import Batch, Record, SourceRequest, Unreadable

LAYERS = "layers count MoE layers only, from 0: their depths in the model are not in the file"

_Row = Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]], msgspec.Meta(min_length=1)]


class _Line(msgspec.Struct):
    record_type: str
    num_ranks: Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)] = 0


class _Loads(msgspec.Struct):
    step: Annotated[int, msgspec.Meta(ge=0, lt=2**60)]
    expert_load: Annotated[list[_Row], msgspec.Meta(min_length=1)]
    p2l_map: list[_Row]

    def __post_init__(self) -> None:
        shapes = {len(row) for rows in (self.expert_load, self.p2l_map) for row in rows}
        same = len(shapes) == 1 and len(self.expert_load) == len(self.p2l_map)
        if not same or max(map(max, self.p2l_map)) >= max(shapes):
            raise ValueError("expert_load and p2l_map do not fit: slots, or an expert without one")


class VllmReader(CountsReader):
    """Follows one file."""

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        return head.startswith(b"{") and b'"record_type"' in head and b'"eplb_load_' in head

    def __init__(self, path: Path, name: str, request: SourceRequest) -> None:
        super().__init__(path, name, request)
        self._tail = Tail(path, MAX_ROW_BYTES)

    def _start(self) -> None:
        super()._start()
        self._ranks = 1
        self._last = -1  # step

    def read(self, max_bytes: int = 1 << 20) -> Batch:
        found = self._tail.read_lines(max_bytes)
        if found.restarted:
            self._start()
        records: list[Record] = []
        for number, line in found.lines if self._failed is None else ():
            try:
                records += self._records(line) if line.strip() else ()
            except Unreadable as why:
                self._failed = Unreadable(
                    f"{safe_text(self.path.name, 60)}, line {number:,}: {why}"
                )
                break
            except (ValueError, RecursionError) as error:  # a server was killed within the line
                self._tail.defects.add(number, f"no line of loads: {safe_text(error, 120)}")
        records += self._flush()
        self.report(self._tail)
        self.defects = self._tail.defects
        if self._failed is not None and not records:
            raise self._failed
        return Batch(records, found.restarted)

    def _records(self, line: bytes) -> Iterator[Record]:
        """The records of a line; ``Unreadable`` where another run begins."""
        head = msgspec.json.decode(line, type=_Line)
        self._ranks = head.num_ranks or self._ranks
        if head.record_type != "eplb_load_stats":
            return
        loads = msgspec.json.decode(line, type=_Loads)
        if loads.step <= self._last:
            raise Unreadable(
                f"step {loads.step} after step {self._last}; two servers wrote to this file: give "
                "each its own"
            )
        self._last = loads.step
        summed = by_logical(loads.expert_load, loads.p2l_map)
        ranks = 1 if len(summed[0]) % self._ranks else self._ranks  # copies made them divide
        run = self._run or self._begin(
            "vllm-eplb", profile="eval", note=LAYERS, ranks=ranks, is_live=True
        )
        rows = routed(summed)
        yield from run.add(Counted(loads.step, rows, tokens_of(rows, self._request.top_k)))
