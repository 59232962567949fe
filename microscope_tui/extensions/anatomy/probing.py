"""Runs a finished model over windows of text: a run log of profile ``eval`` (step n is the n-th
batch) and ``routing.bin``. An interrupted probe leaves the same files with fewer tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from microscope_tui.extensions.anatomy.layout import Tables
from microscope_tui.extensions.anatomy.probed_model import CannotProbe, ProbedModel, out_of_memory
from microscope_tui.extensions.anatomy.texts import Window, batches, tensors
from microscope_tui.extensions.anatomy.trace_file import TraceFile
from microscope_tui.probe.attaching import attach
from microscope_tui.probe.counter import Tracer
from microscope_tui.probe.find_routers import find_sites
from microscope_tui.probe.header import dtype_name
from microscope_tui.probe.probe import Probe
from microscope_tui.runlog import LOG_NAME, ROUTING_NAME, on_stop_signals

Progress = Callable[[str, int, int], None]
"""``progress(what, done, whole)``: ``tokens`` while the model runs, then ``layers`` of tables."""
_MOST_COUNTS = 5_000_000
"""Entries of the table slice × layer × expert, which is part of the header."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a probe ended, and how many tokens it traced."""

    tokens: int
    reason: str
    """``finished``, ``signal`` or ``failed``."""
    problem: str = ""
    """Why it failed."""


def refuse_unknown(probed: ProbedModel, slices: int) -> None:
    """Check that there is something to trace, before a folder is created.

    ``CannotProbe``: no router is found, or there are too many slices.
    """
    try:
        sites = find_sites(probed.model, None)
    except ValueError as error:
        raise CannotProbe(f"{probed.name}: {str(error).partition(';')[0]}") from error
    entries = slices * sum(site.num_experts for site in sites)
    if entries > _MOST_COUNTS:
        raise CannotProbe(
            f"{slices:,} slices x {entries // slices:,} experts are more than {_MOST_COUNTS:,} "
            "counts: name fewer TEXT, or folders instead of their files"
        )


