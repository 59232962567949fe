"""The choices of engines and RL trainers: ``routed_experts`` [tokens, layers, k].

- vLLM: nested lists. SGLang: base64 of int32 in ``meta_info``.
- prime-rl (``inference/vllm/routed_experts.py``): ``{"data": base64, "shape", "start", "dtype"}``,
  without the tokens before ``start``.
- NeMo-RL (``utils/routed_experts_codec.py``): ``nrlre1:DTYPE:SxLxK:BASE64`` in a message.
- slime and miles: ``samples`` with ``tokens`` and ``rollout_routed_experts``, an array of numpy.
- A ``.npy`` of integers.

A row of equal ids, -1 or 0 in all slots, is not a choice: a layer without MoE, a lost route, the
last sampled token. For k = 1 only -1 is, and 0 in all layers of the last token.
"""

from __future__ import annotations

import base64
import math
import re
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import eq
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from microscope_tui.extensions.anatomy.layout import MOST_CHOICES, MOST_EXPERTS, Shape
from microscope_tui.extensions.anatomy.routing_file import RoutingWriter
from microscope_tui.runlog import safe_text
from microscope_tui.sources import torch_file
from microscope_tui.sources.dumps import (
    MOST_BYTES,
    Bytes,
    Counted,
    DumpReader,
    opened,
    routed,
    tokens_of,
)
from microscope_tui.sources.keys import MAX_LAYERS, Rule
from microscope_tui.sources.plain_pickle import Span, numbers
from microscope_tui.sources.reader import Record, Unreadable

CHOICE_SUFFIXES = (".jsonl", ".npy", ".pt")
_NONE = -1
_TOKENS_AT_ONCE = 1 << 16
_NUMPY = b"\x93NUMPY"
_ZIP = b"PK\3\4"
_DUMP = b"/data.pkl", b"rollout_id", b"samples"
_TYPES = {"int8": "b", "int16": "h", "int32": "i", "uint8": "B", "uint16": "H"}
_Rows = list[list[list[int]]]
_Sizes = tuple[int, int, int]
_Ids = Sequence[int] | None
_WRONG = Unreadable, ValueError, msgspec.MsgspecError, OverflowError, RecursionError


@dataclass(frozen=True, slots=True)
class _Sample:
    """A sequence of tokens; those from ``start`` on have choices ``shape`` [tokens, layers, k]."""

    token_ids: _Ids
    start: int
    shape: _Sizes
    code: str
    raw: Iterable[bytes]

    def __post_init__(self) -> None:
        rows, layers, k = self.shape
        fits = rows > 0 and 0 < layers <= MAX_LAYERS and 0 < k <= MOST_CHOICES
        if not fits or not 0 <= self.start <= self.tokens - rows <= self.start + 1:
            raise Unreadable(
                f"choices {list(self.shape)} from token {self.start:,} on, for {self.tokens:,} "
                "tokens: expected [tokens, layers, k], all or all but the last"
            )
        if not all(type(one) is int and 0 <= one < 1 << 32 for one in self.token_ids or ()):
            raise Unreadable("a token id is negative or above 4,294,967,295")

    @property
    def tokens(self) -> int:
        return self.shape[0] if self.token_ids is None else len(self.token_ids)

    def pieces(self) -> Iterator[tuple[int, Sequence[int]]]:
        """The first token, and the choices of some tokens, flat: token, layer, slot."""
        at, held = self.start, b""
        rows, layers, k = self.shape
        size = layers * k * array(self.code).itemsize
        for piece in self.raw:
            held += piece
            count = len(held) // size
            if at + count > self.start + rows:
                break
            at += count
            ids: Sequence[int] = array(self.code, held[: count * size])
            held = held[count * size :]
            if k == 1 and at == self.tokens and not any(ids[-layers:]):
                ids = [*ids[:-layers], *[_NONE] * layers]
            if count:
                yield at - count, ids
        if held or at != self.start + rows:
            raise Unreadable(f"the choices of {rows:,} tokens have another number of bytes")

    def packed(self, ids: Sequence[int], layer: int, experts: int, code: str = "H") -> array[int]:
        """Those of one layer in a piece; the largest number is an empty slot, behind the others."""
        _, layers, k = self.shape
        slots = [ids[layer * k + slot :: layers * k] for slot in range(k)]
        # No token chooses an expert twice: equal ids are a token without a route.
        has_holes = k > 1 and any(map(eq, slots[0], slots[1]))
        if not has_holes and min(map(min, slots)) >= 0 and max(map(max, slots)) < experts:
            return array(code, chain.from_iterable(zip(*slots, strict=True)))
        out = array(code)
        empty = (1 << 8 * out.itemsize) - 1
        for row in zip(*slots, strict=True):
            chosen = [] if k > 1 and min(row) == max(row) else [one for one in row if one != _NONE]
            if wrong := [one for one in chosen if not 0 <= one < experts]:
                raise Unreadable(
                    f"expert {wrong[0]:,} in layer {layer}: expected -1 to {experts - 1:,}"
                )
            out.extend([*chosen, *[empty] * (k - len(chosen))])
        return out

    def layers_with_choices(self, known: Collection[int]) -> set[int]:
        """In its first piece, beside those that are known."""
        _, ids = next(self.pieces())
        layers = (one for one in range(self.shape[1]) if one not in known)
        return {one for one in layers if min(self.packed(ids, one, MOST_EXPERTS)) < MOST_EXPERTS}


