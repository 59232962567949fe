"""Reads ``.npy`` files of integers, without numpy and without pickle.

The format: a magic, a version, the length of a header, and the header, a literal of a Python dict
(numpy.lib.format). Only arrays of integers in C order with three axes are read.
"""

import os
import re
import struct
from array import array
from pathlib import Path

from microscope_tui.runlog import open_regular_file, safe_text

MAGIC = b"\x93NUMPY"
_MOST_HEADER = 1 << 12
_HEADER = re.compile(
    rb"\{\s*'descr':\s*'([<>|=]?)([iu])([1248])',\s*'fortran_order':\s*(True|False),"
    rb"\s*'shape':\s*\((\d{1,12}),\s*(\d{1,12}),\s*(\d{1,12}),?\s*\),?\s*\}\s*"
)
_CODES = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}


class BadArray(ValueError):
    """The file is not an array that can be read; the message says why."""


class IntegerArray:
    """An open file of integers with three axes."""

    def __init__(self, path: Path) -> None:
        """Open and check ``path``.

        Raises:
            OSError: it cannot be opened, or is not a regular file.
            BadArray: it holds something else, or has another length than its header says.
        """
        self._file = os.fdopen(open_regular_file(path), "rb")
        try:
            self._read_header()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_header(self) -> None:
        head = self._file.read(12)
        if not head.startswith(MAGIC) or len(head) < 12:
            raise BadArray("is not a .npy file")
        if head[6] == 1:
            (length,), start = struct.unpack_from("<H", head, 8), 10
        elif head[6] in (2, 3):
            (length,), start = struct.unpack_from("<I", head, 8), 12
        else:
            raise BadArray(f"version {head[6]} of .npy, expected 1 to 3")
        if length > _MOST_HEADER:
            raise BadArray(f"a header of {length:,} bytes, expected at most {_MOST_HEADER:,}")
        self._file.seek(start)
        header = self._file.read(length)
        found = _HEADER.fullmatch(header)
        if found is None:
            raise BadArray(
                f"holds {safe_text(header.decode('latin-1').strip(), 120)}: expected integers of "
                "shape (tokens, layers, k)"
            )
        order, kind, size, fortran, *shape = (part.decode() for part in found.groups())
        if fortran == "True":
            raise BadArray("is in Fortran order: save numpy.ascontiguousarray of it")
        self.shape = tuple(map(int, shape))
        """Tokens, layers, k."""
        tokens, layers, k = self.shape
        self._code, self._swap = _CODES[kind + size], order == ">"
        self._row = layers * k * int(size)
        self._start = start + length
        expected = self._start + tokens * self._row
        actual = os.fstat(self._file.fileno()).st_size
        if expected != actual:
            raise BadArray(f"has {actual:,} bytes instead of {expected:,}: cut off or damaged")

    def rows(self, start: int, end: int) -> "array[int]":
        """The numbers of tokens ``start`` to before ``end``, flat."""
        self._file.seek(self._start + start * self._row)
        numbers = array(self._code, self._file.read((end - start) * self._row))
        if self._swap:
            numbers.byteswap()
        return numbers