def run_probe(
    probed: ProbedModel,
    windows: Sequence[Window],
    slices: Sequence[str],
    folder: Path,
    *,
    batch_size: int = 1,
    progress: Progress = lambda *_: None,
) -> Outcome:
    """Trace all windows into a new ``folder``, which is removed again if no token was traced.

    Ctrl-C ends it early; a second one also ends the tables.

    Args:
        probed: The model, in evaluation mode.
        windows: In the order of the text.
        slices: Names of the slices, by their number in the windows.
        folder: Is created.
        batch_size: Windows of one forward pass.
        progress: See ``Progress``.

    Raises:
        ValueError: no router is found, see ``refuse_unknown``.
        KeyboardInterrupt: Ctrl-C came before the first batch was done.
        OSError: the folder cannot be written.
    """
    whole = sum(len(window.ids) for window in windows)
    run = _Run(probed, folder, list(slices), whole, progress)
    planned = -(-len(windows) // batch_size)
    interrupt = run.interrupt
    with on_stop_signals(interrupt.request):
        probe = attach(probed.model, folder, mode="eval", planned_steps=planned)
        for site in probe.sites:  # layers of multi-token prediction do not run here
            site.optional = site.optional or site.stack == "mtp"
        outcome = run.trace(probe, batches(windows, batch_size))
        with suppress(KeyboardInterrupt), interrupt.shielded():
            outcome = run.conclude(probe, outcome)
    if not outcome.tokens and outcome.reason == "signal":
        raise KeyboardInterrupt
    return outcome


class _Run:
    def __init__(
        self, probed: ProbedModel, folder: Path, slices: list[str], whole: int, progress: Progress
    ) -> None:
        self._probed, self._folder, self._slices = probed, folder, slices
        self._whole, self._progress = whole, progress
        self.interrupt = Interrupt()
        self._tracer = Tracer()
        self._trace_file: TraceFile | None = None

    @property
    def tokens(self) -> int:
        return 0 if self._trace_file is None else self._trace_file.tokens

    def trace(self, probe: Probe, parts: Iterator[list[Window]]) -> Outcome:
        """Never raises."""
        probe.hooks.tracer = self._tracer
        number, size, longest = 0, 0, 0
        try:
            for batch in parts:
                number += 1
                size, longest = len(batch), max(len(window.ids) for window in batch)
                self._progress("tokens", self.tokens, self._whole)
                ids_BS, real_BS = tensors(batch, self._probed.device)
                self._tracer.take()
                probe.hooks.mask = real_BS  # not every model takes one
                with torch.inference_mode():
                    logits_BSV = self._probed.forward(ids_BS, real_BS)
                    loss = next_token_loss(logits_BSV, ids_BS, real_BS)
                with self.interrupt.shielded():
                    self._write(probe, batch, loss)
        except KeyboardInterrupt:
            return Outcome(self.tokens, "signal")
        except Exception as error:  # any other failure: what is written stays readable
            problem = f"batch {number}: {type(error).__name__}: {error}"
            if out_of_memory(error):
                problem = (
                    f"out of memory on {size} windows of {longest:,} tokens: lower --batch-size "
                    f"({size}) or --window ({longest:,}), or choose --dtype bf16"
                )
            return Outcome(self.tokens, "failed", problem)
        return Outcome(self.tokens, "finished")

    def _write(self, probe: Probe, batch: list[Window], loss: float | None) -> None:
        traced = self._tracer.take()
        if probe.hooks.problem or not traced:
            raise RuntimeError(probe.hooks.problem or "no router was seen in the forward pass")
        probe.step(loss=loss)
        if self._trace_file is None:
            assert probe.layout is not None
            self._trace_file = TraceFile(
                self._folder / ROUTING_NAME,
                probe.layout.rows,
                probe.sites,
                traced,
                self._whole,
                slices=self._slices,
                model=self._probed.name,
                dtype=dtype_name(self._probed.model),
            )
        self._trace_file.add(batch, traced)

    def conclude(self, probe: Probe, outcome: Outcome) -> Outcome:
        """Close the log, compute the tables and finish the file; without a token, remove both."""
        probe.detach(outcome.reason)
        trace = self._trace_file
        if trace is None or not trace.tokens:
            if trace is not None:
                trace.writer.abandon()
            (self._folder / LOG_NAME).unlink(missing_ok=True)
            with suppress(OSError):  # it has other files
                self._folder.rmdir()
            return outcome

        def layers(done: int, whole: int) -> None:
            self._progress("layers", done, whole)
            if self.interrupt.waiting:
                raise KeyboardInterrupt

        try:
            made = trace.tables(layers)
        except KeyboardInterrupt:
            made, outcome = Tables(), Outcome(outcome.tokens, "signal")
        try:
            trace.writer.finish(made, trace.tokens)
        except OSError:
            trace.writer.abandon()
            raise
        return outcome


def next_token_loss(
    logits_BSV: Tensor | None, ids_BS: Tensor, real_BS: Tensor | None
) -> float | None:
    """Mean cross-entropy of the next real token in nats; None without logits or next tokens."""
    if logits_BSV is None:
        return None
    total = 0.0
    count = 0
    for row, ids_S in enumerate(ids_BS):
        length = len(ids_S) if real_BS is None else int(real_BS[row].sum())
        if length > 1:
            logits_SV = logits_BSV[row, : length - 1].float()
            loss = nn.functional.cross_entropy(logits_SV, ids_S[1:length], reduction="sum")
            total += float(loss)
            count += length - 1
    return total / count if count else None


class Interrupt:
    """A signal raises ``KeyboardInterrupt``; inside ``shielded``, at its end."""

    def __init__(self) -> None:
        self._shielded = self.waiting = False
        """``waiting``: a signal came inside ``shielded``."""

    def request(self, number: int) -> None:
        """The handler of the signal.

        Raises:
            KeyboardInterrupt: at once; inside ``shielded`` at its end.
        """
        self.waiting = self._shielded
        if not self.waiting:
            raise KeyboardInterrupt

    @contextmanager
    def shielded(self) -> Iterator[None]:
        """Work that a signal may not cut short: ``KeyboardInterrupt`` is raised at its end."""
        self._shielded = True
        try:
            yield
        finally:
            self._shielded = False
            if self.waiting:
                self.waiting = False
                raise KeyboardInterrupt