def convert_choices(
    path: Path, target: Path, beside: Shape | None = None, top_k: int | None = None
) -> bool:
    """Write ``target``, a ``routing.bin``, from choices; true if the token ids are known.

    ``beside``: sizes of the probe that they are compared with. ``top_k``: for choices without a
    shape, if there is no probe. ``OSError`` (``Unreadable``): another form, or expert ids that the
    model of ``beside`` lacks.
    """
    known = (top_k, ()) if beside is None else (beside.top_k, beside.layers)
    tokens, has_ids, found = 0, True, set[int]()
    with opened(path) as data:
        try:
            for _, sample in _samples(data, *known):
                tokens += sample.tokens
                has_ids = has_ids and sample.token_ids is not None
                found |= sample.layers_with_choices(found)
            _, layers, k = sample.shape
            kept = sorted(found)
            if not kept or (beside is not None and len(beside.layers) == layers):
                kept = list(range(layers))
            elif beside is not None and found < set(beside.layers) <= set(range(layers)):
                kept = list(beside.layers)  # one without any choice is compared, and named
            experts = MOST_EXPERTS if beside is None else beside.num_experts
            shape = Shape(tuple(kept), tuple(f"L{n}" for n in kept), experts, k, tokens)
            if beside is not None and len(beside.layers) == len(kept):
                shape = replace(shape, layers=beside.layers, layer_names=beside.layer_names)
            writer = RoutingWriter(target, shape)
            try:
                for _, sample in _samples(data, *known):
                    _write(sample, kept, writer)
                writer.finish()
            except BaseException:
                writer.abandon()
                raise
        except (Unreadable, ValueError) as error:
            raise Unreadable(f"{path}: {error}") from None
    return has_ids


def _write(sample: _Sample, kept: Sequence[int], writer: RoutingWriter) -> None:
    zeros = [0] * sample.tokens
    first = writer.put_tokens(sample.token_ids or zeros, [b""] * len(zeros), zeros, zeros)
    section = writer.places.sections["ids"]
    for place in range(len(kept)):
        writer.put("ids", place, first, b"\xff" * section.row * len(zeros))
    for at, ids in sample.pieces():
        for place, layer in enumerate(kept):
            packed = sample.packed(ids, layer, writer.shape.num_experts, section.code)
            writer.put("ids", place, first + at, packed.tobytes())


class RoutedReader(DumpReader):
    """Counts: a step per response or sample, without the layers without a choice."""

    @classmethod
    def begins(cls, head: bytes, own: Sequence[Rule]) -> bool:
        if head.startswith(_ZIP):
            return all(name in head[:4096] for name in _DUMP)
        return head.startswith(_NUMPY) or (head.lstrip()[:1] == b"{" and b'routed_experts"' in head)

    def _read_files(self, paths: Sequence[Path]) -> Iterator[tuple[float, Record]]:
        for path in paths:
            with self._opened(path) as data:
                yield from self._steps(data)

    def _steps(self, data: Bytes) -> Iterator[tuple[float, Record]]:
        run = self._begin("routed-experts", profile="eval", is_whole=True)
        experts = min(MOST_EXPERTS, self._request.num_experts or MOST_EXPERTS)
        for step, (done, sample) in enumerate(_samples(data, self._request.top_k), 1):
            _, layers, k = sample.shape
            counts = [Counter[int]() for _ in range(layers)]
            for _, ids in sample.pieces():
                for layer, of in enumerate(counts):
                    of.update(sample.packed(ids, layer, experts))
            highest = max(expert for of in counts for expert in (*of, 0) if expert < experts)
            rows = routed([of[expert] for expert in range(highest + 1)] for of in counts)
            for record in run.add(Counted(step, rows, tokens_of(rows, k), k)) if rows else ():
                yield done, record


