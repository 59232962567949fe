"""The choices of engines and RL trainers, ``routed_experts`` [tokens, layers, k], as samples.

- vLLM: nested lists, or the base64 of a ``.npy``. SGLang: base64 of int32 in ``meta_info``.
- prime-rl: ``{"data": base64, "shape", "start", "dtype"}``, without the tokens before ``start``
  (PrimeIntellect-ai/prime-rl ``inference/vllm/routed_experts.py``).
- NeMo-RL: ``nrlre1:DTYPE:SxLxK:BASE64`` in a message (NVIDIA-NeMo/RL
  ``utils/routed_experts_codec.py``); its ``r3_trace`` files hold checksums, not choices.
- slime and miles, ``--save-debug-rollout-data``: ``samples`` with ``tokens`` and
  ``rollout_routed_experts`` [tokens - 1, layers, k], an array of numpy (THUDM/slime
  ``observability/rollout_data_utils.py``, radixark/miles ``utils/types.py``).
- A ``.npy`` of integers.

One response or piece of an array is held at a time. A row of equal ids, -1 or 0 in all slots, is
not a choice: a layer without MoE, a lost route, the last sampled token.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from operator import eq
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from microscope_tui.routing import MOST_EXPERTS, BadRouting, RoutingWriter, Shape
from microscope_tui.runlog import safe_text
from microscope_tui.sources import torch_file
from microscope_tui.sources.dumps import Bytes, opened
from microscope_tui.sources.plain_pickle import Span, integers
from microscope_tui.sources.torch_file import INTEGERS

CHOICE_SUFFIXES = (".jsonl", ".npy", ".pt")
_NONE = -1
_PIECE = 1 << 20
_TOKENS_AT_ONCE = 1 << 16
_NUMPY = b"\x93NUMPY"
_TYPES = {"int8": "b", "int16": "h", "int32": "i", "int64": "q", "uint8": "B", "uint16": "H"}
_Rows = list[list[list[int]]]
_Sizes = tuple[int, int, int]
Raw = Callable[[], Iterator[bytes]]


class BadChoices(ValueError):
    """Not choices, or choices of another model; the message has the place and the reason."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A sequence of tokens; those from ``start`` on have choices ``shape`` [tokens, layers, k]."""

    done: float
    """Share of the file up to its end."""
    tokens: int
    token_ids: Sequence[int] | None
    start: int
    shape: _Sizes
    code: str
    raw: Raw

    def pieces(self) -> Iterator[tuple[int, Sequence[int]]]:
        """The first token, and the choices of some tokens, flat: token, layer, slot."""
        at, held = self.start, b""
        rows, layers, k = self.shape
        size = layers * k * array(self.code).itemsize
        for piece in self.raw() if rows else ():
            held += piece
            end = at + len(held) // size
            if at < end <= self.start + rows:
                whole = (end - at) * size
                ids = array(self.code, held[:whole])
                held = held[whole:]
                yield at, ids if k > 1 else _with_holes(ids, layers, end == self.tokens)
                at = end
        if held or at != self.start + rows:
            raise BadChoices(f"the choices of {rows:,} tokens have another number of bytes")


def _with_holes(ids: array[int], layers: int, is_end: bool) -> Sequence[int]:
    """For k = 1, -1 where a token has 0 in all of many layers, and in the last one."""
    out = list(ids)
    first = 0 if layers > 3 else len(out) - layers if is_end else len(out)
    for at in range(first, len(out), layers):
        if not any(out[at : at + layers]):
            out[at : at + layers] = [_NONE] * layers
    return out


@dataclass(frozen=True, slots=True)
class Survey:
    """The sizes of all samples together."""

    tokens: int
    layers: int
    k: int
    has_token_ids: bool
    kept: Sequence[int]
    """Layers that chose an expert for any of the first tokens."""


