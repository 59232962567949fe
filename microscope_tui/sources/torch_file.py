"""Reads what ``torch.save`` wrote, without torch and without running anything.

The file is a zip with stored members: ``NAME/data.pkl``, a pickle of plain containers and tensors,
and ``NAME/data/KEY``, the numbers of each storage. The pickle is interpreted (``plain_pickle``);
the numbers stay in the file until they are asked for. Arrays of numpy are in the pickle itself.
Layout: ``torch/serialization.py``; ``__reduce__`` of ``numpy/_core/src/multiarray/methods.c``.
"""

import math
import struct
from codecs import getincrementaldecoder
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from microscope_tui.runlog import safe_text
from microscope_tui.sources import plain_pickle
from microscope_tui.sources.dumps import Bytes
from microscope_tui.sources.plain_pickle import ORDERED, Made, Refused, Span

MOST_MEMBERS = 1 << 17
"""A member takes some hundred bytes of memory; a dump has one for each tensor."""
_MOST_DIRECTORY = 16 << 20
_LOCAL_BYTES = 30
_MOST_DIMENSIONS = 16
_REBUILD = "torch._utils._rebuild_tensor_v2"
CODES = {
    **{"torch.BoolStorage": "?", "torch.ByteStorage": "B", "torch.CharStorage": "b"},
    **{"torch.ShortStorage": "h", "torch.IntStorage": "i", "torch.LongStorage": "q"},
    **{"torch.HalfStorage": "e", "torch.FloatStorage": "f", "torch.DoubleStorage": "d"},
    "torch.BFloat16Storage": "e",  # of its size: only integers are read
}
"""Storage class → code of ``struct``."""
INTEGERS = {"i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
"""The same for types of numpy."""
_NUMPY = {"numpy.ndarray", "numpy.dtype", "_codecs.encode", "__builtin__.bytes"}
for _core in ("numpy.core", "numpy._core"):
    _NUMPY |= {f"{_core}.multiarray._reconstruct", f"{_core}.multiarray.scalar"}
_ALLOWED = {*CODES, *_NUMPY, _REBUILD, ORDERED}


@dataclass(frozen=True, slots=True)
class _Storage:
    code: str
    member: ZipInfo
    elements: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor whose numbers are in a file; ``numbers`` reads them from it."""

    shape: tuple[int, ...]
    _storage: _Storage
    _offset: int  # in elements

    @property
    def is_integer(self) -> bool:
        """Whether its numbers are integers (not truth values)."""
        return self._storage.code in "Bbhiq"

    def numbers(self, data: Bytes, index: int | None = None) -> list[Any]:
        """The numbers of ``tensor[index]`` in row-major order; of the whole tensor without
        ``index``.

        Args:
            data: The file that ``load`` read.
            index: A position in the first dimension; the caller keeps it inside the shape.

        Raises:
            Unreadable: there are more numbers than are read at once, or the file changed.
        """
        number = math.prod(self.shape if index is None else self.shape[1:])
        code = self._storage.code
        first = self._offset + (index or 0) * number
        start = _start_of(data, self._storage.member) + first * struct.calcsize(code)
        return data.numbers(start, code, number, "the numbers of a tensor")


def array_of(data: Bytes, value: Any) -> tuple[Any, str, Iterator[bytes]] | None:
    """Shape, code of ``struct``, and bytes of integers in three dimensions, else ``None``."""
    match value:
        case Tensor(shape=(_, _, _), _storage=storage) if value.is_integer:
            size = struct.calcsize(storage.code)
            start = _start_of(data, storage.member) + value._offset * size
            end = start + math.prod(value.shape) * size
            return value.shape, storage.code, data.pieces(start, end, "the numbers of a tensor")
        case Made(
            state=(
                int(),
                (int(), int(), int()) as shape,
                Made(arguments=(str(kind), *_), state=(_, "<" | "|", *_)),
                False,
                Made(arguments=(str() | Span() as text, "latin1")),
            )
        ) if kind in INTEGERS and all(size > 0 for size in shape):
            # A byte above 127 takes two in UTF-8.
            if math.prod(shape) * struct.calcsize(INTEGERS[kind]) <= len(text):
                return shape, INTEGERS[kind], _latin1(data, text)
    return None


def _latin1(data: Bytes, text: str | Span) -> Iterator[bytes]:
    decoder = getincrementaldecoder("utf-8")()
    try:
        if isinstance(text, str):
            yield text.encode("latin-1")
            return
        for piece in data.pieces(text.start, text.end, "the numbers of an array"):
            yield decoder.decode(piece).encode("latin-1")
    except UnicodeError:
        raise data.broken("an array of numpy is not bytes; copy the file again") from None


def _is_contiguous(sizes: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size > 1 and stride != expected:
            return False
        expected *= max(size, 1)
    return True


def load(data: Bytes) -> Any:
    """The value that ``torch.save`` got: containers, numbers, texts and ``Tensor``.

    The numbers of a ``Tensor`` stay in the file until they are asked for. ``Unreadable``: the file
    is damaged, unfinished, too large, or holds something else.
    """
    found = _members(data)
    pickles = [name for name in found if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise data.broken("a zip file without a pickle of torch.save")
    folder = pickles[0].removesuffix("data.pkl")
    tensors = _Tensors(found, folder)
    member = found[pickles[0]]
    span = Span(start := _start_of(data, member), start + member.file_size)
    try:
        return plain_pickle.load(data, span, _ALLOWED, tensors.call, tensors.storage)
    except Refused as refused:
        raise data.broken(str(refused)) from None


def _members(data: Bytes) -> dict[str, ZipInfo]:
    """The members by name; they are only located, what they hold is read piece by piece."""
    try:
        with ZipFile(_Limited(data.file, closefd=False)) as archive:
            found = archive.infolist()
    except (BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error):
        raise data.broken(
            "the end of the zip file is missing: it is still being written, or was cut off; write "
            "the dump again"
        ) from None
    if len(found) > MOST_MEMBERS:
        raise data.broken(f"{len(found):,} members, at most {MOST_MEMBERS:,} are read")
    end = 0
    for info in sorted(found, key=lambda info: info.header_offset):
        if info.flag_bits & 1 or info.compress_type != ZIP_STORED:
            raise data.broken(
                f"member {safe_text(info.filename, 40)!r} is encrypted or compressed; torch.save "
                "does neither, save it again"
            )
        start, end = end, info.header_offset + _LOCAL_BYTES + info.file_size
        if info.header_offset < start or end > data.size:
            raise data.broken("members overlap or lie outside the file")
    return {info.filename: info for info in found}


class _Limited(FileIO):
    """A file as ``zipfile`` reads it: no more than a directory may have is read at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(min(size or 0, _MOST_DIRECTORY))


def _start_of(data: Bytes, member: ZipInfo) -> int:
    header = data.read(member.header_offset, _LOCAL_BYTES, "the header of a member")
    start: int = member.header_offset + _LOCAL_BYTES + sum(struct.unpack_from("<HH", header, 26))
    if not header.startswith(b"PK\3\4") or start + member.file_size > data.size:
        raise data.broken("a member is not where the directory puts it; copy the file again")
    return start


class _Tensors:
    """Checks that the numbers of storages and tensors are inside the file."""

    def __init__(self, found: dict[str, ZipInfo], folder: str) -> None:
        self._found, self._folder = found, folder

    def storage(self, reference: Any) -> _Storage:
        """The storage of ``("storage", class, key, device, number of elements)``."""
        match reference:
            case ("storage", plain_pickle.Global(name=name), str(key), str(), int(elements)):
                pass
            case _:
                raise Refused("the pickle refers to something that is not a storage of a tensor")
        if name not in CODES:
            raise Refused(f"{safe_text(name, 60)} is not the storage of a tensor")
        member = self._found.get(f"{self._folder}data/{key}")
        size = struct.calcsize(f"<{CODES[name]}")
        if member is None or not 0 <= elements * size <= member.file_size:
            raise Refused(f"storage {safe_text(key, 20)!r} has fewer bytes than the pickle needs")
        return _Storage(CODES[name], member, elements)

    def call(self, called: tuple[str, tuple[Any, ...]]) -> Tensor | Made:
        """The tensor of ``_rebuild_tensor_v2(storage, offset, shape, strides, …)``, or numpy's."""
        name, arguments = called
        if name in _NUMPY:
            return Made(arguments)
        if name != _REBUILD or len(arguments) < 4:
            raise Refused(f"the pickle calls {safe_text(name, 60)}; nothing was executed")
        storage, offset, shape, strides = arguments[:4]
        sizes = (shape, strides, (offset,))
        if (
            not isinstance(storage, _Storage)
            or any(type(part) is not tuple for part in sizes)
            or any(type(n) is not int or n < 0 for part in sizes for n in part)
            or len(shape) != len(strides)
            or len(shape) > _MOST_DIMENSIONS
        ):
            raise Refused("a tensor has a shape, strides or an offset that no tensor has")
        if not _is_contiguous(shape, strides):
            raise Refused("a tensor is a strided view; save its contiguous()")
        if offset + math.prod(shape) > storage.elements:
            raise Refused(
                f"a tensor of shape {shape} is not inside its storage of {storage.elements:,}"
            )
        return Tensor(shape, storage, offset)
