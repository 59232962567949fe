"""Converts ``routed_experts`` of an inference engine to a ``routing.bin``.

It reads a ``.npy`` of integers [tokens, layers, k], without numpy or pickle, and JSON lines of
responses: vLLM's nested lists (``prompt_routed_experts`` and ``routed_experts``
[tokens][layers][k]) and SGLang's base64 of int32 in ``meta_info``. Layers without MoE hold -1 and
are dropped. The last sampled token is never routed: engines leave it out or fill it with zeros,
which do not mean expert 0, so it stays empty here.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from microscope_tui.routing.file import RoutingWriter
from microscope_tui.routing.layout import MOST_EXPERTS, MOST_LAYERS, BadRouting, Shape
from microscope_tui.runlog import open_regular_file, safe_text

SUFFIXES = (".jsonl", ".npy")
_ROWS_AT_ONCE = 4096
_NONE = -1
_MOST_LINE = 64 << 20
_Rows = list[list[list[int]]]


class BadEngineOutput(ValueError):
    """The file cannot be read as routed experts; the message has the place and the reason."""


def convert(path: Path, target: Path, beside: Shape | None = None) -> bool:
    """Write ``target`` from an engine's output; true if the token ids are known.

    ``beside``: sizes of the probe that it is compared with. Without it the depths are those of the
    engine's layers, and the number of experts is unknown. ``BadEngineOutput``: another form, or
    expert ids that the model of ``beside`` lacks; else ``OSError``.
    """
    try:
        source = _Array(path) if path.suffix == ".npy" else _Lines(path, beside)
        _write(source, target, beside)
        return source.has_token_ids
    except (BadEngineOutput, BadRouting) as error:
        raise BadEngineOutput(f"{path}: {error}") from None


def _write(source: _Array | _Lines, target: Path, beside: Shape | None) -> None:
    tokens, layers, k = source.shape
    if not (0 < layers <= MOST_LAYERS and tokens and k):
        raise BadEngineOutput(f"{tokens:,} tokens, {layers:,} layers, k {k:,}: nothing to compare")
    kept = _moe_layers(source, layers, k, beside)
    shape = Shape(tuple(kept), tuple(f"L{layer}" for layer in kept), MOST_EXPERTS, k, tokens)
    if beside is not None:
        shape = replace(shape, num_experts=beside.num_experts)
        if len(beside.layers) in (layers, len(kept)):
            shape = replace(shape, layers=beside.layers, layer_names=beside.layer_names)
    writer = RoutingWriter(target, shape)
    try:
        for ids, rows in source.pieces():
            count = len(rows) // (layers * k)
            zeros = [0] * count
            first = writer.put_tokens(ids or zeros, [b""] * count, zeros, zeros)
            for place, layer in enumerate(kept):
                slots = [rows[layer * k + slot :: layers * k] for slot in range(k)]
                writer.put("ids", place, first, _packed(slots, layer, writer))
        writer.finish()
    except BaseException:
        writer.abandon()
        raise


def _moe_layers(source: _Array | _Lines, layers: int, k: int, beside: Shape | None) -> list[int]:
    """Those that chose an expert for any of the first tokens."""
    _, rows = next(source.pieces())
    if beside is not None and len(beside.layers) == layers:
        return list(range(layers))
    kept = [
        layer for layer in range(layers) if max(rows[layer * k :: layers * k], default=-1) > _NONE
    ]
    return kept or list(range(layers))


def _packed(slots: Sequence[Sequence[int]], layer: int, writer: RoutingWriter) -> bytes:
    """The ids of one layer, -1 as the empty slot behind the others; ``slots``: choices by slot."""
    experts, k = writer.shape.num_experts, writer.shape.top_k
    low, high = min(map(min, slots)), max(map(max, slots))
    if low < _NONE or high >= experts:
        wrong = low if low < _NONE else high
        raise BadEngineOutput(
            f"expert {wrong:,} in layer {layer}: expected 0 to {experts - 1:,}, or -1"
        )
    rows: Iterable[Sequence[int]] = zip(*slots, strict=True)
    # No token chooses an expert twice: zeros in all slots are a token without a route.
    unrouted = k > 1 and 0 in map(max, zip(*slots, strict=True))
    if low == _NONE or unrouted:
        empty = writer.places.empty_slot
        chosen = (
            [] if k > 1 and not any(row) else [one for one in row if one != _NONE] for row in rows
        )
        rows = ([*row, *[empty] * (k - len(row))] for row in chosen)
    code = writer.places.sections["ids"].code
    return array(code, chain.from_iterable(rows)).tobytes()


_HEADER = re.compile(
    rb"\{\s*'descr':\s*'[<|]([iu])([1248])',\s*'fortran_order':\s*False,"
    rb"\s*'shape':\s*\((\d{1,12}),\s*(\d{1,12}),\s*(\d{1,12}),?\s*\),?\s*\}\s*"
)
_CODES = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}


class _Array:
    """A ``.npy`` of one sequence of tokens without ids: little-endian integers in C order.

    A magic, a version, the length of a header, and the header, a literal of a Python dict
    (numpy.lib.format). Only very long headers need a version above 1.
    """

    has_token_ids = False

    def __init__(self, path: Path) -> None:
        self._path = path
        with os.fdopen(open_regular_file(path), "rb") as file:
            actual = os.fstat(file.fileno()).st_size
            head = file.read(10)
            length = int.from_bytes(head[8:], "little")
            header = file.read(length)
        if not head.startswith(b"\x93NUMPY\1"):
            raise BadEngineOutput("is not a .npy file of version 1")
        found = _HEADER.fullmatch(header)
        if found is None:
            raise BadEngineOutput(
                f"holds {safe_text(header.decode('latin-1').strip(), 120)}: expected integers of "
                "shape (tokens, layers, k), little-endian and in C order"
            )
        kind, size, *shape = (part.decode() for part in found.groups())
        self.shape = tuple(map(int, shape))
        """Tokens, layers, k."""
        tokens, layers, k = self.shape
        self._code = _CODES[kind + size]
        self._row = layers * k * int(size)
        self._start = 10 + length
        expected = self._start + tokens * self._row
        if expected != actual:
            raise BadEngineOutput(
                f"has {actual:,} bytes instead of {expected:,}: cut off or damaged"
            )

    def pieces(self) -> Iterator[tuple[None, Sequence[int]]]:
        tokens, layers, k = self.shape
        with os.fdopen(open_regular_file(self._path), "rb") as file:
            file.seek(self._start)
            for start in range(0, tokens, _ROWS_AT_ONCE):
                count = min(_ROWS_AT_ONCE, tokens - start)
                rows = array(self._code, file.read(count * self._row))
                yield None, _without_last(rows, layers * k) if start + count == tokens else rows


class _Lines:
    """JSON lines of responses, one sequence after the other; the file is read twice."""

    def __init__(self, path: Path, beside: Shape | None) -> None:
        self._path = path
        self._beside = beside
        self.has_token_ids = True
        tokens = layers = k = 0
        for number, response in _responses(path, beside):
            if tokens and (layers, k) != (response.layers, response.k):
                raise BadEngineOutput(
                    f"line {number:,}: {response.layers} layers and k {response.k}, before "
                    f"{layers} and {k}"
                )
            layers = response.layers
            k = response.k
            tokens += response.tokens
            if response.token_ids is None:
                self.has_token_ids = False
        self.shape = (tokens, layers, k)

    def pieces(self) -> Iterator[tuple[Sequence[int] | None, Sequence[int]]]:
        for _, response in _responses(self._path, self._beside):
            width, rows = response.layers * response.k, response.rows
            if len(rows) < response.tokens * width:  # -1 where none was returned
                yield response.token_ids, [*rows, *[_NONE] * width]
            else:
                yield response.token_ids, _without_last(rows, width)


class _Meta(msgspec.Struct):
    routed_experts: str | _Rows | None = None


class _Choice(msgspec.Struct):
    token_ids: list[int] | None = None
    routed_experts: _Rows | None = None


class _Line(msgspec.Struct):
    prompt_token_ids: list[int] | None = None
    input_ids: list[int] | None = None
    token_ids: list[int] | None = None
    output_ids: list[int] | None = None
    prompt_routed_experts: _Rows | None = None
    routed_experts: str | _Rows | None = None
    meta_info: _Meta | None = None
    choices: list[_Choice] | None = None


@dataclass(frozen=True, slots=True)
class _Response:
    tokens: int
    token_ids: Sequence[int] | None
    layers: int
    k: int
    rows: Sequence[int]
    """Flat: token, layer, slot; of all tokens, or of all but the last."""


def _responses(path: Path, beside: Shape | None) -> Iterator[tuple[int, _Response]]:
    """The responses with their line numbers; base64, which holds no shape, needs ``beside``."""
    decoder = msgspec.json.Decoder(_Line)
    with os.fdopen(open_regular_file(path), "rb") as file:
        number = 0
        while line := file.readline(_MOST_LINE + 1):
            number += 1
            if len(line) > _MOST_LINE:
                raise BadEngineOutput(
                    f"line {number:,}: longer than {_MOST_LINE >> 20} MB; write one response a line"
                )
            if not line.strip():
                continue
            try:
                yield number, _response(decoder.decode(line), beside)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                raise BadEngineOutput(f"line {number:,}: {safe_text(error, 160)}") from None
            except BadEngineOutput as error:
                raise BadEngineOutput(f"line {number:,}: {error}") from None
    if not number:
        raise BadEngineOutput("is empty")


def _response(line: _Line, beside: Shape | None) -> _Response:
    choices = line.choices or [_Choice()]
    if len(choices) > 1:
        raise BadEngineOutput(f"{len(choices)} choices: ask for one a request (n = 1)")
    (choice,) = choices
    prompt: list[int] | None = _first(line.prompt_token_ids, line.input_ids)
    output = _first(choice.token_ids, line.token_ids, line.output_ids)
    ids = _joined(prompt, output)
    meta = line.meta_info or _Meta()
    experts: str | _Rows | None = _first(
        line.routed_experts, choice.routed_experts, meta.routed_experts
    )
    if isinstance(experts, str):
        if beside is None or ids is None:
            raise BadEngineOutput(
                "base64 holds no shape: it needs token ids, and a probe beside it"
            )
        return _placed(_from_base64(experts), beside.top_k, ids, beside=beside)
    flat, layers, k = _flat([*(line.prompt_routed_experts or ()), *(experts or ())])
    return _placed(flat, k, ids, layers=layers)


def _first(*values: Any) -> Any:
    """The first of the fields that is there: engines have other names for the same."""
    return next((value for value in values if value is not None), None)


def _joined(prompt: list[int] | None, output: list[int] | None) -> list[int] | None:
    """The ids of all tokens; ``None`` if the response has none."""
    if prompt is None and output is None:
        return None
    ids = [*(prompt or ()), *(output or ())]
    if not all(0 <= one < 1 << 32 for one in ids):
        raise BadEngineOutput("a token id is negative or above 4,294,967,295")
    return ids


def _flat(rows: _Rows) -> tuple[list[int], int, int]:
    """The choices one after the other, the number of layers, and k."""
    if not rows or not rows[0] or not rows[0][0]:
        raise BadEngineOutput("no routed_experts; ask the engine to return them")
    layers, k = len(rows[0]), len(rows[0][0])
    if any(len(row) != layers or any(len(one) != k for one in row) for row in rows):
        raise BadEngineOutput(f"rows differ in size; the first has {layers} layers of {k}")
    return list(chain.from_iterable(chain.from_iterable(rows))), layers, k


def _from_base64(text: str) -> array[int]:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadEngineOutput("routed_experts is not base64") from None
    if len(raw) % 4:
        raise BadEngineOutput(f"routed_experts has {len(raw):,} bytes, not whole int32 numbers")
    return array("i", raw)


def _placed(
    flat: Sequence[int],
    k: int,
    ids: Sequence[int] | None,
    *,
    layers: int = 0,
    beside: Shape | None = None,
) -> _Response:
    """The layers are given, or follow from the number of tokens and what ``beside`` allows."""
    if ids is None:
        return _Response(len(flat) // (layers * k), None, layers, k, flat)
    total = len(ids)
    for count in (total, total - 1):
        if count <= 0 or not flat or len(flat) % (count * k):
            continue
        found = len(flat) // (count * k)
        # An engine returns the layers with MoE, or all of them.
        known = () if beside is None else beside.layers
        if found in (layers, len(known)) or (known and found > max(known)):
            return _Response(total, ids, found, k, flat)
    raise BadEngineOutput(
        f"{len(flat):,} choices for {total:,} token ids: expected one row per token, with or "
        "without the last one"
    )


def _without_last(rows: Sequence[int], width: int) -> Sequence[int]:
    """-1 in the last row if it is all zeros or empty: the last sampled token has no route."""
    last = rows[len(rows) - width :]
    if any(one > 0 for one in last):
        return rows
    return [*rows[: len(rows) - width], *[_NONE] * width]