def survey(samples: Iterator[Sample]) -> Survey:
    tokens = layers = k = 0
    known = True
    kept: list[int] = []
    for sample in samples:
        tokens += sample.tokens
        known = known and sample.token_ids is not None
        if not sample.shape[0]:
            continue
        if k and (layers, k) != sample.shape[1:]:
            raise BadChoices(f"[layers, k] is {[*sample.shape[1:]]}, before {[layers, k]}")
        _, layers, k = sample.shape
        if layers < 1 or k < 1:
            raise BadChoices(f"{layers:,} layers, k {k:,}: not the choices of a model")
        kept = kept or _chosen_in(sample)
    if not k:
        raise BadChoices("no choices in it: ask the engine to return routed_experts")
    return Survey(tokens, layers, k, known, kept or range(layers))


def _chosen_in(sample: Sample) -> list[int]:
    _, layers, k = sample.shape
    _, ids = next(sample.pieces(), (0, ()))
    if k == 1:
        return [layer for layer in range(layers) if max(ids[layer::layers], default=_NONE) >= 0]
    firsts = (range(layer * k, len(ids), layers * k) for layer in range(layers))
    return [n for n, at in enumerate(firsts) if any(ids[i] != ids[i + 1] for i in at)]


def packed(ids: Sequence[int], layer: int, size: Survey, experts: int, code: str) -> array[int]:
    """The choices of one layer; the largest id of the type is an empty slot, behind the others."""
    k = size.k
    slots = [ids[layer * k + slot :: size.layers * k] for slot in range(k)]
    # No token chooses an expert twice: equal ids are a token without a route.
    has_holes = k > 1 and any(map(eq, slots[0], slots[1]))
    if not has_holes and min(map(min, slots)) >= 0 and max(map(max, slots)) < experts:
        return array(code, chain.from_iterable(zip(*slots, strict=True)))
    out = array(code)
    empty = (1 << 8 * out.itemsize) - 1
    for row in zip(*slots, strict=True):
        chosen = [] if k > 1 and min(row) == max(row) else [one for one in row if one != _NONE]
        for one in chosen:
            if not 0 <= one < experts:
                raise BadChoices(
                    f"expert {one:,} in layer {layer}: expected 0 to {experts - 1:,}, or -1"
                )
        out.extend([*chosen, *[empty] * (k - len(chosen))])
    return out


