"""From the given options to those that describe a run completely, in one merge.

Precedence: command line, ``--config FILE.toml``, the run that ``--resume`` continues, the preset.
"""

import dataclasses
import math
import os
import re
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from cyclopts import App
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict, Toml

from moe_model import PRESETS, UsageError
from moe_model.training.checkpoint import AUTO, described, has_training_state
from moe_model.training.options import (
    AUX_WEIGHT,
    FINAL_SHARE,
    MTP_WEIGHT,
    RUN_DEFAULTS,
    Options,
    flag_name,
)
from moe_model.training.step import default_warmup
from moe_model.training.world import ALONE, NOT_GIVEN, World, launched

_BELONGS_TO: dict[str, tuple[str, tuple[str, ...]]] = {
    "bias_update_rate": ("balance", ("bias",)),
    "aux_weight": ("balance", ("aux",)),
    "balance_scope": ("balance", ("aux",)),
    "seq_aux_weight": ("balance", ("bias", "aux")),
    "decay": ("lr_schedule", ("wsd",)),
    "min_lr": ("lr_schedule", ("cosine", "wsd")),
}
"""Options that have an effect with some values of another option only."""
_OF_ROUTERS = {
    "balance": "none", "bias_update_rate": 0.0, "seq_aux_weight": 0.0, "aux_weight": 0.0,
    "z_loss_weight": 0.0, "mtp": False, "mtp_weight": 0.0, "force_collapse": None,
    "on_collapse": "log", "router_lr": 1.0, "expert_parallel": 1,
}  # fmt: skip
"""The values of a model without routers; of multi-token prediction all layers have experts."""
_COUNTS = (
    "steps", "batch_size", "seq_len", "grad_accum", "save_every", "eval_every", "counts_every",
    "expert_parallel",
)  # fmt: skip
_WEIGHTS = (
    "bias_update_rate", "seq_aux_weight", "aux_weight", "z_loss_weight", "mtp_weight",
    "router_lr", "weight_decay", "clip",
)  # fmt: skip
_NOT_INHERITED = ("resume", "config", "parallel", "expert_parallel")
"""Options of a start, not of the run: the number of processes may change at every start."""

MOST_SEQUENCES = 2**20
SLOWER = 10
"""Divides the preset's learning rate for trained weights, which it would first destroy."""

_MAY_DIFFER = ("config", "device")
"""Not compared: what a config file sets is compared anyway, and different devices cannot meet."""
_FOLDERS = ("log_dir", "checkpoint_dir")


