"""A pickle that holds plain data only: an interpreter that cannot call anything.

Python's own unpickler calls what the pickle names. This one has no such operation: it knows the
few opcodes that ``torch.save`` writes (protocol 2) for containers, numbers, texts and tensors, and
refuses the file at any other. Every opcode makes at most one object, so the number of opcodes
bounds the memory; there is no recursion.

It is read as a stream: long texts and runs of numbers in a list stay in the file, with a ``Span``
in their place. The numbers of an array of numpy are a text too, as latin-1.
"""

import re
import struct
from collections.abc import Callable, Container, Hashable
from dataclasses import dataclass
from struct import Struct
from typing import Any

from microscope_tui.runlog import safe_text
from microscope_tui.sources.dumps import Bytes

MOST_OPCODES = 4_000_000
"""At most 400 MB of objects, for a moment; a dump of 1,000 passes on one rank has 40,000."""
MOST_DEPTH = 32
"""Containers inside each other; a dump has four."""
_MOST_NAME = 512
_WINDOW = 1 << 20
_AHEAD = 16 << 10
"""Bytes that one operation may need; a run has 1,000 numbers at most."""
_LONG_TEXT = 64
_NUMBER = re.compile(rb"K.|M..|J.{4}|G.{8}|[N\x88\x89]", re.DOTALL)
_RUN = re.compile(rb"(?:%s)++(?=e)" % _NUMBER.pattern, re.DOTALL)
_NUMBERS = {b"J": Struct("<i"), b"K": Struct("<B"), b"M": Struct("<H"), b"G": Struct(">d")}
_CONSTANTS = {b"N": None, b"\x88": True, b"\x89": False, b")": ()}
_PUTS = {b"q": Struct("<B"), b"r": Struct("<I")}
_GETS = {b"h": Struct("<B"), b"j": Struct("<I")}
_TUPLES = {b"\x85": 1, b"\x86": 2, b"\x87": 3}


class Refused(ValueError):
    """The pickle is damaged, too large, or would need code; the message has the reason."""


@dataclass(slots=True)
class Global:
    """A name that the pickle refers to; it is never imported."""

    name: str


@dataclass(slots=True)
class Made:
    """What a call would make, and its state; nothing is called."""

    arguments: tuple[Any, ...]
    state: Any = None


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of the file: a text as UTF-8, or numbers of a list (``numbers`` reads them)."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


def numbers(run: bytes) -> list[Any]:
    """The items of a list from the bytes of a ``Span``: numbers, true, false and ``None``."""
    return [_NUMBERS[one[:1]].unpack(one[1:])[0] for one in _NUMBER.findall(run) if len(one) > 1]


_KEYS = (str, int, float, bool, type(None), Span)
ORDERED = "collections.OrderedDict"
Build = Callable[[Any], Any]


def load(data: Bytes, span: Span, allowed: Container[str], call: Build, storage: Build) -> Any:
    """The value of the pickle in ``span``. Nothing in it is imported or called.

    Args:
        data: The file that holds the pickle.
        span: The bytes of the pickle in it.
        allowed: The globals that may appear; another one is refused.
        call: Gives the value of ``(name, arguments)``, for globals other than ``OrderedDict``.
        storage: Gives the value of a persistent id.

    Raises:
        Refused: it is damaged, too large or too deep, or would need code.
    """
    try:
        value = _Interpreter(data, span, allowed, call, storage).run()
    except (IndexError, KeyError, struct.error):
        raise Refused("the pickle is damaged; copy the file again") from None
    _check_depth(value)
    return value