_Found = Iterator[tuple[str, float, Callable[[], _Sample]]]


def _samples(
    data: Bytes, k: int | None, layers: Sequence[int] = ()
) -> Iterator[tuple[float, _Sample]]:
    head = data.read(0, min(8, data.size), "the beginning")
    found = _responses(data, partial(_without_shape, k, layers))
    if head.startswith((_NUMPY, _ZIP)):
        found = _arrays(data) if head.startswith(_NUMPY) else _dumped(data)
    sizes = None
    for place, done, make in found:
        try:
            sample = make()
        except _WRONG as error:
            raise Unreadable(f"{place}: {safe_text(error, 200)}") from None
        if sizes not in (None, sample.shape[1:]):
            raise Unreadable(f"{place}: [layers, k] is {sample.shape[1:]}, before {sizes}")
        sizes = sample.shape[1:]
        yield done, sample
    if sizes is None:
        raise Unreadable("no choices in it: ask the engine to return routed_experts")


_HEADER = re.compile(
    rb"\{\s*'descr':\s*'[<|]([iu][1248])',\s*'fortran_order':\s*False,"
    rb"\s*'shape':\s*\((\d{1,12}),\s*(\d{1,12}),\s*(\d{1,12}),?\s*\),?\s*\}\s*"
)


def _arrays(data: Bytes) -> _Found:
    """A ``.npy`` (numpy.lib.format, version 1) in samples without token ids."""
    head = data.read(0, min(4096, data.size), "the header")
    start = 10 + int.from_bytes(head[8:10], "little")
    found = _HEADER.fullmatch(head[10:start])
    if found is None or head[6:7] != b"\1":
        described = safe_text(head[10:start].decode("ascii", "replace").strip(), 120)
        expected = "integers of shape (tokens, layers, k), little-endian and in C order"
        raise Unreadable(f"holds {described}: expected {expected}")
    code = torch_file.INTEGERS[found[1].decode()]
    tokens, layers, k = (int(found[n]) for n in (2, 3, 4))
    row = layers * k * array(code).itemsize
    if (whole := start + tokens * row) != data.size:
        raise Unreadable(f"has {data.size:,} bytes instead of {whole:,}: cut off or damaged")
    for at in range(0, tokens, _TOKENS_AT_ONCE):
        end = min(at + _TOKENS_AT_ONCE, tokens)
        raw = data.pieces(start + at * row, start + end * row, "the numbers")
        make = partial(_Sample, None, 0, (end - at, layers, k), code, raw)
        yield f"tokens from {at:,} on", end / tokens, make


def _dumped(data: Bytes) -> _Found:
    content = torch_file.load(data)
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list):
        raise Unreadable("has no samples: save one with --save-debug-rollout-data")
    for number, sample in enumerate(samples, 1):
        routes = sample.get("rollout_routed_experts") if isinstance(sample, dict) else None
        if routes is not None:  # aborted, for example
            make = partial(_saved, data, sample.get("tokens"), routes)
            yield f"sample {number:,}", number / len(samples), make


def _saved(data: Bytes, tokens: Any, routes: Any) -> _Sample:
    found = torch_file.array_of(data, routes)
    if found is None:
        raise Unreadable("rollout_routed_experts is not integers [tokens, layers, k]")
    if not isinstance(tokens, list):
        raise Unreadable("its tokens are not a list")
    ids: list[int] = []
    for one in tokens:
        ids += numbers(data.read(one.start, len(one), "tokens")) if type(one) is Span else [one]
    return _Sample(ids, 0, *found)


class _Object(msgspec.Struct):
    data: str
    shape: _Sizes
    start: int = 0
    dtype: str = "uint8"


