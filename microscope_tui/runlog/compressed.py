"""A gzip or zstd log, read as a stream.

One read unpacks at most what it returns: a small archive that unpacks to a large log costs time,
not memory. Of a damaged archive, what comes before is shown. One that changes is read again.
"""

import os
import sys
import zlib
from pathlib import Path
from typing import Any

from microscope_tui.runlog.tail import Tail, is_an_object, stamp_of

ARCHIVE_SUFFIXES = (".gz", ".zst")
_PACKED_BYTES = 1 << 12
_UNPACKED_BYTES = 1 << 12
"""Unpacked at a time: a decoder that finds damage does not return the rest of that piece."""
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
        return 0, 0

    def _reset(self) -> None:
        super()._reset()
        self._decoder: Any = None
        self._damage: type[Exception] = zlib.error  # what the decoder raises
        self._rest = b""  # the torn end of what was unpacked
        self._fault = ""

    def _look(self, file: int) -> None:
        if self.offset and stamp_of(os.fstat(file)) != self._stamp:
            self._reset()
        super()._look(file)

    def _next(self, file: int, max_bytes: int) -> bytes:
        """The next whole lines, or a piece of a long one: at most ``max_bytes``.

        ``OSError``: what follows is damaged; all before it was handed out.
        """
        if self._fault:
            self.exhausted = True
            raise OSError(self._fault)
        data = self._rest + self._unpack(file, max_bytes - len(self._rest))
        end = data.rfind(b"\n") + 1
        if self.exhausted and is_an_object(data[end:]):
            self._rest = b""
            return data + b"\n"
        if not end and len(data) >= max_bytes:
            end = len(data)
        self._rest = data[end:]
        return data[:end]

    def _unpack(self, file: int, max_bytes: int) -> bytes:
        """Unpack at most ``max_bytes`` more; sets ``exhausted`` at the end of the file."""
        self.exhausted = False
        out = bytearray()
        limit = self.offset + _INPUT_BYTES
        while len(out) < max_bytes and self.offset < limit:
            if self._decoder is None:
                self._decoder, self._damage = _new_decoder(self.path)
            packed = b""
            if self._decoder.needs_input:
                packed = os.pread(file, _PACKED_BYTES, self.offset)
                if not packed:
                    self.exhausted = True
                    break
                self.offset += len(packed)
            try:
                step = min(_UNPACKED_BYTES, max_bytes - len(out))
                out += self._decoder.decompress(packed, step)
            except self._damage as error:
                at = f"before byte {self.offset:,} of {self.size:,}"
                self._fault = f"damaged archive {at}: {error}"
                break
            if self._decoder.eof:
                self.offset -= len(self._decoder.unused_data)
                self._decoder = None
        return bytes(out)


class _Gzip:
    """``zlib``'s decoder, used like the one for zstd."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)
        self.needs_input = True
        self.eof = False
        self.unused_data = b""

    def decompress(self, data: bytes, max_length: int) -> bytes:
        member = self._member
        out = member.decompress(member.unconsumed_tail + data, max_length)
        self.eof, self.unused_data = member.eof, member.unused_data
        self.needs_input = not member.unconsumed_tail and len(out) < max_length
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
