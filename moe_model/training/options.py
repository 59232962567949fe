"""Every option of a run, each once: command line, help and log header are derived from here.

An option that is ``None`` takes the preset's value; :func:`settle` fills those in, so that the
settled options describe the run completely.
"""

from __future__ import annotations

import dataclasses
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from moe_model.command import UsageError
from moe_model.config import PRESETS, DropPolicy, ModelConfig
from moe_model.training.data import PYTHON_DOCS
from moe_model.training.overrides import ModelOverrides

_DATA = Group("Model and data", sort_key=1)
_TRAINING = Group("Training", sort_key=2)
_BALANCE = Group("Balance", sort_key=3)
_OUTPUT = Group("Output", sort_key=4)
_MODEL = Group("Model fields (default: the preset's)", sort_key=5)

_PRESET: Any = None
"""Stands for the preset's value until :func:`settle` fills it in."""

AUX_WEIGHT = 1e-2
SEQ_AUX_WEIGHT = 1e-4
MTP_WEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class RunDefaults:
    """What a preset says about training, beside the shape of its model."""

    steps: int
    batch_size: int
    lr: float
    bias_update_rate: float
    eval_every: int
    save_every: int


RUN_DEFAULTS = {
    #                         steps batch  lr    bias  eval  save
    "tiny":        RunDefaults(1500,  8, 1e-3, 1e-2,  100,  500),
    "small":       RunDefaults(3000,  8, 6e-4, 1e-2,  100,  500),
    "shakespeare": RunDefaults(10000, 4, 3e-4, 1e-3,  250, 1000),
    "deepseek-v3": RunDefaults(10000, 1, 2e-4, 1e-3,  250, 1000),
}  # fmt: skip
"""The bias rate of DeepSeek-V3 is 1e-3 over millions of steps; a short run needs ten times that to
be balanced before it ends."""


