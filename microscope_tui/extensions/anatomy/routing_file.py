"""Reads ``routing.bin``, memory-mapped, without torch or numpy, and writes it piece by piece, with
the layers in any order.

Every offset and size is checked against the file before anything is read. Text may be hostile, as
in a log: ``text`` returns raw bytes, and callers must escape them before they show them.
"""

import mmap
import os
import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import msgspec

from microscope_tui.extensions.anatomy.layout import (
    ALIGNMENT,
    MAGIC,
    MOST_HEADER_BYTES,
    MOST_SLICES,
    PREAMBLE,
    VERSION,
    BadRouting,
    Choice,
    Places,
    Shape,
    Tables,
)
from microscope_tui.runlog import open_regular_file, safe_text


class _Header(msgspec.Struct):
    """As it is stored, with the unchecked tables of the probe."""

    tokens: int
    capacity: int
    num_experts: int
    top_k: int
    layers: list[int]
    layer_names: list[str]
    text_bytes: int
    model: str = ""
    dtype: str = ""
    slices: list[str] = []
    tables: dict[str, Any] = {}

    def known_tables(self) -> Tables:
        """Empty ones if they have another form."""
        try:
            return msgspec.convert(self.tables, Tables)
        except (msgspec.ValidationError, RecursionError):
            return Tables()


