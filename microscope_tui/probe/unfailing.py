"""A run log with a promise on top: what is wrong with it costs one warning and never the run.

The recorder itself copes with bad disks; here ends whatever nobody thought of. Processes that
only help to train the same run have a ``SilentLog``, so that the loop asks no questions.
"""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from microscope_tui.probe.judge import Alert
from microscope_tui.probe.recorder import RunRecorder

_logger = logging.getLogger(__name__)
_Answer = TypeVar("_Answer")


class UnfailingLog:
    """Hands everything on to a recorder; after a failure the next call is tried like any other.

    That the log cannot be opened at all is no such failure: ``RunRecorder`` raises it as OSError
    before the run begins.
    """

    def __init__(self, recorder: RunRecorder, say: Callable[[str], None] = _logger.warning) -> None:
        """``say`` is called with the one warning, at the first failure."""
        self._recorder = recorder
        self._say = say
        self._warned = False

    def step(self, record: Mapping[str, Any]) -> list[float | None] | None:
        """Write a step; the collapse index of every router, ``None`` where recording failed."""
        return self._try(lambda: self._recorder.record_step(**record))

    def event(self, step: int, event: str, values: Mapping[str, Any]) -> None:
        """Write an event."""
        self._try(lambda: self._recorder.record_event(step=step, event=event, values=values))

    def alerts(self) -> list[Alert]:
        """What began or grew worse since the last call."""
        return self._try(self._recorder.alerts) or []

    def judgement(self) -> bytes | None:
        """The state of the judgement for a checkpoint; ``None`` where there is none."""
        return self._try(self._recorder.judgement)

    def collapsed(self) -> tuple[str, ...]:
        """Names of the routers that are collapsed now."""
        return self._try(self._recorder.collapsed) or ()

    def collapse_onset(self) -> int | None:
        """The step to go back before, where routers are collapsed now."""
        return self._try(self._recorder.collapse_onset)

    def evidence(self, balance: Sequence[float | None]) -> str:
        """Evidence that may become an alert, in words; empty without any."""
        return self._try(lambda: self._recorder.evidence(balance)) or ""

    def verdict(self) -> str:
        """How the run stands, in one line or a few; empty where that cannot be told."""
        return self._try(self._recorder.verdict) or ""

    def sync(self) -> bool:
        """Force what is written to disk; ``False`` where that failed."""
        return self._try(self._recorder.sync) or False

    def end(self, step: int, reason: str) -> None:
        """Write how the run ended, and close."""
        self._try(lambda: self._recorder.close(step=step, reason=reason))

    def _try(self, call: Callable[[], _Answer]) -> _Answer | None:
        try:
            return call()
        except Exception as error:
            self._warn(error)
            return None

    def _warn(self, error: Exception) -> None:
        if self._warned:
            return
        self._warned = True
        # Where the warning fails too, there is no one left to warn: training continues.
        with contextlib.suppress(Exception):
            self._say(f"the run log has a gap, training continues: {error!r}")


class SilentLog:
    """The same for a process whose run another process records: nothing is written or judged."""

    def step(self, record: Mapping[str, Any]) -> list[float | None] | None:
        """No index: it is known where the run is recorded."""
        return None

    def event(self, step: int, event: str, values: Mapping[str, Any]) -> None:
        """Nothing is written."""

    def alerts(self) -> list[Alert]:
        """None."""
        return []

    def judgement(self) -> bytes | None:
        """None."""
        return None

    def collapsed(self) -> tuple[str, ...]:
        """None."""
        return ()

    def collapse_onset(self) -> int | None:
        """None."""
        return None

    def evidence(self, balance: Sequence[float | None]) -> str:
        """Empty."""
        return ""

    def verdict(self) -> str:
        """Empty."""
        return ""

    def sync(self) -> bool:
        """Nothing waits to be written."""
        return True

    def end(self, step: int, reason: str) -> None:
        """Nothing is open."""


TrainingLog = UnfailingLog | SilentLog
"""What a training loop writes to."""
