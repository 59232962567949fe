"""What the probe warns about while it works: once each, and never by raising."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from microscope_tui.probe.step_sums import EXTRA, Row, StepSums, shortened
from microscope_tui.probe.watching import Watch

_logger = logging.getLogger(__name__)


def complain(
    sums: StepSums, rows: Sequence[Row], watch: Watch, mode: str, step: int, said: set[str]
) -> None:
    """Warn about what the step lacks.

    Args:
        said: What was warned about before.
    """
    extra = dict(zip(EXTRA, sums.extra, strict=False))
    if extra["failed"]:
        return  # it is reported where it happened
    if not extra["passes"]:
        _once(
            said,
            "no pass",
            f"step {step}: no forward pass was counted; call the model that was given to attach, "
            f"in {'training' if mode == 'train' else 'evaluation'} mode; a model that was compiled "
            "and run before attach, is replayed as a CUDA graph, or is a copy, is not seen",
        )
    elif not any(sums.tokens):
        _once(
            said,
            "no router",
            f"step {step}: the model ran and no router was seen; a kernel that replaces the whole "
            "MoE layer, or code compiled before attach, hides them",
        )
    elif lacking := [
        row.name
        for tokens, row in zip(sums.tokens, rows, strict=True)
        if not tokens and not row.optional
    ]:
        _once(
            said,
            "some routers",
            f"step {step}: {shortened(lacking)} not seen; "
            "where layers were replaced after attach, detach and attach again",
        )
    if watch.outside:
        _once(
            said,
            "outside",
            "routers run outside the forward of the model that was given to attach, and are not "
            "counted: attach to the module that the training calls",
        )


def _once(said: set[str], what: str, text: str) -> None:
    if what not in said:
        said.add(what)
        _logger.warning("%s", text)
