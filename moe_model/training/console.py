"""Console output of a run, on standard error: a progress bar on a terminal, lines in a file."""

from __future__ import annotations

import contextlib
import io
import math
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import torch
from rich import progress as bars
from rich.console import Console as RichConsole
from rich.text import Text

from moe_model import plain_text
from moe_model.sampling import generate
from moe_model.training.checkpoint import BEST, LATEST, newest_before
from moe_model.training.options import Options, flag_name
from moe_model.training.run import Progress, Run, dtype_name

SAMPLE_TOKENS = 200
_PLAIN_INTERVAL_S = 10.0
_BAR_CELLS = 34
"""Width of the step count, a readable bar and the time left."""
_SEVERITY_STYLES = {"crit": "bold white on red", "error": "bold magenta", "warn": "bold yellow"}


class Console:
    """Narrates a run of ``steps`` optimizer steps from ``first`` on."""

    def __init__(
        self, steps: int, layer_names: Sequence[str], first: int = 1, *, quiet: bool = False
    ) -> None:
        self._steps = steps
        self._first = first
        self._layer_names = layer_names
        quiet = quiet or sys.stderr is None
        self._rich = RichConsole(
            file=_Narration(sys.stderr or io.StringIO()),  # type: ignore[arg-type]  # all of TextIO that rich uses
            highlight=False,
            markup=False,
            emoji=False,
            quiet=quiet,
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
            disable=quiet or not self._rich.is_terminal,
        )
        self._task = self._bar.add_task("train", total=steps, completed=first - 1, numbers="")
        self._started = time.monotonic()
        self._last_line = float("-inf")

    def __enter__(self) -> Console:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, line: str) -> None:
        """Print a line above the bar, without control characters; write errors are ignored."""
        self._rich.print(Text(plain_text(line)), soft_wrap=True)

    def step(self, progress: Progress) -> None:
        """Show a completed step: on the bar, or as a line every ten seconds, first and last step
        included."""
        numbers = self._numbers(progress)
        if self._rich.is_terminal:
            self._bar.update(self._task, completed=progress.step, numbers=numbers)
            return
        now = time.monotonic()
        due = now - self._last_line >= _PLAIN_INTERVAL_S
        if due or progress.step in (self._first, self._steps):
            self._last_line = now
            done = progress.step - self._first + 1
            seconds = (now - self._started) / done * (self._steps - progress.step)
            self.say(f"step {progress.step}/{self._steps}  {numbers}  ETA {_duration(seconds)}")

    def alert(self, alert: Any) -> None:
        """Print a new alert of the diagnosis in the colour of its severity, but no notes."""
        style = _SEVERITY_STYLES.get(alert.severity)
        if style is not None:
            label = Text(f" {alert.severity.upper()} ", style=style)
            line = f" step {alert.step}  {alert.rule}: {alert.verdict}. {alert.next}"
            self._rich.print(label + Text(plain_text(line)), soft_wrap=True)

    def summary(self, progress: Progress, ended: str, verdict: str) -> None:
        """Print the summary: time, tokens, losses, the final state of every router, the verdict.

        ``ended`` is how the run ended, in words, such as ``finished``; an empty ``verdict`` is
        omitted.
        """
        took = _duration(time.monotonic() - self._started)
        self.say(f"{ended} at step {progress.step}/{self._steps} after {took}")
        best = f", best {progress.best_loss:.3f}" if math.isfinite(progress.best_loss) else ""
        known = progress.validation_loss
        validation = "" if known is None else f"{known:.3f}{best}"
        layers = []
        for name, c in zip(self._layer_names, progress.collapse_index, strict=True):
            value = "–" if c is None else f"{c:.2f}"
            layers.append(f"{name} {value}")
        facts = {
            "tokens": f"{progress.tokens:,} in the whole run",
            "loss": f"{progress.loss:.3f}",
            "validation": validation,
            "balance c": f"{'  '.join(layers)}  (1 = even, 0 = collapsed)" if layers else "",
            "verdict": verdict,
        }
        for name, value in facts.items():
            for line in value.splitlines():
                self.say(f"  {name:<11}{line}")
                name = ""

    def places(self, places: Mapping[str, str]) -> None:
        """Print paths and commands under their labels, see :func:`places`."""
        for name, place in places.items():
            self.say(f"  {name:<11}{place}")

    def sample(self, prompt: str, text: str) -> None:
        """Print a continued prompt, the prompt dimmed; line breaks and tabs are kept."""
        self.say(f"sample after {prompt!r}:")
        before, after = (plain_text(part, multi_line=True) for part in (prompt, text))
        self._rich.print(Text(before, style="dim") + Text(after), soft_wrap=True)

    def _numbers(self, progress: Progress) -> str:
        """As much as fits beside the bar; an entropy is meaningless without its layer."""
        parts = [f"loss {progress.loss:.3f}"]
        if progress.validation_loss is not None:
            parts.append(f"val {progress.validation_loss:.3f}")
        parts.append(f"{progress.tokens_per_s:,.0f} tok/s")
        room = self._rich.width - _BAR_CELLS if self._rich.is_terminal else 1000
        for group in (self._worst(progress), [f"{progress.memory_bytes / 2**30:.1f} GiB"]):
            for part in group:
                if len("  ".join([*parts, part])) > room:
                    break  # the rest of the group refers to this part
                parts.append(part)
        return "  ".join(parts)

    def _worst(self, progress: Progress) -> list[str]:
        known = [(c, place) for place, c in enumerate(progress.collapse_index) if c is not None]
        if not known:
            return []
        c, place = min(known)
        worst = f"worst {self._layer_names[place]} c {c:.2f}"
        entropy = progress.entropy[place] if progress.entropy else None
        return [worst] if entropy is None else [worst, f"H {entropy:.2f}"]