_SHORT_FOR = {
    "mtp": "num_nextn_predict_layers",
    "router_noise": "router_jitter_noise",
    "capacity_factor": "capacity_factor",
    "drop_policy": "drop_policy",
}
"""Options that are fields of the model, for those who look for them among the others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What the command line says."""

    preset: Annotated[str, Parameter(group=_DATA)] = "tiny"
    """Shape of the model and defaults of the run: tiny, small, shakespeare or deepseek-v3."""
    data: Annotated[str, Parameter(group=_DATA)] = PYTHON_DOCS
    """Text to learn: python-docs (it comes with Python) or a UTF-8 file."""

    steps: Annotated[int, Parameter(group=_TRAINING, show_default=False)] = _PRESET
    """Optimizer steps (default: the preset's)."""
    batch_size: Annotated[int, Parameter(group=_TRAINING, show_default=False)] = _PRESET
    """Sequences in one forward pass (default: the preset's)."""
    seq_len: Annotated[int, Parameter(group=_TRAINING, show_default=False)] = _PRESET
    """Tokens in a sequence (default: the model's max_position_embeddings)."""
    mtp: Annotated[bool, Parameter(group=_TRAINING, negative=())] = False
    """Predict one more token ahead (multi-token prediction), as DeepSeek-V3 does."""
    mtp_weight: Annotated[float, Parameter(group=_TRAINING, show_default=False)] = _PRESET
    """Weight of that loss; a third of it for the last third of the run (default: 0.3)."""
    grad_accum: Annotated[int, Parameter(group=_TRAINING)] = 1
    """Forward passes in one optimizer step."""
    lr: Annotated[float, Parameter(group=_TRAINING, show_default=False)] = _PRESET
    """Peak learning rate, after warm-up and before the cosine (default: the preset's)."""
    seed: Annotated[int, Parameter(group=_TRAINING)] = 0
    """Seed of weights, batches and the sample: same seed, same machine, same losses."""
    device: Annotated[Literal["auto", "cpu", "cuda"], Parameter(group=_TRAINING)] = "auto"
    """Where to compute; auto takes the GPU where there is one."""
    dtype: Annotated[Literal["auto", "fp32", "bf16"], Parameter(group=_TRAINING)] = "auto"
    """Number format of matrix products; auto takes bf16 where the hardware has it."""

    balance: Annotated[Literal["bias", "aux", "none"], Parameter(group=_BALANCE)] = "bias"
    """What keeps experts busy: bias (DeepSeek-V3, loss-less), aux (classic loss), or none."""
    bias_update_rate: Annotated[float, Parameter(group=_BALANCE, show_default=False)] = _PRESET
    """Change of an expert's bias per step with --balance bias (default: the preset's)."""
    seq_aux_weight: Annotated[float, Parameter(group=_BALANCE, show_default=False)] = _PRESET
    """Weight of the sequence-wise auxiliary loss (default: 1e-4 with --balance bias, else 0)."""
    aux_weight: Annotated[float, Parameter(group=_BALANCE, show_default=False)] = _PRESET
    """Weight of the classic auxiliary loss with --balance aux (default: 1e-2)."""
    z_loss_weight: Annotated[float, Parameter(group=_BALANCE)] = 0.0
    """Weight of the router z-loss, which keeps router logits small; 1e-3 is usual, 0 is none."""
    router_noise: Annotated[float | None, Parameter(group=_BALANCE, show_default=False)] = None
    """While training, routers see their input times 1 ± this (default: the model's, 0)."""
    capacity_factor: Annotated[float | None, Parameter(group=_BALANCE, show_default=False)] = None
    """While training, an expert takes at most this times its fair share (default: drop nothing)."""
    drop_policy: Annotated[DropPolicy | None, Parameter(group=_BALANCE, show_default=False)] = None
    """What is dropped beyond the capacity: the last in the batch, or the smallest weights."""
    force_collapse: Annotated[str | None, Parameter(group=_BALANCE)] = None
    """LAYER@STEP: from that step on, send every token of that layer to the same experts."""

    run: Annotated[str, Parameter(group=_OUTPUT, show_default=False)] = _PRESET
    """Name of the run and of its folders (default: PRESET-YYYY-MM-DD-HHMMSS)."""
    log_dir: Annotated[Path, Parameter(group=_OUTPUT)] = Path("logs")
    """The run log goes to LOG_DIR/RUN."""
    counts_every: Annotated[int, Parameter(group=_OUTPUT)] = 1
    """Log the counts and biases of all experts at step 1 and every N steps, else summaries only."""
    checkpoint_dir: Annotated[Path, Parameter(group=_OUTPUT)] = Path("checkpoints")
    """Checkpoints go to CHECKPOINT_DIR/RUN/latest and best."""
    save_every: Annotated[int, Parameter(group=_OUTPUT, show_default=False)] = _PRESET
    """Steps between checkpoints (default: the preset's); the last step is always saved."""
    eval_every: Annotated[int, Parameter(group=_OUTPUT, show_default=False)] = _PRESET
    """Steps between evaluations (default: the preset's); the last step is always evaluated."""
    sample_prompt: Annotated[str | None, Parameter(group=_OUTPUT, allow_leading_hyphen=True)] = None
    """Text that the sample at the end continues (default: the start of the held-out text)."""

    model: Annotated[ModelOverrides, Parameter(group=_MODEL, name_transform=str)] = ModelOverrides()  # noqa: RUF009  # frozen
    """Fields of the model that differ from the preset."""

    def model_config(self, vocabulary: int) -> ModelConfig:
        """The preset with the fields of ``--model``; ``UsageError`` where they contradict."""
        fields = {"vocab_size": vocabulary, **PRESETS[self.preset], **self._model_fields()}
        try:
            config = ModelConfig.from_dict(fields)
        except ValueError as error:
            raise UsageError(f"--model: {error}") from error
        if config.vocab_size < vocabulary:
            raise UsageError(
                f"--model.vocab_size {config.vocab_size} is less than the {vocabulary} characters "
                "of the text: leave it out, or choose more."
            )
        if self.seq_len > config.max_position_embeddings:
            raise UsageError(
                f"--seq-len {self.seq_len} is more than max_position_embeddings="
                f"{config.max_position_embeddings}: add --model.max_position_embeddings "
                f"{self.seq_len}."
            )
        return config

    def _model_fields(self) -> dict[str, Any]:
        """Fields of the model that the command line sets, under one name or another."""
        fields = _given(dataclasses.asdict(self.model))
        for flag, field in _SHORT_FOR.items():
            value = getattr(self, flag)
            if value is None or value is False:
                continue
            given = fields.setdefault(field, int(value) if value is True else value)
            if given != value and not (value is True and given):
                said = _flag(flag) if value is True else f"{_flag(flag)} {value}"
                raise UsageError(
                    f"{said} contradicts --model.{field} {given}: leave one of them out."
                )
        if "drop_policy" in fields and "capacity_factor" not in fields:
            raise UsageError(
                f"--drop-policy {fields['drop_policy']} does nothing without --capacity-factor: "
                "add it, or leave the policy out."
            )
        return fields

    def to_dict(self) -> dict[str, Any]:
        """Every option by name, ready for JSON; of the model's fields only those given."""
        plain = dataclasses.asdict(self)
        plain["model"] = _given(plain["model"])
        return {k: str(v) if isinstance(v, Path) else v for k, v in plain.items()}


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that have a value, those of nested fields too."""
    plain = {k: _given(v) if isinstance(v, dict) else v for k, v in fields.items()}
    return {k: v for k, v in plain.items() if v is not None and v != {}}


def settle(options: Options) -> Options:
    """The same options with the preset's values filled in and every range checked.

    Raises:
        UsageError: For a value out of range, or values that contradict.
    """
    if options.preset not in RUN_DEFAULTS:
        raise UsageError(
            f"--preset {options.preset} is not known: choose one of {', '.join(PRESETS)}."
        )
    defaults = dataclasses.asdict(RUN_DEFAULTS[options.preset])
    defaults["seq_len"] = (
        options.model.max_position_embeddings or PRESETS[options.preset]["max_position_embeddings"]
    )
    defaults["seq_aux_weight"] = SEQ_AUX_WEIGHT if options.balance == "bias" else 0.0
    defaults["aux_weight"] = AUX_WEIGHT if options.balance == "aux" else 0.0
    depths = options.model.num_nextn_predict_layers
    if depths is None:
        depths = PRESETS[options.preset].get("num_nextn_predict_layers", 0)
    defaults["mtp_weight"] = MTP_WEIGHT if options.mtp or depths else 0.0
    defaults["run"] = f"{options.preset}-{time.strftime('%Y-%m-%d-%H%M%S')}"
    if options.balance != "bias":
        defaults["bias_update_rate"] = 0.0
    missing = {name: v for name, v in defaults.items() if getattr(options, name) is None}
    settled = dataclasses.replace(options, **missing)
    _check_ranges(settled)
    _check_balance(settled)
    _check_mtp(settled, depths)
    _check_run_name(settled.run)
    return settled


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _check_ranges(options: Options) -> None:
    whole = ("steps", "batch_size", "seq_len", "grad_accum", "save_every", "eval_every")
    for name in (*whole, "counts_every"):
        if getattr(options, name) < 1:
            raise UsageError(
                f"{_flag(name)} {getattr(options, name)} is too few: choose 1 or more."
            )
    if not 0 < options.lr < float("inf"):
        raise UsageError(f"--lr {options.lr} is out of range: choose above 0, such as 1e-3.")
    if not 0 <= options.seed < 2**63:
        raise UsageError(f"--seed {options.seed} is out of range: choose 0 to 2^63 - 1.")
    for name in ("bias_update_rate", "seq_aux_weight", "aux_weight", "z_loss_weight", "mtp_weight"):
        if not 0 <= getattr(options, name) < float("inf"):
            raise UsageError(
                f"{_flag(name)} {getattr(options, name)} is out of range: choose 0 or more."
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
                f"{_flag(name)} {getattr(options, name)} does nothing with --balance "
                f"{options.balance}: leave it out, or choose --balance {' or '.join(methods)}."
            )


def _check_mtp(options: Options, depths: int) -> None:
    if options.mtp_weight and not (options.mtp or depths):
        raise UsageError(
            f"--mtp-weight {options.mtp_weight} does nothing without --mtp: add it, or leave the "
            "weight out."
        )


def _check_run_name(run: str) -> None:
    if run in ("", ".", "..") or not re.fullmatch(r"[\w.+=@ -]+", run):
        raise UsageError(
            f"--run {run!r} cannot name a folder: use letters, digits, '-', '_' and '.' only."
        )


def parse_forced_collapse(text: str, config: ModelConfig, steps: int) -> tuple[int, int]:
    """Index of the router and first step of ``--force-collapse LAYER@STEP``.

    Raises:
        UsageError: If it does not read so, the layer has no router, or the step never comes.
    """
    match = re.fullmatch(r"(\d+)@(\d+)", text)
    if match is None:
        raise UsageError(
            f"--force-collapse {text!r} is not LAYER@STEP: write for example "
            f"{config.router_depths[0]}@{max(1, steps // 2)}."
        )
    layer, step = int(match[1]), int(match[2])
    if layer not in config.router_depths:
        layers = ", ".join(map(str, config.router_depths))
        raise UsageError(
            f"--force-collapse {text}: layer {layer} has no router: choose one of {layers}."
        )
    if not 1 <= step <= steps:
        raise UsageError(
            f"--force-collapse {text}: step {step} is not in this run: choose 1 to {steps}."
        )
    return config.router_depths.index(layer), step
