"""Reads ``routing.bin``, memory-mapped, without torch or numpy.

Every offset and size is checked against the file before anything is read. Text is as hostile as in
a log: ``text`` returns raw bytes, and what shows them must make them safe.
"""

import mmap
import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from microscope_tui.routing.header import Header, tables_of
from microscope_tui.routing.layout import (
    ALIGNMENT,
    MAGIC,
    MOST_HEADER_BYTES,
    MOST_SLICES,
    PREAMBLE,
    VERSION,
    BadRouting,
    Choice,
    Shape,
    sections,
)
from microscope_tui.runlog import open_regular_file, safe_text

_MOST_SHOWN = 64
"""Bytes of a token of the vocabulary."""


class Routing:
    """One open file. Close it, or use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open and check ``path``.

        Raises:
            OSError: it cannot be opened, or is not a regular file.
            BadRouting: it is no ``routing.bin``, of another version, damaged, or cut off.
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
        """Unmap the file."""
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
            header = msgspec.json.decode(self._map[offset : offset + length], type=Header)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BadRouting(f"the header cannot be read: {safe_text(error, 120)}") from None
        names = tuple(safe_text(name, 12) for name in header.layer_names)
        shape = Shape(
            tuple(header.layers), names, header.num_experts, header.top_k, header.capacity
        )
        shape.refuse_nonsense()
        offsets, text = shape.offsets()
        if not 0 <= header.tokens <= header.capacity:
            raise BadRouting(f"{header.tokens:,} tokens in room for {header.capacity:,}")
        if not 0 <= header.text_bytes <= offset - text:
            raise BadRouting(f"the sections do not fit into the {offset:,} bytes before the header")
        if len(header.slices) > MOST_SLICES:
            raise BadRouting(f"{len(header.slices):,} slices, more than {MOST_SLICES:,}")
        self.shape, self._text_at, self._text_bytes = shape, text, header.text_bytes
        self.tokens = header.tokens
        self.slices = tuple(safe_text(name, 40) for name in header.slices)
        self.model, self.dtype = safe_text(header.model, 80), safe_text(header.dtype, 20)
        self.tables = tables_of(header.tables)
        self._offsets = offsets
        self._sections = {one.name: one for one in sections(shape.num_experts, shape.top_k)}
        self._empty = (1 << 8 * self._sections["ids"].itemsize) - 1

    def choice(self, layer: int, token: int) -> Choice:
        """What router number ``layer`` chose for a token; both count from 0.

        Raises:
            IndexError: there is no such layer or token.
        """
        k = self.shape.top_k
        ids = self._numbers("ids", layer, token, k)
        weights = self._numbers("weights", layer, token, k)
        kept = [slot for slot, expert in enumerate(ids) if expert < self.shape.num_experts]
        (margin,) = self._numbers("margins", layer, token, 1)
        (entropy,) = self._numbers("entropies", layer, token, 1)
        experts = tuple(int(ids[slot]) for slot in kept)
        return Choice(experts, tuple(weights[slot] for slot in kept), margin, entropy)

    def first_choices(self, layer: int, start: int, end: int) -> list[int | None]:
        """The expert with the largest weight for each token from ``start`` to before ``end``."""
        end = min(end, self.tokens)
        if start >= end:
            return []
        k = self.shape.top_k
        ids = self._numbers("ids", layer, start, (end - start) * k)[::k]
        return [int(one) if one < self.shape.num_experts else None for one in ids]

    def chosen(self, layer: int, start: int, end: int) -> list[tuple[int, ...]]:
        """The chosen experts of tokens ``start`` to before ``end``, the largest weight first."""
        end, k = min(end, self.tokens), self.shape.top_k
        if start >= end:
            return []
        ids = self._numbers("ids", layer, start, (end - start) * k)
        if max(ids) >= (experts := self.shape.num_experts):  # empty slots
            rows = (ids[at : at + k] for at in range(0, len(ids), k))
            return [tuple(one for one in row if one < experts) for row in rows]
        return [ids[at : at + k] for at in range(0, len(ids), k)]

    def ids_of(self, layer: int, start: int, end: int) -> bytes:
        """The raw ids of tokens ``start`` to before ``end``, for comparing them at C speed."""
        at = self._place("ids", layer, start)
        width = self.shape.top_k * self._sections["ids"].itemsize
        return self._map[at : at + (min(end, self.tokens) - start) * width]

    @property
    def id_code(self) -> str:
        """Type of an id, as a code of ``struct``: ``B`` or ``H``."""
        return self._sections["ids"].code

    def margins_of(self, layer: int, start: int, end: int) -> bytes:
        """The raw margins of tokens ``start`` to before ``end``, in half precision."""
        at = self._place("margins", layer, start)
        return self._map[at : at + (min(end, self.tokens) - start) * 2]

    def next_of(self, layer: int, expert: int, token: int, *, back: bool = False) -> int | None:
        """The next token after (or before) ``token`` for which ``expert`` is among the chosen.

        A search of one layer's memory at C speed: a million tokens of six choices are 6 MB.
        """
        if not 0 <= expert < self.shape.num_experts:
            return None
        size, k = self._sections["ids"].itemsize, self.shape.top_k
        wanted = expert.to_bytes(size, "little")
        first = self._place("ids", layer, 0)
        low, high = (
            (first, first + token * k * size)
            if back
            else (first + (token + 1) * k * size, first + self.tokens * k * size)
        )
        while low < high:
            at = self._map.rfind(wanted, low, high) if back else self._map.find(wanted, low, high)
            if at < 0 or (at - first) % size == 0:
                self.release()
                return None if at < 0 else (at - first) // (k * size)
            low, high = (low, at + size - 1) if back else (at + 1, high)
        return None

    def token_id(self, token: int) -> int:
        """Id of a token in the model's vocabulary."""
        return int(self._numbers("token_ids", 0, token, 1)[0])

    def token_ids(self, start: int, end: int) -> Sequence[int]:
        """Ids of tokens ``start`` to before ``end``."""
        count = min(end, self.tokens) - start
        return (
            [int(one) for one in self._numbers("token_ids", 0, start, count)] if count > 0 else []
        )

    def slice_of(self, token: int) -> int:
        """Number of the slice that a token belongs to."""
        return int(self._numbers("slices", 0, token, 1)[0])

    def slices_of(self, start: int, end: int) -> Sequence[int]:
        """Numbers of the slices of tokens ``start`` to before ``end``."""
        count = min(end, self.tokens) - start
        return self._numbers("slices", 0, start, count) if count > 0 else ()

    def window_of(self, token: int) -> int:
        """Number of the window of text that a token was routed in."""
        return int(self._numbers("windows", 0, token, 1)[0])

    def text(self, start: int, end: int, most: int | None = None) -> list[bytes]:
        """The bytes of each token from ``start`` to before ``end``; at most ``most`` of each.

        Raises:
            BadRouting: the table of the ends is damaged.
        """
        end = min(end, self.tokens)
        if start >= end:
            return []
        ends = self._numbers("text_ends", 0, start, end - start)
        before = self._numbers("text_ends", 0, start - 1, 1)[0] if start else 0
        pieces: list[bytes] = []
        for one in ends:
            if not before <= one <= self._text_bytes:
                raise BadRouting(
                    f"{self.path}: the text of token {start + len(pieces):,} is damaged"
                )
            cut = one if most is None else min(one, before + most)
            pieces.append(self._map[self._text_at + int(before) : self._text_at + int(cut)])
            before = one
        return pieces

    def text_of_id(self, token_id: int) -> bytes | None:
        """The bytes of a token of the vocabulary, if it occurs; the start of a very long one."""
        if not 0 <= token_id < 1 << 32 or not self.tokens:
            return None
        size = self._sections["token_ids"].itemsize
        first = self._place("token_ids", 0, 0)
        wanted, low, high = token_id.to_bytes(size, "little"), first, first + self.tokens * size
        while (at := self._map.find(wanted, low, high)) >= 0 and (at - first) % size:
            low = at + 1
        if at < 0:
            return None
        token = (at - first) // size
        return self.text(token, token + 1, _MOST_SHOWN)[0]

    def find_text(self, wanted: bytes, token: int, *, back: bool = False) -> int | None:
        """The next token after (or before) ``token`` in whose text ``wanted`` begins.

        Wraps around once, and then may be ``token`` itself.
        """
        if not wanted or not self.tokens:
            return None
        start, end = self._text_at, self._text_at + self._text_bytes
        if back:
            ends = self._numbers("text_ends", 0, token - 1, 1)[0] if token else 0
            here = min(end, start + int(ends))
            at = self._map.rfind(wanted, start, min(end, here + len(wanted) - 1))
            at = self._map.rfind(wanted, here, end) if at < 0 else at
        else:
            here = min(end, start + int(self._numbers("text_ends", 0, token, 1)[0]))
            at = self._map.find(wanted, here, end)
            at = self._map.find(wanted, start, min(end, here + len(wanted))) if at < 0 else at
        self.release()
        return None if at < 0 else self._token_at(at - start)

    def release(self) -> None:
        """Give back the memory of pages that were read; the system keeps them cached."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def _token_at(self, byte: int) -> int:
        """The token that holds a byte of the text, by bisection."""
        low, high = 0, self.tokens - 1
        while low < high:
            middle = (low + high) // 2
            if self._numbers("text_ends", 0, middle, 1)[0] > byte:
                high = middle
            else:
                low = middle + 1
        return low

    def _place(self, name: str, layer: int, token: int) -> int:
        section = self._sections[name]
        row = section.per_token * section.itemsize
        if not 0 <= token < max(1, self.tokens):
            raise IndexError(f"token {token:,} of {self.tokens:,}")
        if section.per_layer and not 0 <= layer < len(self.shape.layers):
            raise IndexError(f"layer {layer} of {len(self.shape.layers)}")
        before = layer * self.shape.capacity if section.per_layer else 0
        return self._offsets[name] + (before + token) * row

    def _numbers(self, name: str, layer: int, token: int, count: int) -> tuple[Any, ...]:
        at = self._place(name, layer, token)
        return struct.unpack_from(f"<{count}{self._sections[name].code}", self._map, at)
