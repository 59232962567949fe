"""A trace of the trained model at the end of a training, where anatomy is installed."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

_ANATOMY = "microscope_tui.extensions.anatomy"


def trace_texts(model: Any, tokenizer: Any, texts: Mapping[str, str], folder: Path) -> str:
    """Write the experts of every token of ``texts`` to ``folder``; a line to print.

    See ``extensions/anatomy/checkpoints.py``. Without that extension there is no trace.
    """
    try:
        checkpoints = import_module(f"{_ANATOMY}.checkpoints")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith(_ANATOMY):
            raise
        return "no trace: this installation has no anatomy"
    line: str = checkpoints.trace_texts(model, tokenizer, texts, folder)
    return line
