"""Writes ``routing.bin`` piece by piece, in whatever order the layers come."""

import os
import struct
from collections.abc import Sequence
from pathlib import Path

import msgspec

from microscope_tui.routing.layout import (
    ALIGNMENT,
    MAGIC,
    PREAMBLE,
    VERSION,
    Shape,
    Tables,
    sections,
)


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

        Raises:
            BadRouting: a size is out of range.
            OSError: it cannot be written.
        """
        shape.refuse_nonsense()
        self.path, self.shape, self.tokens = path, shape, 0
        self._about = {"slices": list(slices), "model": model, "dtype": dtype}
        self._sections = {one.name: one for one in sections(shape.num_experts, shape.top_k)}
        self._offsets, self._text_at = shape.offsets()
        self._text_bytes = 0
        self._part = path.with_name(f"{path.name}.part")
        self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)

    @property
    def empty_slot(self) -> int:
        """The id that means no expert."""
        return (1 << 8 * self._sections["ids"].itemsize) - 1

    def put(self, name: str, layer: int, token: int, numbers: bytes) -> None:
        """Write numbers of one section, packed as ``layout.sections`` says, from ``token`` on."""
        section = self._sections[name]
        row = section.per_token * section.itemsize
        if len(numbers) % row or token + len(numbers) // row > self.shape.capacity:
            raise ValueError(f"{name}: {len(numbers):,} bytes at token {token:,} do not fit")
        before = layer * self.shape.capacity if section.per_layer else 0
        self._write(numbers, self._offsets[name] + (before + token) * row)

    def get(self, name: str, layer: int, tokens: int) -> bytes:
        """What was written of one section, for the first ``tokens`` tokens."""
        section = self._sections[name]
        row = section.per_token * section.itemsize
        at = self._offsets[name] + (layer * self.shape.capacity if section.per_layer else 0) * row
        parts, left = [], tokens * row
        while left:
            parts.append(os.pread(self._file, left, at))
            if not parts[-1]:
                raise ValueError(f"{name}: {tokens:,} tokens were not written")
            left, at = left - len(parts[-1]), at + len(parts[-1])
        return b"".join(parts)

    def put_tokens(
        self,
        ids: Sequence[int],
        texts: Sequence[bytes],
        slices: Sequence[int],
        windows: Sequence[int],
    ) -> int:
        """Append the next tokens; returns the number of the first. Call it before ``put``."""
        first, count = self.tokens, len(ids)
        ends, end = [], self._text_bytes
        for text in texts:
            end += len(text)
            ends.append(end)
        self._write(b"".join(texts), self._text_at + self._text_bytes)
        self._text_bytes = end
        numbers = {"token_ids": ids, "text_ends": ends, "slices": slices, "windows": windows}
        for name, values in numbers.items():
            self.put(name, 0, first, struct.pack(f"<{count}{self._sections[name].code}", *values))
        self.tokens += count
        return first

    def finish(self, tables: Tables = Tables(), tokens: int | None = None) -> None:  # noqa: B008
        """Write the header and give the file its name.

        Args:
            tokens: how many tokens all layers have, if fewer than were appended.
        """
        header = {
            **self._about,
            "tokens": self.tokens if tokens is None else min(tokens, self.tokens),
            "capacity": self.shape.capacity,
            "num_experts": self.shape.num_experts,
            "top_k": self.shape.top_k,
            "layers": self.shape.layers,
            "layer_names": self.shape.layer_names,
            "text_bytes": self._text_bytes,
            "tables": tables.to_json(),
        }
        encoded = msgspec.json.encode(header)
        at = self._text_at + self._text_bytes
        at += -at % ALIGNMENT
        self._write(encoded, at)
        size = at + len(encoded)
        self._write(PREAMBLE.pack(MAGIC, VERSION, 0, at, len(encoded), size), 0)
        os.ftruncate(self._file, size)
        os.fsync(self._file)
        os.close(self._file)
        os.replace(self._part, self.path)

    def abandon(self) -> None:
        """Remove what was written."""
        os.close(self._file)
        self._part.unlink(missing_ok=True)

    def _write(self, data: bytes, offset: int) -> None:
        while data:
            written = os.pwrite(self._file, data, offset)
            data, offset = data[written:], offset + written
