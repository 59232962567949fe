"""An importance matrix of llama.cpp: how often each expert was chosen during calibration.

``llama-imatrix`` writes a GGUF file with ``blk.{L}.ffn_{gate,up,down}_exps.weight.counts`` (F32,
one number per expert) for each MoE layer. The tensors of one layer count the same choices, so one
of them is taken and they are never summed. It is one moment without a time axis, judged in the
profile ``eval``. The legacy format (``.dat``) has one count per tensor: not read.

GGUF: version 3, little-endian; layout in ``docs/gguf.md`` of ggml.
"""

import math
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from microscope_tui.runlog import safe_text
from microscope_tui.sources.dumps import Bytes, Counted, DumpReader, Router, tokens_of
from microscope_tui.sources.keys import MAX_LAYERS, Rule
from microscope_tui.sources.reader import Record

MOST_HEADER = 16 << 20
"""Bytes before the tensors; those of an importance matrix take less than 1 MB."""
MOST_TENSORS = 1 << 16
MOST_VALUES = 1 << 14
"""Key-value pairs."""
MOST_ARRAY = 1024
"""Elements of an array; llama.cpp writes a name per file of the calibration."""
_MOST_DIMENSIONS = 4
_F32, _STRING, _ARRAY = 0, 8, 9
_SCALARS = {
    **{0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?"},
    **{10: "<Q", 11: "<q", 12: "<d"},
}
_COUNTS = re.compile(r"blk\.(\d{1,4})\.ffn_(gate_up|gate|up|down)_exps\.weight\.counts")
Value = int | float | str | list["Value"]


class ImatrixReader(DumpReader):
    """The importance matrix of llama.cpp as a run of one step, which counts all its text."""

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        named = b"imatrix.chunk_count" in head or b"imatrix.datasets" in head
        return head.startswith(b"GGUF") and named

    def _read_files(self, paths: Sequence[Path]) -> Iterator[tuple[float, Record]]:
        for path in paths:
            with self._opened(path) as data:
                header = read_header(data)
                counts = _counts(data, header)
            top_k = self._request.top_k or _top_k(counts, header)
            run = self._begin("imatrix", profile="eval", top_k=top_k)
            for record in run.add(Counted(1, counts, tokens_of(counts, top_k))):
                yield 1.0, record


def _counts(data: Bytes, header: "GgufHeader") -> dict[Router, list[int]]:
    chosen: dict[int, str] = {}
    for name in header.tensors:
        if found := _COUNTS.fullmatch(name):
            chosen.setdefault(int(found[1]), name)
    counts: dict[Router, list[int]] = {}
    for layer, name in sorted(chosen.items()):
        row = float32(data, header, name)
        if layer >= MAX_LAYERS or not all(0 <= count < 2**53 for count in row):
            raise data.broken(f"{safe_text(name, 60)} holds {safe_text(row[:4])}, not counts")
        if any(rounded := [round(count) for count in row]):
            counts[Router(0, layer)] = rounded
    if not counts:
        raise data.broken(
            "no counts of experts (blk.*.ffn_*_exps.weight.counts): the model has no MoE layers, "
            "or another tool wrote the file"
        )
    return counts


def _top_k(counts: dict[Router, list[int]], header: "GgufHeader") -> int | None:
    """Choices per token by the first layer; the last one may have seen fewer tokens.

    ``None`` if the file does not record how many tokens the calibration had.
    """
    chunks, size = (header.values.get(f"imatrix.chunk_{key}") for key in ("count", "size"))
    tokens = chunks * size if type(chunks) is int and type(size) is int else 0
    if tokens <= 0:
        return None
    ratio = round(sum(next(iter(counts.values()))) / tokens, 3)  # float32 rounds
    return int(ratio) if ratio >= 1 and ratio.is_integer() else None


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """Where the numbers of a tensor are in a GGUF file."""

    shape: tuple[int, ...]
    """As in the file: the fastest dimension first."""
    kind: int
    offset: int
    """From the start of the data."""


@dataclass(slots=True)
class GgufHeader:
    """Everything of a GGUF file but the numbers of its tensors."""

    values: dict[str, Value]
    tensors: dict[str, TensorPlace]
    start: int
    """Where the data begins."""


def read_header(data: Bytes) -> GgufHeader:
    """Read everything but the tensors of a GGUF file, version 3.

    ``Unreadable``: not such a file, another version, damaged, or above a limit.
    """
    cursor = _Cursor(data)
    if cursor.take(4) != b"GGUF":
        raise data.broken("not a GGUF file")
    version = cursor.number("<I")
    if version != 3:
        raise data.broken(
            f"GGUF version {version}; version 3 (little-endian) is read, convert the file"
        )
    number_of_tensors, number_of_values = cursor.number("<Q"), cursor.number("<Q")
    if number_of_tensors > MOST_TENSORS or number_of_values > MOST_VALUES:
        raise data.broken(
            f"{number_of_tensors:,} tensors and {number_of_values:,} values; at most "
            f"{MOST_TENSORS:,} and {MOST_VALUES:,} are read"
        )
    values = {cursor.text(): _value(cursor, cursor.number("<I")) for _ in range(number_of_values)}
    tensors = {cursor.text(): _tensor(cursor) for _ in range(number_of_tensors)}
    alignment = values.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        raise data.broken(f"general.alignment is {safe_text(alignment, 20)}")
    return GgufHeader(values, tensors, -(-cursor.at // alignment) * alignment)


def float32(data: Bytes, header: GgufHeader, name: str) -> list[float]:
    """The numbers of the F32 tensor ``name`` in the order of the file.

    ``Unreadable``: it has another type, is too large, or is not inside the file.
    """
    tensor = header.tensors[name]
    what = f"tensor {safe_text(name, 60)}"
    if tensor.kind != _F32:
        raise data.broken(f"{what} is not F32")
    return data.numbers(header.start + tensor.offset, "f", math.prod(tensor.shape), what)


class _Cursor:
    def __init__(self, data: Bytes) -> None:
        self.data = data
        self.at = 0
        """Bytes taken."""
        self._head = data.read(0, min(data.size, MOST_HEADER), "the metadata")

    def take(self, length: int) -> bytes:
        start, self.at = self.at, self.at + length
        if self.at > len(self._head):
            raise self.data.broken(
                f"the metadata at {start:,} is not inside the first {len(self._head):,} bytes; "
                "copy the file again"
            )
        return self._head[start : self.at]

    def number(self, layout: str) -> int:
        """An integer (or another scalar, by its layout)."""
        value: int = struct.unpack(layout, self.take(struct.calcsize(layout)))[0]
        return value

    def text(self) -> str:
        return self.take(self.number("<Q")).decode("utf-8", "replace")


def _value(cursor: _Cursor, kind: int) -> Value:
    """One value; ``Unreadable`` for an array that is too long, or holds arrays."""
    if kind in _SCALARS:
        return cursor.number(_SCALARS[kind])
    if kind == _STRING:
        return cursor.text()
    if kind != _ARRAY:
        raise cursor.data.broken(f"a value of the unknown type {kind}")
    inner, length = cursor.number("<I"), cursor.number("<Q")
    if inner == _ARRAY or length > MOST_ARRAY:
        raise cursor.data.broken(
            f"an array of {length:,} elements of type {inner}; at most {MOST_ARRAY:,} are read"
        )
    return [_value(cursor, inner) for _ in range(length)]


def _tensor(cursor: _Cursor) -> TensorPlace:
    dimensions = cursor.number("<I")
    if dimensions > _MOST_DIMENSIONS:
        raise cursor.data.broken(f"a tensor has {dimensions} dimensions")
    shape = tuple(cursor.number("<Q") for _ in range(dimensions))
    return TensorPlace(shape, cursor.number("<I"), cursor.number("<Q"))
