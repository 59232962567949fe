"""Complete the given options so that they describe a run.

Omitted options get the value of the checkpoint that is resumed (``option_sources.py``) or of the
preset. Every range is checked, and contradictory values are rejected.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Sequence

from moe_model import PRESETS, UsageError
from moe_model.training.distributed import ALONE, World
from moe_model.training.launch import launched
from moe_model.training.options import (
    AUX_WEIGHT,
    MTP_WEIGHT,
    RUN_DEFAULTS,
    Options,
    flag_name,
)
from moe_model.training.resume import AUTO, find_start

MOST_SEQUENCES = 2**20
SLOWER = 10
"""Divides the preset's learning rate when a run starts from trained weights, which the rate for a
new model would first destroy."""


def resolve(options: Options, world: World = ALONE) -> Options:
    """The same options with the preset's values filled in and every range checked.

    Args:
        options: As given.
        world: The processes that train together; they agree on the name of the run.

    Raises:
        UsageError: If a value is out of range, or values contradict each other.
    """
    if options.preset not in RUN_DEFAULTS:
        raise UsageError(
            f"--preset {options.preset} is unknown: choose one of {', '.join(PRESETS)}."
        )
    defaults = dataclasses.asdict(RUN_DEFAULTS[options.preset])
    defaults["seq_len"] = (
        options.model.max_position_embeddings or PRESETS[options.preset]["max_position_embeddings"]
    )
    defaults["aux_weight"] = AUX_WEIGHT if options.balance == "aux" else 0.0
    start = find_start(options)
    defaults["profile"] = "pretrain"
    if start is not None and start.weights_only:
        # The diagnosis compares a fine-tuning with its beginning; upcycled routers are new.
        defaults["profile"] = "pretrain" if start.upcycled else "finetune"
        defaults["lr"] = float(f"{defaults['lr'] / SLOWER:.12g}")
        if options.lr is None:
            world.say(
                f"--resume {options.resume} has weights only: --lr defaults to "
                f"{defaults['lr']:g}, a tenth of the preset's."
            )
    depths = options.model.num_nextn_predict_layers
    if depths is None and start is not None:
        depths = start.depths
    elif depths is None:
        depths = PRESETS[options.preset].get("num_nextn_predict_layers", 0)
    defaults["mtp_weight"] = MTP_WEIGHT if options.mtp or depths else 0.0
    if options.resume == AUTO and options.run is None:
        raise UsageError("--resume auto needs the name of the run: add --run NAME.")
    name = f"{options.preset}-{time.strftime('%Y-%m-%d-%H%M%S')}"
    defaults["run"] = world.broadcast_text(name)  # their clocks may differ
    if options.parallel is None and world.size > 1:
        options = dataclasses.replace(options, parallel="ddp")
    if options.balance != "bias":
        defaults |= {"bias_update_rate": 0.0, "seq_aux_weight": 0.0}
    missing = {name: v for name, v in defaults.items() if getattr(options, name) is None}
    resolved = dataclasses.replace(options, **missing)
    _check_ranges(resolved)
    _check_balance(resolved)
    _check_mtp(resolved, depths)
    _check_run_name(resolved.run)
    _check_parallel(resolved)
    return resolved


def _check_ranges(options: Options) -> None:
    whole = ("steps", "batch_size", "seq_len", "grad_accum", "save_every", "eval_every")
    for name in (*whole, "counts_every"):
        if getattr(options, name) < 1:
            raise UsageError(
                f"{flag_name(name)} {getattr(options, name)} is too few: choose 1 or more."
            )
    for name in ("batch_size", "grad_accum"):
        if getattr(options, name) > MOST_SEQUENCES:
            raise UsageError(
                f"{flag_name(name)} {getattr(options, name)} is too many: choose {MOST_SEQUENCES} "
                "at most."
            )
    if not 0 < options.lr < float("inf"):
        raise UsageError(f"--lr {options.lr} is out of range: choose above 0, such as 1e-3.")
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed {options.seed} is out of range: choose 0 to 2^63 - 1.")
    for name in ("bias_update_rate", "seq_aux_weight", "aux_weight", "z_loss_weight", "mtp_weight"):
        if not 0 <= getattr(options, name) < float("inf"):
            raise UsageError(
                f"{flag_name(name)} {getattr(options, name)} is out of range: choose 0 or more."
            )


def _check_balance(options: Options) -> None:
    belongs_to: dict[str, tuple[str, ...]] = {
        "bias_update_rate": ("bias",),
        "aux_weight": ("aux",),
        "seq_aux_weight": ("bias", "aux"),
    }
    for name, methods in belongs_to.items():
        if getattr(options, name) and options.balance not in methods:
            raise UsageError(
                f"{flag_name(name)} {getattr(options, name)} has no effect with --balance "
                f"{options.balance}: omit it, or choose --balance {' or '.join(methods)}."
            )


def _check_mtp(options: Options, depths: int) -> None:
    if options.mtp_weight and not (options.mtp or depths):
        raise UsageError(
            f"--mtp-weight {options.mtp_weight} has no effect without --mtp: add it, or omit the "
            "weight."
        )


def _check_parallel(options: Options) -> None:
    if options.parallel == "fsdp" and options.trace_sample:
        raise UsageError(
            "--trace-sample does not work with --parallel fsdp: it needs the whole model in one "
            "process; run moe-microscope probe on the checkpoint afterwards."
        )
    if options.parallel == "fsdp" and options.optimizer == "muon":
        raise UsageError(
            "--optimizer muon does not work with --parallel fsdp: Muon needs whole matrices, but "
            "each rank has only some rows: choose --optimizer adamw, or --parallel ddp."
        )
    if options.parallel is not None and not launched():
        raise UsageError(
            f"--parallel {options.parallel} needs several processes: start torchrun "
            "--nproc-per-node N -- train.py …, or omit it."
        )


def _check_run_name(run: str) -> None:
    if run in ("", ".", "..") or not re.fullmatch(r"[\w.+=@ -]+", run):
        raise UsageError(
            f"--run {run!r} cannot name a folder: use letters, digits, '-', '_' and '.' only."
        )


def parse_forced_collapse(text: str, depths: Sequence[int], steps: int) -> tuple[int, int]:
    """Index of the router and first step of ``--force-collapse LAYER@STEP``.

    Args:
        text: As given.
        depths: Depths of the trained routers.
        steps: Steps of the run.

    Raises:
        UsageError: If it has another form, the layer has no router, or the step is out of range.
    """
    match = re.fullmatch(r"(\d+)@(\d+)", text)
    if match is None:
        raise UsageError(
            f"--force-collapse {text!r} is not LAYER@STEP: use for example "
            f"{depths[0]}@{max(1, steps // 2)}."
        )
    layer, step = int(match[1]), int(match[2])
    if layer not in depths:
        layers = ", ".join(map(str, depths))
        raise UsageError(
            f"--force-collapse {text}: layer {layer} has no router: choose one of {layers}."
        )
    if not 1 <= step <= steps:
        raise UsageError(
            f"--force-collapse {text}: step {step} is not in this run: choose 1 to {steps}."
        )
    return depths.index(layer), step
