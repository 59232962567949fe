"""What a person sees of a run: a progress bar on a terminal, plain lines in a file. Standard error.

The only place of the trainer that knows rich.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TextIO

from rich import progress as bars
from rich.console import Console as RichConsole
from rich.text import Text

from moe_model.training.progress import Progress

_PLAIN_INTERVAL_S = 10.0


class Console:
    """Narrates a run of ``steps`` optimizer steps whose routers are called ``layer_names``."""

    def __init__(self, steps: int, layer_names: Sequence[str]) -> None:
        self._steps = steps
        self._layer_names = layer_names
        self._rich = RichConsole(
            file=_Narration(sys.stderr),  # type: ignore[arg-type]  # all of TextIO that rich uses
            highlight=False,
            markup=False,
            emoji=False,
        )
        self._bar = bars.Progress(
            bars.TextColumn("{task.completed}/{task.total}", markup=False),
            bars.BarColumn(bar_width=None),
            bars.TextColumn("{task.fields[numbers]}", markup=False),
            bars.TextColumn("ETA", markup=False),
            bars.TimeRemainingColumn(compact=True),
            console=self._rich,
            expand=True,
            transient=True,
            disable=not self._rich.is_terminal,
        )
        self._task = self._bar.add_task("train", total=steps, numbers="")
        self._started = time.monotonic()
        self._last_line = float("-inf")

    def __enter__(self) -> Console:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """One line above the progress bar; nothing in it is interpreted."""
        self._rich.print(Text(line), soft_wrap=True)

    def step(self, progress: Progress) -> None:
        """Show a completed step: on the bar, or as a line every ten seconds and at both ends."""
        numbers = self._numbers(progress)
        if self._rich.is_terminal:
            self._bar.update(self._task, completed=progress.step, numbers=numbers)
            return
        now = time.monotonic()
        due = now - self._last_line >= _PLAIN_INTERVAL_S
        if due or progress.step in (1, self._steps):
            self._last_line = now
            seconds = (now - self._started) / progress.step * (self._steps - progress.step)
            self.say(f"step {progress.step}/{self._steps}  {numbers}  ETA {_duration(seconds)}")

    def summary(self, progress: Progress, ended: str) -> None:
        """The last word on the numbers: losses, speed, and how every router ended."""
        took = _duration(time.monotonic() - self._started)
        self.say(
            f"{ended} at step {progress.step}/{self._steps} after {took}: {self._numbers(progress)}"
        )
        layers = [
            f"{name} {'–' if c is None else f'{c:.2f}'}"
            for name, c in zip(self._layer_names, progress.collapse_index, strict=True)
        ]
        self.say(f"balance c per layer (1 even, 0 collapsed): {'  '.join(layers)}")

    def sample(self, prompt: str, text: str) -> None:
        """What the model writes now."""
        self.say(f"sample after {prompt!r}:")
        self._rich.print(Text(prompt, style="dim") + Text(text), soft_wrap=True)

    def _numbers(self, progress: Progress) -> str:
        parts = [f"loss {progress.loss:.3f}"]
        if progress.validation_loss is not None:
            parts.append(f"val {progress.validation_loss:.3f}")
        parts.append(f"{progress.tokens_per_s:,.0f} tok/s")
        known = [
            (c, name)
            for c, name in zip(progress.collapse_index, self._layer_names, strict=True)
            if c is not None
        ]
        if known:
            worst, name = min(known)
            parts.append(f"worst c {worst:.2f} {name}")
        return "  ".join(parts)


class _Narration:
    """Standard error that may go away: a closed terminal must not end a training."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