def read_option_sources(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in missing arguments from the file or the checkpoint.

    cyclopts calls this between reading the command line and converting it. ``UsageError`` if the
    file does not exist, or an argument is a fraction or does not fit the checkpoint.
    """
    if commands:
        return  # --help-all takes no options
    path = _given(arguments, "--config")
    if path is not None:
        if not Path(path).is_file():
            raise UsageError(f"--config {path} is not a file: name a TOML file of options.")
        Toml(path)(app, commands, arguments)
    _refuse_broken_integers(arguments)
    resume = _given(arguments, "--resume")
    if resume is None:
        return
    folder = Path(_given(arguments, "--checkpoint-dir") or "checkpoints")
    for checkpoint, plain in described(resume, _given(arguments, "--run"), folder):
        inherited = _inherited(plain["options"], plain["model"], arguments)
        Dict(inherited, allow_unknown=True, source=str(checkpoint))(app, commands, arguments)
        return


def _refuse_broken_integers(arguments: ArgumentCollection) -> None:
    """Reject fractions: cyclopts would silently round 1.5 steps to 2."""
    for argument in arguments:
        if argument.hint not in (int, int | None):
            continue
        for token in argument.tokens:
            if re.fullmatch(r"[+-]?\d+\.\d*", token.value):
                raise UsageError(
                    f"{argument.name} {token.value} is not a whole number: choose one."
                )


def _given(arguments: ArgumentCollection, name: str) -> str | None:
    argument, _, _ = arguments.match(name)
    return argument.tokens[0].value if argument.tokens else None


def _inherited(
    saved: dict[str, Any], model: dict[str, Any], arguments: ArgumentCollection
) -> dict[str, Any]:
    if _given(arguments, "--dense-twin") is not None and not saved.get("dense_twin"):
        raise UsageError("--dense-twin: the checkpoint has experts: omit it, or omit --resume.")
    if saved.get("balance") == "aux":
        saved = {"balance_scope": "pass", **saved}  # before there was this option
    left_out = [*_NOT_INHERITED, *_of_another_choice(saved, arguments)]
    if _given(arguments, "--resume") == AUTO:
        left_out.append("checkpoint_dir")  # it was found where it is now
    if _is_dense(model, saved.get("mtp_weight")):
        left_out += _OF_ROUTERS  # before they were refused
    return {
        name: value
        for name, value in saved.items()
        if name not in left_out and value is not None and value is not False
    }


def _of_another_choice(saved: dict[str, Any], arguments: ArgumentCollection) -> Iterator[str]:
    seq_aux_weights = [0.0, *(preset["seq_aux_weight"] for preset in RUN_DEFAULTS.values())]
    for name, (option, values) in _BELONGS_TO.items():
        before, now = saved.get(option), _given(arguments, flag_name(option))
        default = name == "seq_aux_weight" and saved.get(name) in seq_aux_weights
        if now not in (None, before) and (default or before not in values or now not in values):
            yield name


def resolve(options: Options, world: World = ALONE) -> Options:
    """The same options with the preset's values filled in and every range checked.

    Args:
        world: The processes that train together; they agree on the name of the run.

    Raises:
        UsageError: If a value is out of range, or values contradict each other.
    """
    if options.preset not in RUN_DEFAULTS:
        raise UsageError(
            f"--preset {options.preset} is unknown: choose one of {', '.join(PRESETS)}."
        )
    preset = {"model": PRESETS[options.preset], "options": {}}
    start, plain = _start(options) or (None, preset)
    model = {**plain["model"], **options.to_dict()["model"]}
    if options.dense_twin:
        model["num_nextn_predict_layers"] = 0
    defaults = _defaults_of_preset(options, model)
    if start is not None and not has_training_state(start):
        defaults["tokenizer"] = str(start.resolve())
        # The diagnosis compares a fine-tuning with its beginning; upcycled routers are new.
        defaults["profile"] = "pretrain" if "upcycled" in plain else "finetune"
        defaults["lr"] = float(f"{defaults['lr'] / SLOWER:.12g}")
        if options.lr is None:
            world.say(
                f"--resume {options.resume} has weights only: --lr defaults to "
                f"{defaults['lr']:g}, a tenth of the preset's."
            )
    if options.resume == AUTO and options.run is None:
        raise UsageError("--resume auto needs the name of the run: add --run NAME.")
    name = f"{options.preset}-{time.strftime('%Y-%m-%d-%H%M%S')}"
    defaults["run"] = world.broadcast_text(name)  # their clocks may differ
    if world.size > 1:
        defaults["parallel"] = "ddp"
    missing = {name: v for name, v in defaults.items() if getattr(options, name) is None}
    resolved = dataclasses.replace(options, **missing)
    wrong = _out_of_range(resolved, plain["options"].get("warmup"))
    for problem in chain(wrong, _of_routers(resolved, model), _contradictions(resolved, model)):
        raise UsageError(problem)
    return resolved


def _defaults_of_preset(options: Options, model: dict[str, Any]) -> dict[str, Any]:
    usual = PRESETS[options.preset]["max_position_embeddings"]
    usual = options.model.max_position_embeddings or usual
    mtp_weight = MTP_WEIGHT if options.mtp or model.get("num_nextn_predict_layers") else 0.0
    given = options.mtp_weight
    dense = options.dense_twin or _is_dense(model, mtp_weight if given is None else given)
    balance = options.balance or ("none" if dense else "bias")
    defaults = {
        **RUN_DEFAULTS[options.preset],
        "seq_len": min(model["max_position_embeddings"], usual),
        "mtp_weight": mtp_weight,
        "balance": balance,
        "aux_weight": 0.0,
        "balance_scope": None,
        "profile": "pretrain",
        "warmup": default_warmup(options.steps or RUN_DEFAULTS[options.preset]["steps"]),
        "decay": 0.0,
        "min_lr": FINAL_SHARE,
    }
    if balance != "bias":
        defaults |= {"bias_update_rate": 0.0, "seq_aux_weight": 0.0}
    if balance == "aux":
        defaults |= {"aux_weight": AUX_WEIGHT, "balance_scope": "step"}
    if options.lr_schedule == "wsd":
        defaults["decay"] = 0.2
    if options.lr_schedule == "constant":
        defaults["min_lr"] = 0.0
    return defaults


def _is_dense(model: dict[str, Any], mtp_weight: float | None) -> bool:
    """All layers of multi-token prediction have experts."""
    return model["first_k_dense_replace"] >= model["num_hidden_layers"] and not mtp_weight


def _start(options: Options) -> tuple[Path, dict[str, Any]] | None:
    if options.resume is None:
        return None
    return next(described(options.resume, options.run, options.checkpoint_dir), None)


def _out_of_range(options: Options, warmup_before: object) -> Iterator[str]:
    """A warm-up that is inherited may be longer than fewer steps."""
    for name in _COUNTS:
        if getattr(options, name) < 1:
            yield f"{_spelled(options, name)} is too few: choose 1 or more."
    for name in ("batch_size", "grad_accum"):
        if getattr(options, name) > MOST_SEQUENCES:
            yield f"{_spelled(options, name)} is too many: choose {MOST_SEQUENCES} at most."
    if not 0 < options.lr < math.inf:
        yield f"--lr {options.lr} is out of range: choose above 0, such as 1e-3."
    longest = options.warmup if options.warmup == warmup_before else options.steps
    for name, most in (("warmup", longest), ("decay", 1), ("min_lr", 1)):
        if not 0 <= getattr(options, name) <= most:
            yield f"{_spelled(options, name)} is out of range: choose 0 to {most}."
    if not 0 <= options.seed < 2**63:
        yield f"--seed {options.seed} is out of range: choose 0 to 2^63 - 1."
    if not re.fullmatch("all|[1-9][0-9]{0,8}", options.keep or "all"):
        yield f"--keep {options.keep} is out of range: choose 1 or more, or all."
    for name in _WEIGHTS:
        if not 0 <= getattr(options, name) < math.inf:
            yield f"{_spelled(options, name)} is out of range: choose 0 or more."


def _contradictions(options: Options, model: dict[str, Any]) -> Iterator[str]:
    for name, (option, values) in _BELONGS_TO.items():
        if getattr(options, name) and getattr(options, option) not in values:
            yield (
                f"{_spelled(options, name)} has no effect with {_spelled(options, option)}: omit "
                f"it, or choose {flag_name(option)} {' or '.join(values)}."
            )
    if options.mtp_weight and not (options.mtp or model.get("num_nextn_predict_layers")):
        weight = _spelled(options, "mtp_weight")
        yield f"{weight} has no effect without --mtp: add it, or omit the weight."
    if options.run in ("", ".", "..") or not re.fullmatch(r"[\w.+=@ -]+", options.run):
        yield (
            f"--run {options.run!r} cannot name a folder: use letters, digits, '-', '_' and '.' "
            "only."
        )
    shares = options.parallel == "fsdp" or options.expert_parallel > 1
    if shares and options.trace_sample:
        yield (
            "--trace-sample does not work with --parallel fsdp or --expert-parallel: it needs the "
            "whole model in one process; run moe-microscope probe on the checkpoint afterwards."
        )
    if options.parallel == "fsdp" and options.optimizer == "muon":
        yield (
            "--optimizer muon does not work with --parallel fsdp: Muon needs whole matrices, but "
            "each rank has only some rows: choose --optimizer adamw, or --parallel ddp."
        )
    if options.parallel is not None and not launched():
        yield (
            f"--parallel {options.parallel} needs several processes: start torchrun "
            "--nproc-per-node N -- train.py …, or omit it."
        )


def _of_routers(options: Options, model: dict[str, Any]) -> Iterator[str]:
    if not (options.dense_twin or _is_dense(model, options.mtp_weight)):
        return
    given = [_spelled(options, n) for n, v in _OF_ROUTERS.items() if getattr(options, n) != v]
    for name in ("capacity_factor", "router_jitter_noise"):
        if (value := getattr(options.model, name)) is not None:
            given.append(f"--model.{name} {value}")
    for option in given:
        yield f"{option} does not work with a dense model, which has no routers: omit it."


def _spelled(options: Options, name: str) -> str:
    return f"{flag_name(name)} {getattr(options, name)}"


def option_facts(options: Options) -> dict[str, str]:
    """Every option by its flag, folders as full paths, to compare ranks."""
    plain = options.to_dict()
    model = plain.pop("model")
    plain |= {name: os.path.abspath(plain[name]) for name in _FOLDERS}
    # First what --resume finds: a checkpoint also supplies the options that were not given.
    start = _start(options)
    facts = {"what --resume finds": "nothing" if start is None else f"step {start[1]['step']}"}
    facts |= {flag_name(name): v for name, v in plain.items() if name not in _MAY_DIFFER}
    facts |= {f"--model.{field}": value for field, value in model.items()}
    given = {flag: str(value) for flag, value in facts.items() if value is not None}
    return dict.fromkeys(facts, NOT_GIVEN) | given
