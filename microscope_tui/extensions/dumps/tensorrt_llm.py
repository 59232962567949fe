"""Expert statistics of TensorRT-LLM as a run: one step per iteration.

``EXPERT_STATISTIC_ITER_RANGE=100-200`` makes every rank write ``rank{R}.safetensors`` with the
tokens per expert of each ``{iteration}_{layer}``, and rank 0 ``meta_info.json`` with E and k. Some
versions write ``rank{R}_raw.safetensors`` with the chosen experts of each token instead; where a
rank has both, the counts are taken. The ranks are summed, as TensorRT-LLM's own report does. The
step is the iteration + 1 (iterations completed). A file of the folder means the whole folder.
"""

import math
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from microscope_tui.runlog import safe_text
from microscope_tui.sources.dumps import (
    MOST_NUMBERS,
    Bytes,
    Counted,
    DumpReader,
    Late,
    Router,
    add_counts,
    counts_of_choices,
    opened,
    tokens_of,
)
from microscope_tui.sources.keys import MAX_EXPERTS, MAX_LAYERS, Rule
from microscope_tui.sources.reader import Record, SourceRequest, Unreadable

MOST_META_BYTES = 1 << 16
MOST_ENTRIES = 1 << 20
"""Tensors of all ranks together; each takes 200 bytes of memory."""
MISSING = "the files of some ranks are missing; these are the counts of the others"
_KEY = re.compile(r"(\d{1,12})_(\d{1,5})")
_FIRST_KEY = re.compile(rb'.{8}\{(?:"__metadata__":\{[^{}]*\},)?"\d+_\d+":\{"dtype"', re.DOTALL)
_META_KEYS = (b'"num_experts"', b'"num_experts_per_token"')
_MOST_HEADER = 16 << 20
"""About 150 bytes a tensor: more than 100,000 tensors."""
_INTEGERS = {
    **{"I64": "q", "I32": "i", "I16": "h", "I8": "b"},
    **{"U64": "Q", "U32": "I", "U16": "H", "U8": "B"},
}
_Natural = Annotated[int, msgspec.Meta(ge=0, lt=2**48)]
_Experts = Annotated[int, msgspec.Meta(gt=0, lt=MAX_EXPERTS)]


class _Meta(msgspec.Struct):
    num_experts: _Experts | None = None
    num_experts_per_token: _Experts | None = None


class TensorRTReader(DumpReader):
    names = re.compile(r"meta_info\.json|rank(\d{1,6})(_raw)?\.safetensors")

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        is_meta = head.startswith(b"{") and all(key in head for key in _META_KEYS)
        return is_meta or _FIRST_KEY.match(head) is not None

    def __init__(self, path: Path, name: str, request: SourceRequest) -> None:
        super().__init__(path if path.is_dir() else path.parent, name, request)

    def _read_files(self, paths: Sequence[Path]) -> Iterator[tuple[float, Record]]:
        if self._run is not None:
            raise Late  # another rank of the same iterations
        meta = _Meta()
        for path in paths:
            if path.suffix == ".json":
                with opened(path) as data:
                    meta = _meta(data)
        files = _by_rank(paths)
        ranks = _ranks(files.values())
        counts = "exact"
        note = ""
        if list(files) != list(range(len(files))):
            counts = "local_rank"
            note = MISSING
        run = self._begin(
            "tensorrt-llm",
            profile="eval",
            counts=counts,
            top_k=meta.num_experts_per_token,
            num_experts=meta.num_experts or 0,
            note=note,
        )
        top_k = self._request.top_k or meta.num_experts_per_token
        iterations = sorted({iteration for rank in ranks for iteration in rank.tensors})
        for number, iteration in enumerate(iterations):
            rows = self._sum(ranks, iteration, meta.num_experts)
            if rows:
                counted = Counted(iteration + 1, rows, tokens_of(rows, top_k))
                for record in run.add(counted):
                    yield number / len(iterations), record

    def _sum(
        self, ranks: "Sequence[_Rank]", iteration: int, experts: int | None
    ) -> dict[Router, list[int]]:
        total: dict[Router, list[int]] = {}
        for rank in ranks:
            with self._opened(rank.path) as data:
                for layer, row in rank.rows(data, iteration, experts):
                    add_counts(total.setdefault(Router(0, layer), []), row)
        return {router: row for router, row in total.items() if any(row)}


def _ranks(paths: Iterable[Path]) -> "list[_Rank]":
    ranks: list[_Rank] = []
    number = 0
    for path in paths:
        ranks.append(_Rank(path))
        number += sum(map(len, ranks[-1].tensors.values()))
        if number > MOST_ENTRIES:
            raise Unreadable(f"more than {MOST_ENTRIES:,} tensors; record fewer iterations")
    return ranks