class Routing:
    """One open file. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open and check ``path``. Numbers stay in the file until they are asked for.

        Raises:
            OSError: it cannot be opened, or is not a regular file.
            BadRouting: it is not a ``routing.bin``, has another version, is damaged, or cut off.
        """
        self.path = path
        descriptor = open_regular_file(path)
        try:
            self._size = os.fstat(descriptor).st_size
            if self._size < ALIGNMENT:
                raise BadRouting(f"{path}: {self._size} bytes, shorter than the preamble")
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
        finally:
            os.close(descriptor)
        try:
            self._read_header()
        except BadRouting as error:
            self.close()
            raise BadRouting(f"{path}: {error}") from None

    def __enter__(self) -> "Routing":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the file; nothing may be read from it any more."""
        self._map.close()

    def _read_header(self) -> None:
        magic, version, zero, offset, length, size = PREAMBLE.unpack_from(self._map)
        if magic != MAGIC:
            raise BadRouting("is not a routing file (the first bytes are not MOEROUTE)")
        if version != VERSION:
            raise BadRouting(
                f"version {version}, this microscope reads {VERSION}: update moe-microscope"
            )
        if size != self._size or zero:
            raise BadRouting(f"has {self._size:,} bytes instead of {size:,}: cut off or damaged")
        if not (ALIGNMENT <= offset <= self._size and length <= self._size - offset):
            raise BadRouting(f"the header at {offset:,} does not lie in the file")
        if length > MOST_HEADER_BYTES:
            raise BadRouting(f"a header of {length:,} bytes, more than {MOST_HEADER_BYTES:,}")
        try:
            header = msgspec.json.decode(self._map[offset : offset + length], type=_Header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRouting(f"the header cannot be read: {safe_text(error, 120)}") from None
        names = tuple(safe_text(name, 12) for name in header.layer_names)
        shape = Shape(
            tuple(header.layers), names, header.num_experts, header.top_k, header.capacity
        )
        shape.refuse_nonsense()
        places = Places(shape)
        if not 0 <= header.tokens <= header.capacity:
            raise BadRouting(f"{header.tokens:,} tokens in room for {header.capacity:,}")
        if not 0 <= header.text_bytes <= offset - places.text:
            raise BadRouting(f"the sections do not fit into the {offset:,} bytes before the header")
        if len(header.slices) > MOST_SLICES:
            raise BadRouting(f"{len(header.slices):,} slices, more than {MOST_SLICES:,}")
        self.shape = shape
        self.tokens = header.tokens
        self.slices = tuple(safe_text(name, 40) for name in header.slices)
        self.model = safe_text(header.model, 80)
        self.dtype = safe_text(header.dtype, 20)
        self.tables = header.known_tables()
        self.places = places
        """Where the numbers of every section are."""
        self._text_bytes = header.text_bytes

    def choice(self, layer: int, token: int) -> Choice:
        """What router number ``layer`` chose for a token; both count from 0.

        ``IndexError``: there is no such layer or token.
        """
        k = self.shape.top_k
        ids = self._numbers("ids", layer, token, k)
        weights = self._numbers("weights", layer, token, k)
        kept = [slot for slot, expert in enumerate(ids) if expert < self.shape.num_experts]
        (margin,) = self._numbers("margins", layer, token, 1)
        (entropy,) = self._numbers("entropies", layer, token, 1)
        experts, of_them = (tuple(row[slot] for slot in kept) for row in (ids, weights))
        return Choice(experts, of_them, margin, entropy)

    def chosen(self, layer: int, start: int, end: int) -> list[tuple[int, ...]]:
        """The chosen experts of tokens ``start`` to before ``end``, the largest weight first."""
        k = self.shape.top_k
        end = min(end, self.tokens)
        if start >= end:
            return []
        ids = self._numbers("ids", layer, start, (end - start) * k)
        rows = [ids[at : at + k] for at in range(0, len(ids), k)]
        experts = self.shape.num_experts
        if max(ids) < experts:  # no empty slots
            return rows
        return [tuple(one for one in row if one < experts) for row in rows]

    def raw(self, name: str, layer: int, start: int, end: int) -> bytes:
        """The bytes of a section for tokens ``start`` to before ``end``: comparisons at C speed."""
        at = self._place(name, layer, start)
        count = min(end, self.tokens) - start
        return self._map[at : at + count * self.places.sections[name].row]

    def next_of(self, layer: int, expert: int, token: int, *, back: bool = False) -> int | None:
        """The next token after (or before) ``token`` for which ``expert`` is among the chosen.

        A search of one layer's memory at C speed: a million tokens of six choices are 6 MB.
        """
        if not 0 <= expert < self.shape.num_experts:
            return None
        k = self.shape.top_k
        low, high = (0, token * k) if back else ((token + 1) * k, self.tokens * k)
        at = self._find("ids", layer, expert, low, high, back=back)
        self.release()
        return None if at is None else at // k

    def _find(
        self, name: str, layer: int, number: int, low: int, high: int, *, back: bool = False
    ) -> int | None:
        size = self.places.sections[name].itemsize
        wanted = number.to_bytes(size, "little")
        first = self._place(name, layer, 0)
        start, end = first + low * size, first + high * size
        search = self._map.rfind if back else self._map.find
        while start < end and (at := search(wanted, start, end)) >= 0:
            if (at - first) % size == 0:
                return (at - first) // size
            start, end = (start, at + size - 1) if back else (at + 1, end)
        return None

    def token_ids(self, start: int, end: int) -> Sequence[int]:
        """Ids in the tokenizer's vocabulary of the tokens from ``start`` to before ``end``."""
        return list(self._span("token_ids", start, end))

    def slices_of(self, start: int, end: int) -> Sequence[int]:
        """Number of the slice, from 0, of each token from ``start`` to before ``end``."""
        return self._span("slices", start, end)

    def window_of(self, token: int) -> int:
        """Number of the window, from 0, in which the model saw the token."""
        return self._number("windows", token)

    def text(self, start: int, end: int, most: int | None = None) -> list[bytes]:
        """The bytes of each token from ``start`` to before ``end``; at most ``most`` of each.

        ``None`` gives them whole. ``BadRouting``: the table of the ends is damaged.
        """
        end = min(end, self.tokens)
        if start >= end:
            return []
        ends = self._numbers("text_ends", 0, start, end - start)
        before = self._number("text_ends", start - 1) if start else 0
        pieces: list[bytes] = []
        for one in ends:
            if not before <= one <= self._text_bytes:
                raise BadRouting(
                    f"{self.path}: the text of token {start + len(pieces):,} is damaged"
                )
            cut = one if most is None else min(one, before + most)
            pieces.append(self._map[self.places.text + before : self.places.text + cut])
            before = one
        return pieces

    def text_of_id(self, token_id: int) -> bytes | None:
        """The bytes of a token of the vocabulary if it occurs, of a very long one the first 64."""
        if not 0 <= token_id < 1 << 32 or not self.tokens:
            return None
        token = self._find("token_ids", 0, token_id, 0, self.tokens)
        return None if token is None else self.text(token, token + 1, most=64)[0]

    def find_text(self, wanted: bytes, token: int, *, back: bool = False) -> int | None:
        """The next token after (or before) ``token`` in whose text ``wanted`` begins.

        Wraps around once, and then may be ``token`` itself.
        """
        if not wanted or not self.tokens:
            return None
        start = self.places.text
        end = start + self._text_bytes
        if back:
            before = self._number("text_ends", token - 1) if token else 0
            here = min(end, start + before)
            at = self._map.rfind(wanted, start, min(end, here + len(wanted) - 1))
            at = self._map.rfind(wanted, here, end) if at < 0 else at
        else:
            here = min(end, start + self._number("text_ends", token))
            at = self._map.find(wanted, here, end)
            at = self._map.find(wanted, start, min(end, here + len(wanted))) if at < 0 else at
        self.release()
        if at < 0:
            return None
        ends = range(self.tokens - 1)
        return bisect_right(ends, at - start, key=lambda one: self._number("text_ends", one))

    def release(self) -> None:
        """Release the memory of pages that were read; the system keeps them cached."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _place(self, name: str, layer: int, token: int) -> int:
        if not 0 <= token < max(1, self.tokens):
            raise IndexError(f"token {token:,} of {self.tokens:,}")
        if self.places.sections[name].per_layer and not 0 <= layer < len(self.shape.layers):
            raise IndexError(f"layer {layer} of {len(self.shape.layers)}")
        return self.places.at(name, layer, token)

    def _span(self, name: str, start: int, end: int) -> tuple[int, ...]:
        count = min(end, self.tokens) - start
        return self._numbers(name, 0, start, count) if count > 0 else ()

    def _number(self, name: str, token: int) -> int:
        return int(self._numbers(name, 0, token, 1)[0])

    def _numbers(self, name: str, layer: int, token: int, count: int) -> tuple[Any, ...]:
        at = self._place(name, layer, token)
        return struct.unpack_from(f"<{count}{self.places.sections[name].code}", self._map, at)


class RoutingWriter:
    """One file, written under another name until ``finish`` gives it its own."""

    def __init__(
        self,
        path: Path,
        shape: Shape,
        *,
        slices: Sequence[str] = (),
        model: str = "",
        dtype: str = "",
    ) -> None:
        """Open a new file beside ``path``, with room for ``shape.capacity`` tokens.

        ``path`` itself appears with ``finish`` only.

        Args:
            path: An older file there is replaced at the end.
            shape: Layers, experts, k, and the most tokens.
            slices: Names of the slices, by their number.
            model: As shown.
            dtype: Of the model.

        Raises:
            BadRouting: a size is out of range.
            OSError: it cannot be written.
        """
        shape.refuse_nonsense()
        self.path = path
        self.shape = shape
        self.tokens = 0
        self._about = {"slices": list(slices), "model": model, "dtype": dtype}
        self.places = Places(shape)
        self._text_bytes = 0
        self._part = path.with_name(f"{path.name}.part")
        self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    def put(self, name: str, layer: int, token: int, numbers: bytes) -> None:
        """Write numbers of one section from ``token`` on, packed in the section's type.

        The caller has checked that they are whole rows, and that there is room for them.
        """
        self._write(numbers, self.places.at(name, layer, token))

    def get(self, name: str, layer: int, tokens: int) -> bytes:
        """What was written of one section, for the first ``tokens`` tokens.

        ``ValueError``: fewer were written.
        """
        at = self.places.at(name, layer, 0)
        end = at + tokens * self.places.sections[name].row
        parts = []
        while at < end:
            parts.append(os.pread(self._file, end - at, at))
            if not parts[-1]:
                raise ValueError(f"{name}: {tokens:,} tokens were not written")
            at += len(parts[-1])
        return b"".join(parts)

    def put_tokens(
        self,
        ids: Sequence[int],
        texts: Sequence[bytes],
        slices: Sequence[int],
        windows: Sequence[int],
    ) -> int:
        """Append the next tokens; returns the number of the first. Call it before ``put``."""
        first = self.tokens
        self._write(b"".join(texts), self.places.text + self._text_bytes)
        begin, *ends = accumulate(map(len, texts), initial=self._text_bytes)
        self._text_bytes = max(ends, default=begin)
        numbers = {"token_ids": ids, "text_ends": ends, "slices": slices, "windows": windows}
        for name, values in numbers.items():
            code = self.places.sections[name].code
            self.put(name, 0, first, struct.pack(f"<{len(ids)}{code}", *values))
        self.tokens += len(ids)
        return first

    def finish(self, tables: Tables = Tables(), tokens: int | None = None) -> None:  # noqa: B008
        """Write the header and give the file its name.

        ``tokens``: how many all layers have, if not all that were appended. ``OSError``: the
        disk is full.
        """
        shape = self.shape
        header = self._about | {
            "tokens": self.tokens if tokens is None else min(tokens, self.tokens),
            "capacity": shape.capacity,
            "num_experts": shape.num_experts,
            "top_k": shape.top_k,
            "layers": shape.layers,
            "layer_names": shape.layer_names,
            "text_bytes": self._text_bytes,
            "tables": tables,
        }
        encoded = msgspec.json.encode(header)
        at = self.places.text + self._text_bytes
        at += -at % ALIGNMENT
        self._write(encoded, at)
        size = at + len(encoded)
        self._write(PREAMBLE.pack(MAGIC, VERSION, 0, at, len(encoded), size), 0)
        os.ftruncate(self._file, size)
        os.fsync(self._file)
        os.close(self._file)
        os.replace(self._part, self.path)

    def abandon(self) -> None:
        """Close and remove the unfinished file; instead of ``finish``."""
        os.close(self._file)
        self._part.unlink(missing_ok=True)

    def _write(self, data: bytes, offset: int) -> None:
        while data:
            written = os.pwrite(self._file, data, offset)
            data, offset = data[written:], offset + written
