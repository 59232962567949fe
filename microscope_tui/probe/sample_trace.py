"""Traces what a model of this project has just written: the sample at the end of a training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from microscope_tui.probe.checkpoints import subject_of
from microscope_tui.probe.probing import run_probe
from microscope_tui.probe.windows import Window


def trace_texts(model: Any, tokenizer: Any, texts: Mapping[str, str], folder: Path) -> str:
    """Trace ``texts``, each a slice by its name, as one text in windows of the model's context.

    Never raises but for Ctrl-C: the training that it ends has succeeded.

    Args:
        model: A ``LanguageModel``, which keeps its mode.
        tokenizer: Its tokenizer.
        texts: Follow each other.
        folder: Must not exist.

    Returns:
        One line: where the trace is, or why there is none.
    """
    if folder.exists():
        return f"no trace: {folder} exists already"
    was_training = model.training
    try:
        subject = subject_of(model.eval(), tokenizer, folder.name)
        parts: list[tuple[int, bytes, int]] = []
        for number, text in enumerate(texts.values()):
            pairs = zip(*subject.pieces.encode(text), strict=True)
            parts += [(token, piece, number) for token, piece in pairs]
        length = subject.context or len(parts)
        windows = []
        for start in range(0, len(parts), length):
            ids, pieces, numbers = zip(*parts[start : start + length], strict=True)
            windows.append(Window(list(ids), list(pieces), list(numbers)))
        outcome = run_probe(subject, windows, list(texts), folder)
    except Exception as error:  # whatever it is, the run itself has finished
        return f"no trace: {error}"
    finally:
        model.train(was_training)
    return f"no trace: {outcome.problem}" if outcome.problem else f"moe-microscope {folder}"