class _Rank:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_raw = path.stem.endswith("_raw")
        self.tensors: dict[int, list[tuple[int, Tensor]]] = {}
        """By iteration, with their layers."""
        with opened(path) as data:
            for name, tensor in read_tensors(data).items():
                found = _KEY.fullmatch(name)
                if found is None or int(found[2]) >= MAX_LAYERS:
                    raise data.broken(
                        f"tensor {safe_text(name, 40)!r} is not named ITERATION_LAYER; these are "
                        "not expert statistics of TensorRT-LLM"
                    )
                self.tensors.setdefault(int(found[1]), []).append((int(found[2]), tensor))

    def rows(
        self, data: Bytes, iteration: int, experts: int | None
    ) -> Iterator[tuple[int, list[int]]]:
        """Layer and counts per expert of one iteration, in raw files counted from the choices.

        ``Unreadable``: they are not counts, or not choices, of ``experts`` experts; ``None`` if
        that number is unknown.
        """
        for layer, tensor in self.tensors.get(iteration, ()):
            name = f"{iteration}_{layer}"
            numbers = integers(data, tensor, name)
            dimensions = 2 if self._is_raw else 1
            highest = MAX_EXPERTS if self._is_raw else 2**40
            if len(tensor.shape) != dimensions or not all(0 <= n < highest for n in numbers):
                raise data.broken(f"tensor {name!r} of shape {tensor.shape} holds no counts")
            row = counts_of_choices(numbers) if self._is_raw else numbers
            if len(row) > (experts or MAX_EXPERTS):
                raise data.broken(
                    f"tensor {name!r} has {len(row):,} experts, meta_info.json has {experts}"
                )
            yield layer, row


def _by_rank(paths: Sequence[Path]) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in paths:
        match = TensorRTReader.names.fullmatch(path.name)
        if match is not None and match[1] and (match[2] is None or int(match[1]) not in found):
            found[int(match[1])] = path
    if not found:
        raise Unreadable(
            "meta_info.json without a rank*.safetensors: copy the files of all ranks beside it"
        )
    return dict(sorted(found.items()))


def _meta(data: Bytes) -> _Meta:
    raw = data.read(0, min(data.size, MOST_META_BYTES), "meta_info.json")
    try:
        return msgspec.json.decode(raw, type=_Meta)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise data.broken(
            f"not the meta_info.json of TensorRT-LLM: {safe_text(error, 60)}"
        ) from None


class Tensor(msgspec.Struct):
    """A tensor of a safetensors file, as its header names it."""

    dtype: str
    """``I64``, ``F32`` …"""
    shape: Annotated[tuple[_Natural, ...], msgspec.Meta(max_length=16)]
    data_offsets: tuple[_Natural, _Natural]
    """Begin and end; as read, from the start of the file."""


def read_tensors(data: Bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name; their numbers stay in the file.

    Layout: 8 bytes with the length of the header, the header in JSON, then the data.

    Raises:
        Unreadable: it is damaged, above a limit, or has tensors that overlap or lie outside the
            file.
    """
    (length,) = data.numbers(0, "Q", 1, "the length of the header")
    if length > _MOST_HEADER:
        raise data.broken(f"a header of {length:,} bytes; at most {_MOST_HEADER:,} are read")
    try:
        raw = msgspec.json.decode(data.read(8, length, "the header"), type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        found = {name: msgspec.json.decode(entry, type=Tensor) for name, entry in raw.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise data.broken(
            f"not a safetensors file: its header is damaged ({safe_text(error, 60)})"
        ) from None
    before = 8 + length
    for name, tensor in sorted(found.items(), key=lambda item: item[1].data_offsets):
        start, end = (8 + length + offset for offset in tensor.data_offsets)
        if not before <= start <= end <= data.size:
            raise data.broken(
                f"tensor {safe_text(name, 40)!r} overlaps another one or is not inside the file"
            )
        tensor.data_offsets = (start, end)
        before = end
    return found


def integers(data: Bytes, tensor: Tensor, name: str) -> list[int]:
    """The numbers of a tensor of integers, in row-major order.

    ``Unreadable``: it has another type or another size, or is too large.
    """
    number = math.prod(tensor.shape)
    code = _INTEGERS.get(tensor.dtype)
    start, end = tensor.data_offsets
    what = f"tensor {safe_text(name, 40)!r}"
    if code is None or end - start != number * struct.calcsize(code):
        raise data.broken(
            f"{what}: {end - start:,} bytes for {number:,} numbers of type "
            f"{safe_text(tensor.dtype, 12)}; at most {MOST_NUMBERS:,} integers are read"
        )
    return data.numbers(start, code, number, what)
