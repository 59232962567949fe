"""``attach``: put a probe on a model that someone else trains."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from microscope_tui.probe.adapter import Adapter
from microscope_tui.probe.earlier import last_logged_step
from microscope_tui.probe.finding import find_sites
from microscope_tui.probe.judge import Alert
from microscope_tui.probe.probe import Probe, claim
from microscope_tui.probe.ranks import Ranks
from microscope_tui.runlog.records import LOG_NAME

_logger = logging.getLogger("moe_microscope.probe")


def attach(
    model: nn.Module,
    run_folder: str | os.PathLike[str],
    *,
    mode: str = "train",
    every: int = 1,
    routers: Mapping[str, Adapter] | None = None,
    saliency: bool = False,
    start_step: int | None = None,
    judgement: bytes | None = None,
    on_alert: Callable[[Alert], Any] | None = None,
    planned_steps: int | None = None,
) -> Probe:
    """Watch the routers of ``model`` and write ``run_folder/metrics.jsonl``.

    Under several processes all of them call it, and rank 0 writes.

    Args:
        model: The model whose forward the training calls; wrapping it before or after (DDP, FSDP,
            PEFT, ``torch.compile``) is fine.
        mode: ``train`` counts passes in training mode with gradients, ``eval`` those in
            evaluation mode.
        every: Count and log the steps that this number divides.
        routers: Adapters by module path for layers that are not known; only these are watched.
        saliency: Also log the mean weight and the mean output norm of every expert. Costs another
            pass through the experts for each of a token's choices.
        start_step: The step that comes next: 1, or after a checkpoint its step + 1. In a folder
            with a log the default is the step after the last one there.
        judgement: From ``Probe.state_dict`` of the checkpoint.
        on_alert: Called on rank 0 with every new ``Alert``.
        planned_steps: Steps that the run will have.

    Raises:
        ValueError: no MoE layer is found, or an argument cannot be right; on every rank alike.
        OSError: the folder cannot be written.
    """
    folder, ranks = Path(run_folder).resolve(), Ranks(model)
    problem: Exception | None = None
    try:
        _check(mode, every, start_step)
        sites = find_sites(_unwrapped(model), routers)
        resumed = ranks.rank == 0 and (folder / LOG_NAME).exists()
        first = start_step or 1
        if resumed and (last := last_logged_step(folder / LOG_NAME, sites)):
            first = start_step or last + 1
            if start_step is None:
                _logger.warning("%s has %d steps: continuing with step %d", folder, last, first)
        if ranks.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            with open(folder / LOG_NAME, "ab"):
                claim(folder)
    except Exception as error:
        problem = error
    ranks.raise_alike(problem)
    first = ranks.same(first)
    return Probe(
        _unwrapped(model),
        sites,
        ranks,
        run_folder=folder,
        mode=mode,
        every=every,
        saliency=saliency,
        start_step=first,
        resumed=resumed or first > 1,
        judgement=judgement,
        on_alert=on_alert,
        planned_steps=planned_steps,
    )


def _check(mode: str, every: int, start_step: int | None) -> None:
    if mode not in ("train", "eval"):
        raise ValueError(f"mode is {mode!r}: choose 'train' or 'eval'")
    if every < 1:
        raise ValueError(f"every is {every}: choose 1 (every step) or more")
    if start_step is not None and start_step < 1:
        raise ValueError(f"start_step is {start_step}: the first step is 1")


def _unwrapped(model: nn.Module) -> nn.Module:
    """The module whose forward has the arguments: inside DDP, ``torch.compile`` and PEFT."""
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and type(model).__name__ == "DistributedDataParallel":
            inner = model.module
        if inner is None and hasattr(model, "get_base_model"):
            inner = model.get_base_model()
        if not isinstance(inner, nn.Module) or inner is model:
            return model
        model = inner