def convert_choices(
    path: Path,
    target: Path,
    beside: Shape | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> bool:
    """Write ``target``, a ``routing.bin``, from choices; true if the token ids are known.

    ``beside``: sizes of the probe that they are compared with. Without it the depths are those of
    the layers with choices, and the number of experts is unknown. ``OSError`` (``Unreadable``):
    another form, or expert ids that the model of ``beside`` lacks.
    """
    k, layers = (None, ()) if beside is None else (beside.top_k, beside.layers)
    with opened(path) as data:
        try:
            size = survey(samples_of(data, k, layers))
            if size.layers == len(layers):
                size = dataclasses.replace(size, kept=range(size.layers))
            writer = RoutingWriter(target, _shape(size, beside))
            try:
                for sample in samples_of(data, k, layers):
                    _write(sample, size, writer)
                    progress(sample.done)
                writer.finish()
            except BaseException:
                writer.abandon()
                raise
        except (BadChoices, BadRouting) as error:
            raise data.broken(str(error)) from None
        return size.has_token_ids


def _shape(size: Survey, beside: Shape | None) -> Shape:
    kept = tuple(size.kept)
    if beside is None:
        return Shape(kept, tuple(f"L{n}" for n in kept), MOST_EXPERTS, size.k, size.tokens)
    if len(kept) == len(beside.layers):
        return replace(beside, top_k=size.k, capacity=size.tokens)
    names = tuple(f"L{n}" for n in kept)
    return Shape(kept, names, beside.num_experts, size.k, size.tokens)


def _write(sample: Sample, size: Survey, writer: RoutingWriter) -> None:
    first, experts = writer.tokens, writer.shape.num_experts
    section = writer.places.sections["ids"]
    for at in range(0, sample.tokens, _TOKENS_AT_ONCE):
        zeros = [0] * min(_TOKENS_AT_ONCE, sample.tokens - at)
        ids = zeros if sample.token_ids is None else sample.token_ids[at : at + len(zeros)]
        writer.put_tokens(ids, [b""] * len(zeros), zeros, zeros)
    end = sample.start + sample.shape[0]
    for at, count in ((0, sample.start), (end, sample.tokens - end)):
        for place in range(len(size.kept)):
            writer.put("ids", place, first + at, b"\xff" * section.row * count)
    for at, rows in sample.pieces():
        for place, layer in enumerate(size.kept):
            ids_of = packed(rows, layer, size, experts, section.code)
            writer.put("ids", place, first + at, ids_of.tobytes())


def samples_of(data: Bytes, k: int | None, layers: Sequence[int] = ()) -> Iterator[Sample]:
    """The samples of a file; ``k`` and ``layers`` as far as known, for base64 without a shape."""
    head = data.read(0, min(8, data.size), "the beginning")
    if head.startswith(_NUMPY):
        return iter([_array(data)])
    return _dumped(data) if head.startswith(b"PK\3\4") else _responses(data, k, layers)


_HEADER = re.compile(
    rb"\{\s*'descr':\s*'[<|]([iu][1248])',\s*'fortran_order':\s*False,"
    rb"\s*'shape':\s*\((\d{1,12}),\s*(\d{1,12}),\s*(\d{1,12}),?\s*\),?\s*\}\s*"
)


def _numpy_header(head: bytes) -> tuple[str, _Sizes, int]:
    """Code, shape, and where the numbers begin, of a ``.npy`` (numpy.lib.format, version 1)."""
    start = 10 + int.from_bytes(head[8:10], "little")
    found = _HEADER.fullmatch(head[10:start])
    if found is None or head[6:7] != b"\1":
        described = safe_text(head[10:start].decode("ascii", "replace").strip(), 120)
        raise BadChoices(
            f"holds {described}: expected integers of shape (tokens, layers, k), little-endian and "
            "in C order"
        )
    return INTEGERS[found[1].decode()], (int(found[2]), int(found[3]), int(found[4])), start


def _array(data: Bytes) -> Sample:
    code, shape, start = _numpy_header(data.read(0, min(4096, data.size), "the header"))
    expected = start + math.prod(shape) * array(code).itemsize
    if expected != data.size:
        raise BadChoices(f"has {data.size:,} bytes instead of {expected:,}: cut off or damaged")

    def raw() -> Iterator[bytes]:
        for at in range(start, data.size, _PIECE):
            yield data.read(at, min(_PIECE, data.size - at), "the numbers")

    return Sample(1.0, shape[0], None, 0, shape, code, raw)


def _dumped(data: Bytes) -> Iterator[Sample]:
    content = torch_file.load(data)
    samples = content.get("samples") if isinstance(content, dict) else None
    if not isinstance(samples, list):
        raise BadChoices("has no samples: save one with --save-debug-rollout-data")
    for number, sample in enumerate(samples, 1):
        place, done = f"sample {number:,}: ", number / len(samples)
        if not isinstance(sample, dict):
            raise BadChoices(f"{place}not a dict")
        ids = _saved_ids(data, sample.get("tokens"))
        value = sample.get("rollout_routed_experts")
        found = torch_file.array_of(value)
        if value is None:  # aborted, for example
            yield Sample(done, len(ids or ()), ids, 0, (0, 0, 0), "B", lambda: iter(()))
        elif found is None or len(found.shape) != 3:
            raise BadChoices(f"{place}rollout_routed_experts is not integers [tokens, layers, k]")
        else:
            raw = partial(found.pieces, data)
            yield _placed(Sample(done, 0, ids, 0, found.shape, found.code, raw), place)


def _saved_ids(data: Bytes, value: Any) -> list[int] | None:
    if (found := torch_file.array_of(value)) is not None:
        return _checked([one for piece in found.pieces(data) for one in array(found.code, piece)])
    ids: list[int] = []
    for one in value if isinstance(value, list) else ():
        if isinstance(one, Span):
            ids += integers(data.read(one.start, one.size, "tokens"))
        else:
            ids.append(one)
    return _checked(ids) if value is not None else None


def _lines(data: Bytes) -> Iterator[tuple[int, float, memoryview]]:
    """Number, share of the file up to its end, and the line."""
    at = number = 0
    while at < data.size:
        line, end, most = b"", -1, 1 << 12
        while end < 0 and len(line) < data.size - at:
            line = b""  # one of them in memory
            line = data.read(at, min(most, data.size - at), f"line {number + 1:,}")
            end = line.find(b"\n")
            most *= 2
        end = len(line) if end < 0 else end + 1
        at, number = at + end, number + 1
        yield number, at / data.size, memoryview(line)[:end]


class _Object(msgspec.Struct):
    data: msgspec.Raw
    shape: _Sizes = (0, 0, 0)
    start: int = 0
    dtype: str = "uint8"


class _Fields(msgspec.Struct):
    """Of a response, its choice, or the message in it: engines have the same in any of them."""

    prompt_token_ids: list[int] | None = None
    input_ids: list[int] | None = None
    generation_token_ids: list[int] | None = None
    token_ids: list[int] | None = None
    output_ids: list[int] | None = None
    prompt_routed_experts: msgspec.Raw = msgspec.Raw()
    routed_experts: msgspec.Raw = msgspec.Raw()
    meta_info: _Fields | None = None
    choices: list[_Fields] | None = None
    message: _Fields | None = None


_ABSENT = (None, msgspec.Raw(), msgspec.Raw(b"null"))


def _responses(data: Bytes, k: int | None, layers: Sequence[int]) -> Iterator[Sample]:
    decoder = msgspec.json.Decoder(_Fields)
    for number, done, line in _lines(data):
        if line.nbytes < 3 and not bytes(line).strip():
            continue
        try:
            yield _response(decoder.decode(line), done, k, layers)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadChoices(f"line {number:,}: {safe_text(error, 160)}") from None
        except BadChoices as error:
            raise BadChoices(f"line {number:,}: {error}") from None


def _response(line: _Fields, done: float, k: int | None, layers: Sequence[int]) -> Sample:
    choice, *others = line.choices or [_Fields()]
    if others:
        raise BadChoices(f"{1 + len(others)} choices: ask for one a request (n = 1)")
    levels = [level for level in (choice.message, choice, line.meta_info, line) if level]

    def field(*names: str) -> Any:
        """The first that is there: engines have other names for the same."""
        values = (getattr(level, name) for name in names for level in levels)
        return next((value for value in values if value not in _ABSENT), None)

    prompt = field("prompt_token_ids", "input_ids")
    output = field("generation_token_ids", "token_ids", "output_ids")
    ids = None if prompt is output is None else _checked([*(prompt or ()), *(output or ())])
    values = field("prompt_routed_experts"), field("routed_experts")
    parts = [_part(value, done, ids, k, layers) for value in values if value is not None]
    if not parts:
        raise BadChoices("no routed_experts; ask the engine to return them")
    if len({(part.shape[1:], part.code) for part in parts}) > 1:
        raise BadChoices("prompt_routed_experts and routed_experts differ in layers, k or type")
    _, layers_of, k_of = parts[0].shape
    return _placed(
        dataclasses.replace(
            parts[0],
            shape=(sum(part.shape[0] for part in parts), layers_of, k_of),
            raw=lambda: chain.from_iterable(part.raw() for part in parts),
        )
    )


def _checked(ids: list[int]) -> list[int]:
    if not all(type(one) is int and 0 <= one < 1 << 32 for one in ids):
        raise BadChoices("a token id is negative or above 4,294,967,295")
    return ids


def _placed(sample: Sample, place: str = "") -> Sample:
    """The sample with its number of tokens: those with choices, and at most one more."""
    end = sample.start + sample.shape[0]
    tokens = end if sample.token_ids is None else len(sample.token_ids)
    if min(sample.start, sample.shape[0]) < 0 or not end <= tokens <= end + 1:
        raise BadChoices(
            f"{place}choices of {sample.shape[0]:,} tokens from token {sample.start:,} on, for "
            f"{tokens:,} token ids: expected one row per token, with or without the last one"
        )
    return dataclasses.replace(sample, tokens=tokens)


_ENVELOPE = re.compile(rb"nrlre1:(int8|int16|int32):(\d{1,12})x(\d{1,6})x(\d{1,6}):")


def _part(
    value: msgspec.Raw, done: float, ids: list[int] | None, k: int | None, layers: Sequence[int]
) -> Sample:
    """The choices in one field; the number of tokens is not known yet."""
    kind = memoryview(value)[:1].tobytes()
    if kind == b"[":
        return _nested(msgspec.json.decode(value, type=_Rows), done, ids)
    found = msgspec.json.decode(value, type=_Object) if kind == b"{" else _Object(value)
    text = memoryview(found.data)[1:-1]
    start, drop, shape, dtype = found.start, 0, found.shape, found.dtype
    if envelope := _ENVELOPE.match(text):
        dtype, text = envelope[1].decode(), text[envelope.end() :]
        shape = int(envelope[2]), int(envelope[3]), int(envelope[4])
    if dtype not in _TYPES:
        raise BadChoices(f"dtype {safe_text(dtype, 20)}: expected one of {', '.join(_TYPES)}")
    code, size = _TYPES[dtype], len(text) // 4 * 3 - bytes(text[-2:]).count(b"=")
    if bytes(text[:8]) == b"k05VTVBZ":  # the first bytes of a .npy
        code, shape, drop = _numpy_header(next(_decoded(text, 0)))
    elif kind == b'"' and not envelope:
        code, shape = "i", _without_shape(size // 4, ids, k, layers)
    expected = drop + math.prod(shape) * array(code).itemsize
    if size != expected or (start and ids is None):
        raise BadChoices(
            f"routed_experts has {size:,} bytes from token {start:,} on: expected {expected:,} for "
            f"its shape {shape}, and token ids if it starts later"
        )
    return Sample(done, 0, ids, start, shape, code, partial(_decoded, text, drop))


def _decoded(text: memoryview, drop: int) -> Iterator[bytes]:
    """Base64 as bytes, without the first ``drop`` of them."""
    for at in range(0, len(text), _PIECE):
        try:
            piece = base64.b64decode(text[at : at + _PIECE], validate=True)
        except binascii.Error:
            raise BadChoices("routed_experts is not base64") from None
        yield piece[drop:]
        drop = 0


def _nested(rows: _Rows, done: float, ids: list[int] | None) -> Sample:
    if not rows or not rows[0] or not rows[0][0]:
        raise BadChoices("no routed_experts; ask the engine to return them")
    layers, k = len(rows[0]), len(rows[0][0])
    if any(len(row) != layers or any(len(one) != k for one in row) for row in rows):
        raise BadChoices(f"rows differ in size; the first has {layers} layers of {k}")
    try:
        flat = array("q", chain.from_iterable(chain.from_iterable(rows))).tobytes()
    except OverflowError:
        raise BadChoices("an expert id has more than 64 bits") from None
    return Sample(done, 0, ids, 0, (len(rows), layers, k), "q", lambda: iter([flat]))


def _without_shape(
    choices: int, ids: Sequence[int] | None, k: int | None, layers: Sequence[int]
) -> _Sizes:
    """Tokens, layers and k of SGLang's int32, which have no shape."""
    if k is None or ids is None:
        raise BadChoices(
            "base64 holds no shape: it needs token ids, and a probe beside it or --top-k"
        )
    for tokens in (len(ids), len(ids) - 1):
        if tokens > 0 and choices and choices % (tokens * k) == 0:
            found = choices // (tokens * k)
            # An engine returns the layers with MoE, or all of them.
            if not layers or found == len(layers) or found > max(layers):
                return tokens, found, k
    raise BadChoices(
        f"{choices:,} choices for {len(ids):,} token ids: expected one row per token, with or "
        "without the last one"
    )
