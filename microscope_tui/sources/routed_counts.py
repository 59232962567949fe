"""The choices of engines and RL trainers as a run: one step per response or sample.

The counts are exact. Layers without a choice are left out, the others keep their numbers. The
highest expert of the whole file gives the number of experts if ``--num-experts`` does not, so the
file is read twice. The router of an engine does not learn: the profile is ``eval``.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from microscope_tui.routing import MOST_EXPERTS
from microscope_tui.sources.dumps import Bytes, Counted, DumpReader, routed, tokens_of
from microscope_tui.sources.keys import Rule
from microscope_tui.sources.reader import Record
from microscope_tui.sources.routed_experts import BadChoices, packed, samples_of, survey

_DUMP = b"/data.pkl", b"rollout_id", b"samples"


class RoutedReader(DumpReader):
    """Reads one file."""

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        if head.startswith(b"PK\3\4"):
            return all(name in head[:4096] for name in _DUMP)
        return head.startswith(b"\x93NUMPY") or (
            head.lstrip().startswith(b"{") and b'routed_experts"' in head
        )

    def _read_files(self, paths: Sequence[Path]) -> Iterator[tuple[float, Record]]:
        for path in paths:
            with self._opened(path) as data:
                try:
                    yield from self._steps(data)
                except BadChoices as error:
                    raise data.broken(str(error)) from None

    def _steps(self, data: Bytes) -> Iterator[tuple[float, Record]]:
        request = self._request
        size = survey(samples_of(data, request.top_k))
        samples = samples_of(data, request.top_k)
        highest = (max(ids) for sample in samples for _, ids in sample.pieces())
        experts = min(MOST_EXPERTS, request.num_experts or 1 + max(highest))
        run = self._begin(
            "routed-experts",
            profile="eval",
            top_k=size.k,
            num_experts=experts,
            hidden_layers=size.layers if len(size.kept) < size.layers else 0,
        )
        for step, sample in enumerate(samples_of(data, request.top_k), 1):
            counts = [Counter[int]() for _ in range(size.layers)]
            for _, ids in sample.pieces():
                for layer in size.kept:
                    counts[layer].update(packed(ids, layer, size, experts, "H"))
            rows = routed([of[expert] for expert in range(experts)] for of in counts)
            for record in run.add(Counted(step, rows, tokens_of(rows, size.k))) if rows else ():
                yield sample.done, record
