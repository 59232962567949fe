"""Command lines that exit with 64 for a usage error, never 2.

cyclopts, like argparse, would exit with 2, which is a verdict of ``moe-microscope check``.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from moe_model.plain_text import plain_text

FINISHED = 0
FAILED = 1
STOPPED_ON_COLLAPSE = 3
USAGE = 64
STOPPED_BY_SIGNAL = 75
NEEDED = ("torch", "numpy", "safetensors", "tokenizers")
"""Packages of ``moe-microscope[train]`` that the model needs."""


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
    """Exit with one line if ``NEEDED`` packages, or ``more``, are not installed."""
    missing = [name for name in (*NEEDED, *more) if importlib.util.find_spec(name) is None]
    if missing:
        say(
            f"{program}: needs pip install '{install}': {', '.join(missing)} cannot be imported by "
            f"{sys.executable}"
        )
        sys.exit(code)


def run_command(app: App, arguments: Sequence[str] | None) -> int:
    """Run ``app`` and return the exit code of the process.

    The command returns its exit code, or ``None`` for success. :class:`UsageError` and anything
    cyclopts rejects become one line on standard error and exit code 64.
    """
    try:
        code = app(
            arguments,
            exit_on_error=False,
            print_error=False,
            result_action="return_value",
        )
    except (CycloptsError, UsageError) as error:
        say(f"{app.name[0]}: {error}")
        say(f"Try '{app.name[0]} --help'.")
        return USAGE
    finally:
        _drop_unsaid()
    return FINISHED if code is None else int(code)


def say(line: str) -> None:
    """Print one line on standard error, which may be closed or full."""
    if sys.stderr is None:
        return
    text = plain_text(line.rstrip("\n"))
    # A lost message must not end the training. A closed file raises ValueError.
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _drop_unsaid() -> None:
    """Drop a broken standard error: Python's last flush would otherwise exit with 120."""
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = None