class _Narration:
    """Standard error that may be full or closed, which must not end the training."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def introduction(run: Run) -> list[str]:
    """Lines to print before the first step: the size of the model, the machine, how to watch it."""
    config = run.model.config
    options = run.options
    world = run.world
    threads = f", threads: {torch.get_num_threads()}" if world.device.type == "cpu" else ""
    over = f", {world.size} processes ({options.parallel})" if world.size > 1 else ""
    if options.expert_parallel > 1:
        over += f", 1/{options.expert_parallel} of the experts in each"
    lines = [
        f"{options.run}: {config.parameters():,} parameters, {config.active_parameters():,} active "
        f"per token, on {world.device.type} in {dtype_name(run.dtype)}{threads}{over}"
    ]
    if run.resumed_from is not None:
        lines.append(f"resumes after step {run.progress.step} from {run.resumed_from}")
    log = shlex.quote(str(options.log_dir / options.run))
    return [*lines, f"watch it: {_command('moe-microscope')} {log}"]


def _command(program: str) -> str:
    """With its path if this environment has the program and the shell would not find it."""
    beside = Path(sys.executable).with_name(program)
    found = not beside.exists() or shutil.which(program) == str(beside)
    return program if found else shlex.quote(str(beside))


def places(run: Run, reason: str, onset: int | None = None) -> dict[str, str]:
    """Paths, and commands to paste into a shell, by their label on the screen. The checkpoint to go
    back to lies before ``onset``, the first step of a collapse."""
    options = run.options
    checkpoints = run.folder
    found = {"checkpoint": str(checkpoints / LATEST), "log": str(options.log_dir / options.run)}
    if reason == "signal":
        found["resume"] = _again(run, "auto")
    if reason == "collapse":
        onset = onset or run.progress.step
        found["go back"] = f"no checkpoint before step {onset}: start again with another setting"
        if (sound := newest_before(checkpoints, onset)) is not None:
            again = _again(run, str(sound[0]))
            found["go back"] = f"{again}  # step {sound[1]}; append the setting to change"
        found["resume"] = f"{_again(run, 'auto')} --on-collapse log"
    if reason == "finished":
        best = shlex.quote(str(checkpoints / (BEST if (checkpoints / BEST).exists() else LATEST)))
        found["try it"] = f"{_command('python')} -m moe_model.generate {best}"
    return found


def _again(run: Run, resume: str) -> str:
    options = run.options
    size = run.world.size
    start = f"torchrun --nproc-per-node {size} -- train.py" if size > 1 else "python train.py"
    words = [f"{start} --run {shlex.quote(options.run)} --resume {shlex.quote(resume)}"]
    for name in ("log_dir", "checkpoint_dir", "parallel", "expert_parallel"):
        value = getattr(options, name)
        if value not in (getattr(Options(), name), "ddp"):
            words.append(f"{flag_name(name)} {shlex.quote(str(value))}")
    return " ".join(words)


def sample(run: Run) -> str:
    """Continue the prompt, or ``ValueError``: a sharded model is not read token by token.

    All ranks call this; rank 0 gets the text.
    """
    if run.model.sharded:
        raise ValueError("each process has only a part of the model; use the command above.")
    if not run.world.is_main:
        return ""
    ids = generate(
        run.model,
        run.tokenizer.encode(run.prompt),
        max_new_tokens=SAMPLE_TOKENS,
        seed=run.options.seed,
        stop_at=run.stop_ids,
    )
    return run.tokenizer.decode(ids)
