"""``attach``: put a probe on a model that other code trains."""

import logging
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from microscope_tui.probe.find_routers import nothing_found
from microscope_tui.probe.judge import Alert
from microscope_tui.probe.log_lock import lock_log, unlock_log
from microscope_tui.probe.probe import Probe, claimed
from microscope_tui.probe.ranks import Ranks
from microscope_tui.probe.sites import Adapter, Site, arrange
from microscope_tui.probe.stages import check_stages, modules_of, sites_of, unite
from microscope_tui.probe.step_sums import shortened
from microscope_tui.runlog import LOG_NAME, glance

_logger = logging.getLogger(__name__)


def attach(
    model: Any,
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
    trainer_args: Any = None,
    depths: Mapping[str, int] | None = None,
    counts: bool | None = None,
    part: str | None = None,
) -> Probe:
    """Watch the routers of ``model`` and write ``run_folder/metrics.jsonl``.

    In a distributed run every process calls it, and rank 0 writes. It waits for all of them.

    Args:
        model: The model whose forward the training calls; wrapping it before or after (DDP, FSDP,
            PEFT, ``torch.compile``) is fine. In a pipeline the ``PipelineStage``, or a list.
        mode: ``train`` counts passes in training mode with gradients, ``eval`` those in
            evaluation mode.
        every: Count and log the steps that this number divides.
        routers: Adapters by module path, for routers that the probe does not recognise; only these
            are watched.
        saliency: Also log the mean weight and the mean output norm of every expert. Costs another
            pass through the experts for each of a token's choices.
        start_step: The next step: 1, or after a checkpoint its step + 1. In a folder with a log the
            default is the step after the last one there.
        judgement: From ``Probe.state_dict`` in the checkpoint.
        on_alert: Called on rank 0 with every new ``Alert``; of many ranks one logged step later.
        planned_steps: Total steps of the run.
        trainer_args: Arguments of a Trainer, which may set the coefficient of an auxiliary loss.
        depths: Number of the layer in the whole model, by path of a router or of its layer, if
            stages have the same paths. In a list a path begins with the number of the module.
        counts: Whether the tokens of this rank count; default: if no rank before it sees them.
        part: For actors without a common process group: the name of this one. It writes
            ``run_folder/PART/metrics.jsonl``, and the microscope shows the sum of ``run_folder``.

    Raises:
        ValueError: no MoE layer is found, or an argument is invalid; raised on every rank.
        OSError: the folder cannot be written, or another process writes its log.
        RuntimeError: other ranks have not called it for half an hour.
    """
    modules = modules_of(model)
    ranks, folder = Ranks(modules, counts), Path(run_folder).resolve() / str(part or "")
    check = partial(_check, model, modules[0], mode, every, start_step, part)
    find = partial(sites_of, model, routers, depths or {})
    settings = {"mode": mode, "every": every, "saliency": saliency}
    sites = _agreed(ranks, check, find, modules[0], settings)
    first, resumed = _together(ranks, lambda: ranks.rank or _open(folder, sites, start_step))[0]
    ranks.connect()
    probe = Probe(
        modules, sites, ranks, folder, mode=mode, every=every, saliency=saliency, on_alert=on_alert,
        planned_steps=planned_steps, trainer_args=trainer_args, part=part,
    )  # fmt: skip
    probe.begin(first, resumed, judgement)
    probe.check_settings(warn=judgement is None)  # else the earlier run has reported it
    return probe


