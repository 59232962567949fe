"""What every command needs: exit codes, errors in one line, text that is safe to print, a device.

cyclopts, like argparse, would exit with 2 for a usage error, which is a verdict of
``moe-microscope check``: here it is 64.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cyclopts import App, CycloptsError, UnknownOptionError

if TYPE_CHECKING:
    import torch

FINISHED = 0
FAILED = 1
STOPPED_ON_COLLAPSE = 3
USAGE = 64
STOPPED_BY_SIGNAL = 75
NEEDED = ("torch", "numpy", "safetensors", "tokenizers")
"""Packages of ``moe-microscope[train]`` that the model needs."""

DeviceName = Literal["auto", "cpu", "cuda"]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

# Control, format (bidi, zero-width), private use, surrogate, unassigned, line separators.
_STEERING_CATEGORIES = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})
_TO_SPACE = dict.fromkeys(map(ord, "\t\n\r\v\f"), " ")


def version() -> str:
    """The installed version; a checkout that is not installed has none."""
    from importlib import metadata  # slow, so imported on use

    try:
        return metadata.version("moe-microscope")
    except metadata.PackageNotFoundError:
        return "unknown: not installed"


class UsageError(ValueError):
    """A usage error; the message names the option, the value and what to do."""


def need_packages(
    program: str, *more: str, install: str = "moe-microscope[train]", code: int = USAGE
) -> None:
    """Exit with one line if ``NEEDED`` packages, or ``more``, are not installed.

    It imports none of them, so a program calls it before its own imports.

    Args:
        program: Name of the command in the message.
        install: What pip has to install to get them.
        code: Exit code.
    """
    missing = [name for name in (*NEEDED, *more) if importlib.util.find_spec(name) is None]
    if missing:
        say(
            f"{program}: needs pip install '{install}': {', '.join(missing)} cannot be imported by "
            f"{sys.executable}"
        )
        sys.exit(code)


def run_command(app: App, arguments: Sequence[str] | None) -> int:
    """Run ``app``; return the exit code of the process.

    It is that of the command, and 0 if the command returns ``None``. It is 64, after one line on
    standard error, for :class:`UsageError` and anything that cyclopts rejects; other exceptions
    leave it.

    Args:
        arguments: ``None`` for those of the process.
    """
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except (CycloptsError, UsageError) as error:
        say(f"{app.name[0]}: {error}")
        program = app.name[0].removeprefix("python ")
        if isinstance(error, UnknownOptionError) and any(
            name.startswith("--model.") for one in error.argument_collection for name in one.names
        ):
            say(f"Fields of the model: --model.FIELD, see 'python {program} --help-all'.")
        else:
            say(f"Try 'python {program} --help'.")
        return USAGE
    finally:
        try:
            if sys.stderr is not None:
                sys.stderr.flush()
        except (OSError, ValueError):
            sys.stderr = None  # broken: Python's last flush would exit with 120
    return int(code or FINISHED)


def say(line: str) -> None:
    """Print one line on standard error, which may be closed or full."""
    if sys.stderr is None:
        return
    text = plain_text(line.rstrip("\n"))
    # A lost message must not end the training. A closed file raises ValueError.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def choose_device(name: str, *, deterministic: bool = False) -> torch.device:
    """The device ``name``; ``auto`` is a GPU if there is one. ``UsageError`` if ``cuda`` has none.

    ``deterministic`` must be set before anything runs on a GPU: otherwise attention sums its
    gradients in any order there, and cuBLAS may. A CPU is always deterministic.
    """
    import torch  # not before need_packages()

    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: torch finds no usable GPU: use --device cpu.")
    return torch.device(name)


def read_text(path: Path, flag: str, instead: str = "name another file") -> str:
    """Read the text in ``path``; ``UsageError`` names ``flag``, the problem and what to do.

    Args:
        flag: The option that named it.
        instead: Advice if the file cannot be read or is not UTF-8.
    """
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
    """The language reference behind ``help()``, which comes with Python.

    ``UsageError`` if this Python was built without it; ``flag`` is the option that names another
    text.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ModuleNotFoundError as error:
        raise UsageError(
            "this Python was built without pydoc_data, the default text: name a "
            f"UTF-8 text file with {flag}."
        ) from error
    return "\n\n".join(topics[name].strip() for name in sorted(topics)) + "\n"


def plain_text(text: str, *, multi_line: bool = False) -> str:
    """Replace the characters of ``text`` that could control a terminal; the length stays the same.

    Args:
        text: Any string, including lone surrogates.
        multi_line: Keep line breaks and tabs. Otherwise every whitespace control becomes a space:
            one line in, one line out.
    """
    if not multi_line:
        text = text.translate(_TO_SPACE)
    others = set(text) - set("\n\t")
    steering = {c for c in others if unicodedata.category(c) in _STEERING_CATEGORIES}
    return text.translate(dict.fromkeys(map(ord, steering), REPLACEMENT))
