"""Text for training or evaluation: a UTF-8 file, or a text that comes with Python."""

from __future__ import annotations

import importlib
from pathlib import Path

from moe_model.command import UsageError


def read_text(path: Path, flag: str, instead: str = "name another file") -> str:
    """Read the text in ``path``; ``UsageError`` names ``flag``, the problem and what to do.

    Args:
        path: A UTF-8 file.
        flag: The option that named it.
        instead: Advice if the file cannot be read or is not text.
    """
    if path.is_dir():
        raise UsageError(f"{flag} {path} is a folder: name one text file in it.")
    if not path.exists():
        raise UsageError(f"{flag} {path} does not exist: name a UTF-8 text file, or omit it.")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{flag} {path} is not UTF-8 text (byte {error.start} is "
            f"0x{error.object[error.start]:02x}): convert it, or {instead}."
        ) from error
    except OSError as error:
        raise UsageError(f"{flag} {path} cannot be read ({error.strerror}): {instead}.") from error


def python_docs(flag: str) -> str:
    """The language reference behind ``help()``, which comes with Python: no download."""
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise UsageError(
            "this Python was built without pydoc_data, the default text: name a "
            f"UTF-8 text file with {flag}."
        ) from error
    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"