def _agreed(
    ranks: Ranks,
    check: Callable[[], None],
    find: Callable[[], list[Site]],
    model: nn.Module,
    settings: Mapping[str, Any],
) -> list[Site]:
    """The routers of all ranks, in forward order; ``find`` returns those of this one.

    ``ValueError``: also if ``settings`` differ between ranks.
    """
    own: list[Site] = []

    def send() -> tuple[Mapping[str, Any], bool, list[Site]]:
        check()
        own.extend(find())
        return settings, ranks.counts(sees_part=False), [site.elsewhere() for site in own]

    given, counting, everyone = map(list, zip(*_together(ranks, send), strict=True))
    _check_same(given)
    everyone[ranks.rank] = own
    sites = arrange(unite(everyone, ranks.rank))
    if not sites:
        raise ValueError(nothing_found(model))
    ranks.counting = sum(counting)
    if ranks.size > 1 and ranks.rank == 0:
        on = {sum(counting[rank] for rank in site.holders) for site in sites}
        counted = " to ".join(map(str, sorted({min(on), max(on)})))
        _logger.info("%d ranks: each router is counted on %s", ranks.size, counted)
    return sites


def _check_same(settings: Sequence[Mapping[str, Any]]) -> None:
    """Of all ranks: the probe of each must count the same steps in the same way."""
    for name, value in settings[0].items():
        for rank, own in enumerate(settings):
            if own[name] != value:
                raise ValueError(
                    f"{name} is {value!r} on rank 0 and {own[name]!r} on rank {rank}: pass the "
                    "same on every rank"
                )


def _together(ranks: Ranks, call: Callable[[], Any]) -> list[Any]:
    """What ``call`` returns on every rank; if it fails on one, all raise."""
    problem, found = None, None
    try:
        found = call()
    except Exception as error:
        problem = error
    everyone = ranks.all_gather((None if problem is None else str(problem), found))
    if problem is not None:
        raise problem
    for rank, (text, _) in enumerate(everyone):
        if text is not None:
            raise ValueError(f"attach failed on rank {rank}: {text}")
    return [one for _, one in everyone]


def _open(folder: Path, sites: list[Site], start_step: int | None) -> tuple[int, bool]:
    """Make the folder; return the first step of this run, and whether the folder has a log."""
    if folder in claimed:
        raise ValueError(f"{folder} is written by another probe: detach it, or choose a new folder")
    log = folder / LOG_NAME
    lock_log(log)
    try:
        last, resumed = _last_step(log, sites), log.exists()
        log.open("ab").close()
    except BaseException:
        unlock_log(log)
        raise
    if last and start_step is None:
        _logger.warning("%s has %d steps: continuing with step %d", folder, last, last + 1)
    return start_step or last + 1, resumed


def _last_step(log: Path, sites: Sequence[Site]) -> int:
    """The last step of a log; 0 if it has none.

    ``ValueError``: the log has other routers than ``sites``.
    """
    seen = glance(log) if log.exists() else None
    if seen is None or seen.run is None:
        return 0
    routers = [f"{r.name.partition('#')[0]}×{r.num_experts}" for r in seen.run.routers]
    there = list(dict.fromkeys(routers))  # a looped layer has a row per pass
    here = [f"{site.name}×{site.num_experts}" for site in sites]
    if there != here:
        ours, theirs = (f"{len(own)} routers: {shortened(own)}" for own in (here, there))
        raise ValueError(
            f"{log} has other routers ({theirs}) than this model ({ours}): choose a new run folder"
        )
    return seen.last.step if seen.last is not None else 0


def _check(
    given: Any, model: nn.Module, mode: str, every: int, start_step: int | None, part: str | None
) -> None:
    check_stages(given)
    if type(model).__module__.startswith("transformers."):
        version = sys.modules["transformers"].__version__
        if int(version.partition(".")[0]) < 5:
            raise ValueError(f"transformers {version} is too old for the probe: install 5.0")
    if mode not in ("train", "eval"):
        raise ValueError(f"mode is {mode!r}: choose 'train' or 'eval'")
    if every < 1:
        raise ValueError(f"every is {every}: choose 1 (every step) or more")
    if start_step is not None and start_step < 1:
        raise ValueError(f"start_step is {start_step}: the first step is 1")
    if part is not None and not (isinstance(part, str) and re.fullmatch(r"\w[\w.-]{,39}", part)):
        raise ValueError(f"part is {part!r:.60}: pass a text of up to 40 letters, digits and . _ -")
