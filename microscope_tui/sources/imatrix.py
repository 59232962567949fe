"""An importance matrix of llama.cpp: how often each expert was chosen during calibration.

``llama-imatrix`` writes a GGUF file with ``blk.{L}.ffn_{gate,up,down}_exps.weight.counts`` (F32,
one number per expert) for each MoE layer. The tensors of one layer count the same choices, so one
of them is taken and they are never summed. It is one moment without a time axis, judged in the
profile ``eval``. The legacy format (``.dat``) has one count per tensor and is refused.
"""

import re
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from microscope_tui.runlog import safe_text
from microscope_tui.sources import gguf
from microscope_tui.sources.dumps import DumpReader, begins_with
from microscope_tui.sources.exact_bytes import Bytes, opened
from microscope_tui.sources.exact_counts import Counted, ExactCounts, Router
from microscope_tui.sources.gguf import GgufHeader
from microscope_tui.sources.header import Asked
from microscope_tui.sources.keys import MAX_LAYERS
from microscope_tui.sources.reader import Record

NAMES = re.compile(r"[^/]*imatrix[^/]*", re.IGNORECASE)
_COUNTS = re.compile(r"blk\.(\d{1,4})\.ffn_(gate_up|gate|up|down)_exps\.weight\.counts")
_TENSOR_NAME = re.compile(rb"(?:blk\.\d+\.|output|token_embd)[\w.]*")
_EXACT_FLOAT = 1 << 24
_ROUNDED = "counts above 16,777,216 are rounded to float32"


def recognises(path: Path) -> bool:
    """Whether it is an importance matrix, of the present or the legacy format."""
    head = begins_with(path)
    if head.startswith(b"GGUF"):
        return b"imatrix.chunk_count" in head or b"imatrix.datasets" in head
    return _is_legacy(head)


class ImatrixReader(DumpReader):
    """Reads one file."""

    def __init__(self, path: Path, name: str, asked: Asked) -> None:
        """``name``: of the run; ``asked``: E and k, where the user knows them."""
        super().__init__(path, NAMES)
        self._name, self._asked = name, asked

    def _start(self) -> None:
        pass  # all records come from one file, at once

    def _waiting(self) -> Iterator[Record]:
        yield from ()

    def _read_files(self, paths: Sequence[Path]) -> Iterator[tuple[float, Record]]:
        for path in paths:
            with opened(path) as data:
                self._check_unchanged(data, path)
                if _is_legacy(data.read(0, min(data.size, 1 << 10), "the beginning")):
                    raise data.broken(
                        "a legacy importance matrix has one count per tensor, not per expert; "
                        "compute it again with a llama.cpp that writes GGUF"
                    )
                header = gguf.read_header(data)
                counts = _counts(data, header)
            for record in self._snapshot(counts, header):
                yield 1.0, record

    def _snapshot(self, counts: dict[Router, list[int]], header: GgufHeader) -> Iterator[Record]:
        top_k = self._asked.top_k or _top_k(counts, _tokens(header))
        tokens = {
            router: sum(row) // top_k
            for router, row in counts.items()
            if top_k is not None and sum(row) % top_k == 0 and max(row) * top_k <= sum(row)
        }
        run = ExactCounts(
            self._name,
            "imatrix",
            self._asked,
            profile="eval",
            top_k=top_k,
            note=_note(counts, header),
        )
        yield from run.add(Counted(1, counts, tokens))
        yield from run.flush()


def _counts(data: Bytes, header: GgufHeader) -> dict[Router, list[int]]:
    """The counts of each layer, from one of its tensors."""
    chosen: dict[int, str] = {}
    for name in header.tensors:
        if found := _COUNTS.fullmatch(name):
            chosen.setdefault(int(found[1]), name)
    counts: dict[Router, list[int]] = {}
    for layer, name in sorted(chosen.items()):
        row = gguf.float32(data, header.tensors[name], name)
        if layer >= MAX_LAYERS or not all(0 <= count < 2**53 for count in row):
            raise data.broken(f"{safe_text(name, 60)} holds {safe_text(row[:4])}, not counts")
        if any(row):
            counts[Router(0, layer)] = [round(count) for count in row]
    if not counts:
        raise data.broken(
            "no counts of experts (blk.*.ffn_*_exps.weight.counts): the model has no MoE layers, "
            "or another tool wrote the file"
        )
    return counts


def _tokens(header: GgufHeader) -> int:
    """Tokens of the calibration; 0 if the file does not say."""
    chunks, size = (header.values.get(f"imatrix.chunk_{key}") for key in ("count", "size"))
    return chunks * size if type(chunks) is int and type(size) is int else 0


def _top_k(counts: dict[Router, list[int]], tokens: int) -> int | None:
    """Choices per token by most layers; the last layer may have seen fewer tokens."""
    if tokens <= 0:
        return None
    ratios = Counter(round(sum(row) / tokens, 3) for row in counts.values())  # float32 rounds
    ratio, _ = max(ratios.items(), key=lambda item: (item[1], item[0]))
    return int(ratio) if ratio >= 1 and ratio.is_integer() else None


def _note(counts: dict[Router, list[int]], header: GgufHeader) -> str:
    notes = []
    datasets = header.values.get("imatrix.datasets")
    if isinstance(datasets, list) and datasets:
        shown = ", ".join(safe_text(str(name).rpartition("/")[2], 40) for name in datasets[:3])
        notes.append(f"calibrated on {shown}" + (" …" if len(datasets) > 3 else ""))
    if max(map(max, counts.values())) > _EXACT_FLOAT:
        notes.append(_ROUNDED)
    return "; ".join(notes)


def _is_legacy(head: bytes) -> bool:
    """Number of entries, length of the first name, and the name of a tensor of llama.cpp."""
    if len(head) < 8:
        return False
    entries, length = struct.unpack_from("<ii", head)
    name = head[8 : 8 + max(0, min(length, 256))]
    return 0 < entries < 1 << 20 and len(name) == length and bool(_TENSOR_NAME.fullmatch(name))
