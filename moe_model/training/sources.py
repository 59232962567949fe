"""What a run learns from: whatever ``--data`` names becomes documents, each a name and a text.

``python-docs`` comes with Python, ``tinyshakespeare`` is fetched once and checked against its
SHA-256, and anything else lies on this machine: a file is one document, a folder one per file.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from platformdirs import user_cache_path

from moe_model.command import UsageError, say
from moe_model.text import python_docs, read_text

PYTHON_DOCS = "python-docs"
TINY_SHAKESPEARE = "tinyshakespeare"
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_FILE = "tinyshakespeare.txt"

LONG_TEXT = 20_000_000
"""Characters from which on a line says that what is done with them takes a while."""

UserCache = Literal["user"]
"""Stands for :func:`user_cache`, which is looked up when it is needed, not on import."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is learnt as a whole: nothing in it is predicted from the text before it."""

    name: str
    """What an error calls it: the name given to ``--data``, or a path inside that folder."""
    text: str


def count_characters(documents: Iterable[Document]) -> int:
    """Characters of all ``documents`` together."""
    return sum(len(document.text) for document in documents)


def user_cache() -> Path:
    """The folder for what can be fetched or computed again; it follows ``XDG_CACHE_HOME``."""
    return user_cache_path("moe-microscope")


def load_documents(data: str, cache: Path | UserCache = "user") -> list[Document]:
    """The documents that ``data`` names, one at least, none of them empty.

    Args:
        data: ``python-docs``, ``tinyshakespeare``, a UTF-8 file or a folder of such files.
        cache: Folder that keeps what is fetched.

    Raises:
        UsageError: If it names nothing, cannot be read or fetched, is not text, or is empty.
    """
    if data == PYTHON_DOCS:
        return [Document(data, python_docs("--data"))]
    if data == TINY_SHAKESPEARE:
        return [Document(data, _tiny_shakespeare(user_cache() if cache == "user" else cache))]
    try:
        os.stat(data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"--data {data!r} is neither {PYTHON_DOCS} nor {TINY_SHAKESPEARE}, and no file or "
            "folder here: name one of them."
        ) from error
    except (OSError, ValueError) as error:  # no access, a loop of links, too long, a NUL
        raise UsageError(f"--data {data!r} cannot be read ({error}): name another file.") from error
    documents = _read_folder(Path(data)) if Path(data).is_dir() else _read_file(Path(data))
    if not documents:
        raise UsageError(f"--data {data} holds no text: name a file or folder with some.")
    return documents


def _read_file(path: Path) -> list[Document]:
    text = read_text(path, "--data")
    return [Document(str(path), text)] if text else []


def _read_folder(root: Path) -> list[Document]:
    try:
        names = sorted(path.relative_to(root).as_posix() for path in _visible_files(root))
    except OSError as error:
        raise UsageError(
            f"--data {error.filename} cannot be read ({error.strerror}): move it out of the folder."
        ) from error
    instead = "move it out of the folder"
    texts = ((name, read_text(root / name, "--data", instead)) for name in names)
    return [Document(name, text) for name, text in texts if text]


def _visible_files(root: Path) -> Iterator[Path]:
    """Files below ``root`` that are not hidden; a folder that links lead back to is read once."""
    seen = set()
    for folder, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        # In a fixed order: it decides by which of its names a folder is met first.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            # A link that leads nowhere is a file that is missing: reading it says so.
            if not name.startswith(".") and (path.is_file() or not path.exists()):
                yield path


def _raise(error: OSError) -> None:
    raise error


def _tiny_shakespeare(cache: Path) -> str:
    try:
        import pooch
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--data {TINY_SHAKESPEARE} needs pooch: pip install 'moe-microscope[train]', or name "
            "a file."
        ) from error
    with _download_folder(cache) as folder:
        try:
            path = pooch.retrieve(
                SHAKESPEARE_URL,
                known_hash=f"sha256:{SHAKESPEARE_SHA256}",
                fname=SHAKESPEARE_FILE,
                path=folder,
            )
        except OSError as error:  # what requests raises is one as well
            raise _not_fetched(type(error).__name__) from error
        except ValueError as error:
            raise _not_fetched("what came is another text: its SHA-256 differs") from error
        return read_text(Path(path), "--data")


def _not_fetched(reason: str) -> UsageError:
    return UsageError(
        f"--data {TINY_SHAKESPEARE} cannot be fetched ({reason}): fetch {SHAKESPEARE_URL} on "
        "another machine and give that file to --data, or leave --data out."
    )


@contextmanager
def _download_folder(cache: Path) -> Iterator[Path]:
    """``cache``, or a folder for this once where nothing can be written there."""
    try:
        if not (cache / SHAKESPEARE_FILE).is_file():
            cache.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=cache).close()
    except OSError as error:
        say(f"{cache} cannot be written ({error.strerror}): what is fetched will not be kept.")
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        yield cache
