"""``moe-microscope probe``: traces what the experts of a finished model do with a text.

The only command that imports the probe, and so torch, when it is called.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from microscope_tui.commands.console import (
    DEFAULT_PATH,
    NO_VERDICT,
    USAGE,
    fail,
    file_name,
    print_data,
    say,
    show_progress,
)
from microscope_tui.commands.options import DEFAULT_PROBE, DEFAULT_WINDOW, ProbeOptions
from microscope_tui.draw.words import bytes_of
from microscope_tui.runlog import ROUTING_NAME

if TYPE_CHECKING:
    from microscope_tui.extensions.anatomy.probed_model import ProbedModel
    from microscope_tui.extensions.anatomy.probing import Outcome
    from microscope_tui.extensions.anatomy.texts import Reading

INTERRUPTED = 130
_BATCH_TOKENS = {"cpu": 2048, "cuda": 16_384}
_WRITTEN = 256
_NEEDED = ("torch", "numpy", "safetensors", "tokenizers", "transformers")


def probe(model: str, /, *text: str, options: ProbeOptions = DEFAULT_PROBE) -> int:
    """Trace what the experts of a finished model do with a text: 0 written, 3 failed.

    Writes a folder with a run log and ``routing.bin``, which contains the text itself and what
    every router chose for each of its tokens. Ctrl-C leaves a shorter one.

    Parameters
    ----------
    model
        A folder in the format of Hugging Face, a checkpoint of train.py, or ORG/NAME on the
        Hugging Face hub. Safetensors only; code that comes with a model is never run.
    text
        UTF-8 files or folders. Each is a slice with its own name, or with that of NAME=PATH;
        equal names are one slice.
    """
    if not text:
        fail("probe MODEL TEXT: name at least one text, a UTF-8 file or a folder", USAGE)
    options.refuse_invalid()
    if [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        fail("probe needs pip install 'moe-microscope[train]'", USAGE)

    from microscope_tui.probe.threads import choose_waiting, settle_threads

    choose_waiting()

    from microscope_tui.extensions.anatomy.probed_model import CannotProbe
    from microscope_tui.extensions.anatomy.texts import BadText

    settle_threads()
    logging.lastResort = _Messages(logging.WARNING)
    try:
        outcome = _run(*_prepare(model, text, options), options)
    except (CannotProbe, BadText) as error:
        fail(str(error), USAGE)
    except KeyboardInterrupt:
        fail("interrupted before the first batch was done: nothing is written", INTERRUPTED)
    except OSError as error:
        fail(f"{error.filename or 'the probe'}: cannot be written ({error.strerror})", NO_VERDICT)
    if outcome.reason == "failed":
        fail(f"{outcome.problem}; what came before it is written", NO_VERDICT)
    return INTERRUPTED if outcome.reason == "signal" else 0


def _prepare(
    model: str, text: tuple[str, ...], options: ProbeOptions
) -> tuple[ProbedModel, list[str], Reading]:
    from microscope_tui.extensions.anatomy.checkpoints import load
    from microscope_tui.extensions.anatomy.probed_model import CannotProbe
    from microscope_tui.extensions.anatomy.probing import refuse_unknown
    from microscope_tui.extensions.anatomy.texts import find_slices, read_windows

    slices = find_slices(text)  # before a model is loaded for minutes
    subject = load(model, dtype=options.dtype, device=options.device, download=options.download)
    refuse_unknown(subject, 2 * len(slices) if options.generate else len(slices))
    window = options.window
    most = subject.context or DEFAULT_WINDOW
    if window is not None and subject.context is not None and window > most:
        raise CannotProbe(f"--window {window:,}: {subject.name} reads at most {most:,} tokens")
    length = window or min(most, DEFAULT_WINDOW)
    names = [one.name for one in slices]
    reading = read_windows(slices, subject.pieces, length, options.tokens)
    if options.generate:
        reading = _continued(subject, reading, len(slices), length, options.tokens)
        names += [f"{name} written" for name in names]
    return subject, names, reading


def _continued(
    subject: ProbedModel, reading: Reading, num_slices: int, length: int, most: int
) -> Reading:
    """The beginnings of the texts, and what the model writes after them."""
    from microscope_tui.extensions.anatomy.texts import Reading, continued

    windows = []
    count = 0
    how = subject.pieces, subject.write, length, _WRITTEN
    for one in continued(reading.windows, num_slices, *how):
        windows.append(one)
        count += len(one.ids)
        show_progress(f"writing: {count:,} tokens")
        if count >= most:
            break
    return Reading(windows, reading.notes)


def _run(
    subject: ProbedModel, slices: list[str], reading: Reading, options: ProbeOptions
) -> Outcome:
    from microscope_tui.extensions.anatomy.probing import run_probe

    for note in reading.notes:
        say(note)
    longest = max(len(window.ids) for window in reading.windows)
    size = options.batch_size or max(1, _BATCH_TOKENS.get(subject.device.type, 2048) // longest)
    folder = options.output or _default_folder(subject.name)
    outcome = run_probe(
        subject,
        reading.windows,
        slices,
        folder,
        batch_size=size,
        progress=_Progress(),
    )
    show_progress("")
    if not outcome.tokens:
        fail(f"{subject.name}: {outcome.problem}", NO_VERDICT)
    if outcome.reason == "signal":
        whole = sum(len(window.ids) for window in reading.windows)
        say(f"interrupted: {outcome.tokens:,} of {whole:,} tokens are written")
    size_of = (folder / ROUTING_NAME).stat().st_size
    print_data(f"{folder}: {outcome.tokens:,} tokens, {bytes_of(size_of)}")
    how = f"open it with moe-microscope {folder} (7 shows its tokens, 8 its slices)"
    say(f"{ROUTING_NAME} contains the text itself; {how}")
    return outcome


def _default_folder(name: str) -> Path:
    folder = DEFAULT_PATH / f"probe-{file_name(name)}-{time.strftime('%Y-%m-%d-%H%M%S')}"
    if folder.exists():
        fail(f"{folder}: exists already; name another folder with -o", USAGE)
    return folder


class _Messages(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        say(record.getMessage())


class _Progress:
    def __init__(self) -> None:
        self._began = self._shown = time.monotonic()

    def __call__(self, what: str, done: int, whole: int) -> None:
        now = time.monotonic()
        if now - self._shown < (0.2 if sys.stderr.isatty() else 30):
            return
        self._shown = now
        text = f"tables: {done} of {whole} layers"
        if what == "tokens":
            speed = done / (now - self._began)
            left = f", {speed:,.0f} tokens/s, {(whole - done) / speed:,.0f} s left" if done else ""
            text = f"{done / whole:.0%} of {whole:,} tokens{left}"
        (show_progress if sys.stderr.isatty() else say)(text)