class _Interpreter:
    def __init__(
        self, file: Bytes, span: Span, allowed: Container[str], call: Build, storage: Build
    ) -> None:
        self._file, self._end = file, span.end
        self._data, self._base = b"", span.start  # a window of the pickle, and where it begins
        self._at = 0
        self._allowed, self._call, self._storage = allowed, call, storage
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        for _ in range(MOST_OPCODES):
            if len(self._data) - self._at < _AHEAD and self._base + len(self._data) < self._end:
                self._base += self._at
                size = max(0, min(_WINDOW, self._end - self._base))
                self._data, self._at = self._file.read(self._base, size, "the pickle"), 0
            data = self._data
            code = data[self._at : self._at + 1]
            self._at += 1
            if (number := _NUMBERS.get(code)) is not None:  # nearly all operations of a long list
                self._stack.append(number.unpack_from(data, self._at)[0])
                self._at += number.size
            elif code == b".":
                if len(self._stack) != 1 or self._marks:
                    raise IndexError
                return self._stack[0]
            elif code in _PUTS:
                self._memo[self._number(_PUTS[code])] = self._stack[-1]
            elif code in _GETS:
                self._stack.append(self._memo[self._number(_GETS[code])])
            elif not (self._push(code) or self._collect(code) or self._name(code)):
                if not code:
                    raise IndexError
                raise Refused(
                    f"the pickle has the operation {code!r}, which is not needed for tensors and "
                    "plain containers"
                )
        raise Refused(f"the pickle has more than {MOST_OPCODES:,} operations; dump more often")

    def _push(self, code: bytes) -> bool:
        push = self._stack.append
        if code in _CONSTANTS:
            push(_CONSTANTS[code])
        elif code == b"X":
            length = int.from_bytes(self._take(4), "little")
            if length > _LONG_TEXT:
                push(self._skipped(length))
            else:
                push(self._take(length).decode("utf-8", "replace"))
        elif code == b"\x8a":
            push(int.from_bytes(self._take(self._take(1)[0]), "little", signed=True))
        elif code == b"}":
            push({})
        elif code == b"]":
            push([])
        elif code == b"(":
            self._marks.append(len(self._stack))
            if run := _RUN.match(self._data, self._at):
                push(self._skipped(len(run[0])))
        elif code == b"\x80":
            self._take(1)  # the protocol
        else:
            return False
        return True

    def _skipped(self, length: int) -> Span:
        start = self._base + self._at
        self._at += length
        return Span(start, start + length)

    def _collect(self, code: bytes) -> bool:
        if code in _TUPLES:
            self._stack.append(tuple(self._pop(_TUPLES[code])))
        elif code == b"t":
            self._stack.append(tuple(self._popped_to_mark()))
        elif code in (b"a", b"e"):
            values = self._pop(1) if code == b"a" else self._popped_to_mark()
            self._top(list).extend(values)
        elif code in (b"s", b"u"):
            values = self._pop(2) if code == b"s" else self._popped_to_mark()
            if len(values) % 2:
                raise IndexError
            mapping = self._top(dict)
            for key, value in zip(values[::2], values[1::2], strict=True):
                mapping[_plain(key)] = value
        else:
            return False
        return True

    def _name(self, code: bytes) -> bool:
        if code == b"c":
            self._stack.append(self._global(f"{self._line()}.{self._line()}"))
        elif code == b"R":
            function, arguments = self._pop(2)
            if type(function) is not Global or type(arguments) is not tuple:
                raise Refused("the pickle calls something that is not a function")
            ordered = function.name == ORDERED and not arguments
            self._stack.append({} if ordered else self._call((function.name, arguments)))
        elif code == b"b":
            (state,) = self._pop(1)
            self._top(Made).state = state
        elif code == b"Q":
            self._stack.append(self._storage(self._pop(1)[0]))
        else:
            return False
        return True

    def _global(self, name: str) -> Global:
        if name not in self._allowed:
            raise Refused(
                f"the pickle names {safe_text(name, 60)}, which is neither a tensor nor a plain "
                "container; nothing was executed"
            )
        return Global(name)

    def _take(self, length: int) -> bytes:
        start = self._at
        self._at += length
        if self._at > len(self._data):
            raise IndexError
        return self._data[start : self._at]

    def _number(self, layout: Struct) -> int:
        value: int = layout.unpack(self._take(layout.size))[0]
        return value

    def _line(self) -> str:
        end = self._data.find(b"\n", self._at, self._at + _MOST_NAME)
        if end < 0:
            raise IndexError
        line = self._data[self._at : end]
        self._at = end + 1
        return line.decode("utf-8", "replace")

    def _pop(self, number: int) -> list[Any]:
        floor = self._marks[-1] if self._marks else 0
        if len(self._stack) - number < floor:
            raise IndexError
        values = self._stack[-number:]
        del self._stack[-number:]
        return values

    def _popped_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _top(self, kind: type) -> Any:
        if type(self._stack[-1]) is not kind:
            raise IndexError
        return self._stack[-1]


def _plain(key: object) -> Hashable:
    if not isinstance(key, _KEYS):  # hashing a deep tuple would recurse
        raise Refused(f"a {type(key).__name__} as a key; only texts and numbers are read")
    return key


def _check_depth(value: Any) -> None:
    """Refuse what is nested too deeply or contains itself."""
    level, depth = [value], 0
    while level:
        if depth > MOST_DEPTH:
            raise Refused(f"more than {MOST_DEPTH} containers inside each other")
        inner: dict[int, Any] = {}  # each container once, though it may be in several places
        for item in level:
            values = item.values() if isinstance(item, dict) else item
            if isinstance(item, dict | list | tuple):
                inner.update((id(v), v) for v in values if isinstance(v, dict | list | tuple))
        level, depth = list(inner.values()), depth + 1
