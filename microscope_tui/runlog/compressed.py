"""A gzip or zstd log, read as a stream.

One read unpacks at most what it returns: a small archive that unpacks to a large log costs time,
not memory. A truncated archive is treated as one that is still being written: its content is shown,
and reading continues when it grows.
"""

import os
import sys
import zlib
from pathlib import Path
from typing import Any

from microscope_tui.runlog.tail import Tail, is_an_object, stamp_of

ARCHIVE_SUFFIXES = (".gz", ".zst")
_PIECE_BYTES = 1 << 14
_INPUT_BYTES = 1 << 20
"""Maximum of packed bytes per read, however little they unpack to."""
_ZSTD_WINDOW_LOG = 27
"""128 MB, as used by ``zstd --ultra -22``: archives that need more memory are refused."""


class CompressedLog(Tail):
    """The lines of a ``.jsonl.gz`` or ``.jsonl.zst``; ``offset`` and ``size`` in packed bytes."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.seekable = False

    def kept(self) -> tuple[int, int]:
        """Nothing: an archive cannot be rewound."""
        return 0, 0

    def _reset(self) -> None:
        super()._reset()
        self._decoder: Any = None
        self._damage: type[Exception] = zlib.error
        self._member = 0  # where the gzip member or zstd frame at ``offset`` starts …
        self._unpacked = 0  # … and how much was unpacked of it
        self._skip = 0  # bytes of it that were already returned
        self._careful_from: int | None = None
        self._rest = b""  # the torn end of what was unpacked
        self._inside_line = False  # the start of this line was returned
        self._ended_early = False  # a newline was returned that the archive lacks
        self._fault = ""

    def _look(self, file: int) -> None:
        if self._fault and stamp_of(os.fstat(file)) != self._stamp:
            self._reset()
        super()._look(file)

    def _next(self, file: int, max_bytes: int) -> bytes:
        """The next whole lines, or a piece of a long one: at most ``max_bytes``.

        Raises:
            OSError: what follows is damaged; everything before the damage was handed out.
        """
        if self._fault:
            self.exhausted = True
            raise OSError(self._fault)
        data = self._rest + self._unpack(file, max_bytes - len(self._rest))
        self._remember(file)
        if self._ended_early and data:
            if not data.startswith(b"\n"):  # the last line continued, but was returned as complete
                self._reset()
                self.exhausted = False
                return b""
            data, self._ended_early = data[1:], False
        return self._lines_of(data, max_bytes)

    def _lines_of(self, data: bytes, max_bytes: int) -> bytes:
        end = data.rfind(b"\n") + 1
        if not end and len(data) >= max_bytes:
            self._inside_line, self._rest = True, b""
            return data
        self._inside_line = self._inside_line and not end
        last = data[end:]
        if self.exhausted and (self._inside_line or is_an_object(last)):
            self._rest, self._inside_line, self._ended_early = b"", False, True
            return data + b"\n"
        self._rest = last
        return data[:end]

    def _unpack(self, file: int, max_bytes: int) -> bytes:
        """Unpack at most ``max_bytes`` more; sets ``exhausted`` at the end of the file."""
        self.exhausted = False
        out = bytearray()
        limit = self.offset + _INPUT_BYTES
        while len(out) < max_bytes and self.offset < limit and not self._fault:
            packed = b""
            if self._decoder is None or self._decoder.needs_input:
                size = _PIECE_BYTES
                if self._careful_from is not None:
                    size = max(1, min(size, self._careful_from - self.offset))
                packed = os.pread(file, size, self.offset)
                if not packed:
                    self.exhausted = True
                    break
            try:
                out += self._feed(packed, max_bytes - len(out))
            except self._damage as error:
                self._note_damage(str(error))
        return bytes(out)

    def _feed(self, packed: bytes, max_bytes: int) -> bytes:
        if self._decoder is None:
            # Zeros between members are padding, as left by tapes and block copies.
            kept = packed.lstrip(b"\0") if self.offset else packed
            self.offset += len(packed) - len(kept)
            if not (packed := kept):
                return b""
            self._decoder, self._damage = _new_decoder(self.path)
            self._member, self._unpacked = self.offset, 0
        out: bytes = self._decoder.decompress(packed, max_bytes)
        self.offset += len(packed)
        self._unpacked += len(out)
        if self._decoder.eof:
            self.offset -= len(self._decoder.unused_data)
            self._decoder = None
        skipped = min(self._skip, len(out))
        self._skip -= skipped
        return out[skipped:]

    def _note_damage(self, reason: str) -> None:
        """Unpack the damaged member again, the last piece byte by byte.

        A decoder that finds damage does not return what it had unpacked up to there.
        """
        if self._careful_from is not None:
            self._fault = f"damaged archive at byte {self.offset:,} of {self.size:,}: {reason}"
            return
        self._careful_from = max(self._member, self.offset - _PIECE_BYTES)
        self._skip, self._decoder, self.offset = self._unpacked, None, self._member


def open_log(path: Path) -> Tail:
    """The reader for ``path``, chosen by its suffix."""
    return CompressedLog(path) if path.suffix in ARCHIVE_SUFFIXES else Tail(path)


class _Gzip:
    """``zlib``'s decoder behind the interface that the newer decoders share."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        out = self._member.decompress(self._member.unconsumed_tail + data, max_length)
        self.needs_input = not self._member.unconsumed_tail and len(out) < max_length
        return out


def _new_decoder(path: Path) -> tuple[Any, type[Exception]]:
    """A decoder, and what it raises for damage; the library for zstd is loaded only when needed."""
    if path.suffix != ".zst":
        return _Gzip(), zlib.error
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
    except ImportError:
        raise OSError("reading zstd needs a package: pip install backports.zstd") from None
    window: dict[int, int] = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
    return zstd.ZstdDecompressor(options=window), zstd.ZstdError
