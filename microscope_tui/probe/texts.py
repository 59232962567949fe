"""The texts of a probe: files and folders, in named slices, read in bounded pieces.

Files that a folder holds are skipped where they are links, hidden, or not UTF-8 text; a file that
was named has to be text.
"""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from microscope_tui.runlog import open_regular_file

PIECE_BYTES = 1 << 20
MOST_FILES = 100_000


class BadText(ValueError):
    """A text that cannot be probed; the message has its path and what to do."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Texts that are counted together."""

    name: str
    files: tuple[Path, ...]
    named: frozenset[Path]
    """Those that were named on the command line: these must be text."""


def find_slices(texts: Sequence[str]) -> list[Slice]:
    """The slices that ``texts`` name: ``path`` or ``name=path``; equal names are one slice.

    Raises:
        BadText: one is missing, unreadable, or a folder without files.
    """
    found: dict[str, Slice] = {}
    for text in texts:
        name, path = _split(text)
        if not path.exists():
            raise BadText(f"{path}: no such file or folder; name a UTF-8 text, or NAME=PATH")
        files = tuple(_below(path)) if path.is_dir() else (path,)
        if not files:
            raise BadText(f"{path}: contains no file; name a folder with UTF-8 texts")
        before = found.get(name, Slice(name, (), frozenset()))
        named = frozenset() if path.is_dir() else frozenset(files)
        found[name] = Slice(name, before.files + files, before.named | named)
    return list(found.values())


def _split(text: str) -> tuple[str, Path]:
    name, equals, path = text.partition("=")
    if equals and name and path and not os.path.lexists(text):
        return name, Path(path)
    whole = Path(text)
    return whole.stem or whole.resolve().name or text, whole


def _below(folder: Path) -> Iterator[Path]:
    """Regular files below ``folder``, sorted; neither links nor what is hidden."""
    count = 0
    for where, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(where, name)
            if name.startswith(".") or not stat.S_ISREG(path.lstat().st_mode):
                continue
            count += 1
            if count > MOST_FILES:
                raise BadText(f"{folder}: more than {MOST_FILES:,} files; name a smaller folder")
            yield path


def read_text(path: Path, piece_bytes: int = PIECE_BYTES) -> Iterator[str]:
    """The text of ``path`` in pieces that end with a line where there is one.

    Raises:
        BadText: it is not UTF-8 text, or cannot be read.
    """
    decode, rest, read = codecs.getincrementaldecoder("utf-8")(), "", 0
    try:
        descriptor = open_regular_file(path)
        with os.fdopen(descriptor, "rb") as file:
            while data := file.read(piece_bytes):
                if (at := data.find(b"\0")) >= 0:
                    raise BadText(f"{path}: binary (byte {read + at:,} is 0); name a UTF-8 text")
                rest += decode.decode(data)
                read += len(data)
                cut = rest.rfind("\n") + 1 or len(rest)
                yield rest[:cut]
                rest = rest[cut:]
        rest += decode.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise BadText(
            f"{path}: not UTF-8 ({error.reason} near byte {read:,}); convert it"
        ) from None
    except OSError as error:
        raise BadText(f"{path}: cannot be read ({error.strerror})") from None
    if rest:
        yield rest