class _Fields(msgspec.Struct):
    """Of a response, its choice, or its message: engines differ."""

    prompt_token_ids: list[int] | None = None
    input_ids: list[int] | None = None
    generation_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    output_ids: list[int] | None = None
    prompt_routed_experts: _Rows | None = None
    routed_experts: str | _Rows | _Object | None = None
    meta_info: _Fields | None = None
    choices: list[_Fields] | None = None
    message: _Fields | None = None


_DECODER = msgspec.json.Decoder(_Fields)
_Sized = Callable[[int, _Ids], _Sizes]


def _responses(data: Bytes, sized: _Sized) -> _Found:
    number = 0
    with open(data.file, "rb", closefd=False) as file:
        file.seek(0)
        while line := file.readline(MOST_BYTES + 1):
            number += 1
            if len(line) > MOST_BYTES:
                raise Unreadable(f"line {number:,} is longer than {MOST_BYTES >> 20} MB")
            if not line.isspace():
                make = partial(_response, line, sized)
                cut = "" if line.endswith(b"\n") else " (cut off, or still written)"
                yield f"line {number:,}{cut}", file.tell() / data.size, make


def _response(line: bytes, sized: _Sized) -> _Sample:
    fields = _DECODER.decode(line)
    choice, *others = fields.choices or [_Fields()]
    if others:
        raise Unreadable(f"{1 + len(others)} choices: ask for one a request (n = 1)")
    levels = choice.message, choice, fields.message, fields.meta_info, fields

    def field(*names: str) -> Any:
        values = (getattr(level, name, None) for name in names for level in levels)
        return next((value for value in values if value is not None), None)

    prompt = field("prompt_token_ids", "input_ids")
    output = field("generation_token_ids", "token_ids", "output_ids")
    ids = None if prompt is output is None else [*(prompt or ()), *(output or ())]
    routes = field("routed_experts")
    if isinstance(routes, str | _Object):
        return _packed(routes, ids, sized)
    return _nested([*(field("prompt_routed_experts") or ()), *(routes or ())], ids)


def _nested(rows: _Rows, ids: _Ids) -> _Sample:
    if not rows or not rows[0] or not rows[0][0]:
        raise Unreadable("no routed_experts; ask the engine to return them")
    layers, k = len(rows[0]), len(rows[0][0])
    if any(len(row) != layers or any(len(one) != k for one in row) for row in rows):
        raise Unreadable(f"rows differ in size; the first has {layers} layers of {k}")
    flat = array("q", chain.from_iterable(chain.from_iterable(rows)))
    return _Sample(ids, 0, (len(rows), layers, k), "q", [flat.tobytes()])


_ENVELOPE = re.compile(r"nrlre1:(\w+):(\d{1,12})x(\d{1,6})x(\d{1,6}):")


def _packed(routes: str | _Object, ids: _Ids, sized: _Sized) -> _Sample:
    if isinstance(routes, _Object):
        found = routes
    elif envelope := _ENVELOPE.match(routes):
        tokens, layers, k = map(int, envelope.groups()[1:])
        found = _Object(routes[envelope.end() :], (tokens, layers, k), 0, envelope[1])
    else:
        found = _Object(routes, sized(len(routes) * 3 // 16, ids), 0, "int32")
    try:
        code, raw = _TYPES[found.dtype], base64.b64decode(found.data, validate=True)
    except (KeyError, ValueError):
        raise Unreadable(f"routed_experts is not base64 of {', '.join(_TYPES)}") from None
    if len(raw) != (expected := math.prod(found.shape) * array(code).itemsize):
        raise Unreadable(f"{len(raw):,} bytes: expected {expected:,} for {list(found.shape)}")
    return _Sample(ids, found.start, found.shape, code, [raw])


def _without_shape(k: int | None, layers: Sequence[int], choices: int, ids: _Ids) -> _Sizes:
    """Tokens, layers and k of SGLang's base64."""
    if k and ids:
        for tokens in (len(ids), len(ids) - 1):
            found, rest = divmod(choices, max(1, tokens) * k)
            # An engine returns the layers with MoE, or all of them.
            if found and not rest and (not layers or found == len(layers) or found > max(layers)):
                return tokens, found, k
    raise Unreadable(
        f"base64 holds no shape: {choices:,} choices need token ids, all or all but the last with "
        "choices, and --top-k"
    )
