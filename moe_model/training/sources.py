"""The data sources of ``--data``, read into documents, each with a name and a text.

``python-docs`` comes with Python, ``tinyshakespeare`` is downloaded once and checked against its
SHA-256, and anything else is a local path: a file is one document, a folder one document per file.
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

from moe_model import UsageError, python_docs, read_text, say

PYTHON_DOCS = "python-docs"
TINY_SHAKESPEARE = "tinyshakespeare"
SHAKESPEARE_URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
)
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
SHAKESPEARE_FILE = "tinyshakespeare.txt"

LONG_TEXT = 20_000_000
"""From this many characters on, a line announces that processing takes a while."""

UserCache = Literal["user"]
"""Placeholder for :func:`user_cache`, which is evaluated on use, not on import."""


@dataclass(frozen=True, slots=True)
class Document:
    """A text that is independent of the documents before it."""

    name: str
    """Its name in errors: the name given to ``--data``, or a path inside that folder."""
    text: str


def count_characters(documents: Iterable[Document]) -> int:
    """Total characters of all ``documents``."""
    return sum(len(document.text) for document in documents)


def user_cache() -> Path:
    """The user's cache folder; it follows ``XDG_CACHE_HOME``."""
    return user_cache_path("moe-microscope")


def load_documents(data: str, cache: Path | UserCache = "user") -> list[Document]:
    """The documents that ``data`` names: at least one, none of them empty.

    Args:
        data: ``python-docs``, ``tinyshakespeare``, a UTF-8 file or a folder of such files.
        cache: Folder for downloads.

    Raises:
        UsageError: If it does not exist, cannot be read or downloaded, is not text, or is empty.
    """
    if data == PYTHON_DOCS:
        return [Document(data, python_docs("--data"))]
    if data == TINY_SHAKESPEARE:
        return [Document(data, _tiny_shakespeare(user_cache() if cache == "user" else cache))]
    try:
        os.stat(data)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(
            f"--data {data!r} does not exist: name a file, a folder, {PYTHON_DOCS} or "
            f"{TINY_SHAKESPEARE}."
        ) from error
    except (OSError, ValueError) as error:  # no access, a loop of links, too long, a NUL
        raise UsageError(f"--data {data!r} cannot be read ({error}): name another file.") from error
    documents = _read_folder(Path(data)) if Path(data).is_dir() else _read_file(Path(data))
    if not documents:
        raise UsageError(f"--data {data} contains no text: name a file or folder that does.")
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
    """Files below ``root`` that are not hidden; a folder reached through several links is read
    once."""
    seen = set()
    for folder, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        here = os.stat(folder)
        if (here.st_dev, here.st_ino) in seen:
            folders.clear()
            continue
        seen.add((here.st_dev, here.st_ino))
        # In a fixed order, which decides under which of its names a folder is read.
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(folder, name)
            # A dangling link is treated as a missing file: reading it reports the error.
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
        except OSError as error:  # requests' errors are OSErrors too
            raise _not_fetched(type(error).__name__) from error
        except ValueError as error:
            raise _not_fetched("its SHA-256 differs from the expected one") from error
        return read_text(Path(path), "--data")


def _not_fetched(reason: str) -> UsageError:
    return UsageError(
        f"--data {TINY_SHAKESPEARE} cannot be downloaded ({reason}): download {SHAKESPEARE_URL} "
        "on another machine and pass the file to --data, or omit --data."
    )


@contextmanager
def _download_folder(cache: Path) -> Iterator[Path]:
    """``cache``, or a temporary folder if it is not writable."""
    try:
        if not (cache / SHAKESPEARE_FILE).is_file():
            cache.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=cache).close()
    except OSError as error:
        say(f"cannot write {cache} ({error.strerror}): the download will not be cached.")
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    else:
        yield cache
