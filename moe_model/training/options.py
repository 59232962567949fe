"""Every option of a run, each once: command line, help and log header are derived from here.

An option that is ``None`` takes the preset's value; :mod:`.resolving` fills those in. Every field
of ``ModelConfig`` is an option too, ``--model.FIELD``.
"""

import ast
import dataclasses
import inspect
import typing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Group, Parameter

from moe_model import PRESETS, ModelConfig, UsageError
from moe_model.config import YarnScaling

_DATA = Parameter(group=Group("Model and data", sort_key=1))
_TRAINING = Parameter(group=Group("Training", sort_key=2))
_BALANCE = Parameter(group=Group("Balance", sort_key=3))
_RUN = Parameter(group=Group("Run and checkpoints", sort_key=4))
_OUTPUT = Parameter(group=Group("Log and output", sort_key=5))
_MODEL = Group("Model fields (default: the preset's)", sort_key=6)

_SWITCH = Parameter(negative=(), show_default=False)
_NAMED = Parameter(show_choices=False)
"""The choices are in the text."""
_SPEED = Parameter(show_default=False)
"""Can be switched off (``--no-compile``) when a run is resumed."""

_PRESET: Any = None
"""Placeholder for the preset's value until it is resolved."""

_SHORT = {
    "router_jitter_noise": "--router-noise",
    "capacity_factor": "--capacity-factor",
    "drop_policy": "--drop-policy",
}
"""Fields of the model that have a shorter flag, too."""

AUX_WEIGHT = 1e-2
MTP_WEIGHT = 0.3
FINAL_SHARE = 0.1


def _texts(cls: type) -> dict[str, str]:
    """The text under every field of a class, in one line."""
    found = {}
    source: Any = ast.parse(inspect.getsource(cls))
    for pair in pairwise(source.body[0].body):
        match pair:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                found[name] = " ".join(text.split())
    return found


def _all_optional(cls: type, name: str, **nested: Any) -> Any:
    """A dataclass with the fields of ``cls``, all optional, each with its help text."""
    kinds = {**typing.get_type_hints(cls), **nested}
    texts = _texts(cls)
    fields: list[Any] = []
    for known in dataclasses.fields(cls):
        kind: Any = kinds[known.name] | None
        if known.name in _SHORT:
            names = (known.name, _SHORT[known.name])
            kind = Annotated[kind, _BALANCE, Parameter(name=names)]
        absent: Any = dataclasses.field(default=None, metadata={"help": texts[known.name]})
        fields.append((known.name, kind, absent))
    return dataclasses.make_dataclass(
        name,
        fields,
        namespace={"__module__": __name__},  # else it counts as built in, and has no fields
        frozen=True,
        kw_only=True,
    )


YarnOverrides: Any = _all_optional(YarnScaling, "YarnOverrides")
ModelOverrides: Any = _all_optional(ModelConfig, "ModelOverrides", rope_scaling=YarnOverrides)
"""The fields of ``ModelConfig``, all optional, as ``--model.FIELD`` sets them."""


_COLUMNS = (
    "data", "tokenizer", "steps", "batch_size", "lr", "bias_update_rate", "seq_aux_weight",
    "eval_every", "save_every",
)  # fmt: skip
RUN_DEFAULTS: dict[str, dict[str, Any]] = {
    name: dict(zip(_COLUMNS, row, strict=True))
    for name, row in {
        #              data              tokenizer steps batch lr  bias  seq   eval  save
        "tiny":        (("python-docs",),    "char",  1500, 8, 3e-3, 1e-2, 0.0, 100,  500),
        "small":       (("python-docs",),    "bpe",   3000, 8, 6e-4, 1e-2, 1e-4, 100,  500),
        "shakespeare": (("tinyshakespeare",), "char", 10000, 4, 3e-4, 1e-3, 1e-4, 250, 1000),
        "deepseek-v3": (("python-docs",),    "bpe",  10000, 1, 2e-4, 1e-3, 1e-4, 250, 1000),
    }.items()
}  # fmt: skip
"""What a preset sets beside the shape of its model; ``seq_aux_weight`` with ``--balance bias``.

DeepSeek-V3 uses a bias rate of 1e-3 over many steps; a short run needs ten times that to balance
the load before it ends."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    preset: Annotated[str, _DATA] = "tiny"
    """Model and defaults: see the table below."""
    data: Annotated[tuple[str, ...], _DATA, Parameter(consume_multiple=True, negative=())] = _PRESET
    """Text: python-docs, tinyshakespeare, a file or folder, .jsonl or .parquet; A:3 B:1 mixes two
    (default: the preset's)."""
    text_field: Annotated[str, _DATA] = "text"
    """Field of a record that has the text."""
    document_mask: Annotated[bool, _DATA, _SWITCH] = False
    """No attention across documents, which are files or records."""
    tokenizer: Annotated[str, _DATA] = _PRESET
    """Tokenizer: char, bpe (byte pairs, learned from the text), a name on the Hugging Face hub such
    as HuggingFaceTB/SmolLM2-135M, or a folder with a tokenizer.json (default: the preset's)."""
    dense_twin: Annotated[bool, _DATA, _SWITCH] = False
    """Train the dense model of equal active size instead: same data in the same order, and the
    mixture's initial values where a tensor has the same name and shape."""
    config: Annotated[Path | None, _DATA] = None
    """TOML file with any of these options by the same names; the command line wins."""

    steps: Annotated[int, _TRAINING] = _PRESET
    """Optimizer steps (default: the preset's)."""
    batch_size: Annotated[int, _TRAINING] = _PRESET
    """Sequences in one forward pass (default: the preset's)."""
    seq_len: Annotated[int, _TRAINING] = _PRESET
    """Tokens in a sequence (default: the model's max_position_embeddings, or the preset's if an
    imported model has more)."""
    mtp: Annotated[bool, _TRAINING, _SWITCH] = False
    """Multi-token prediction: also predict the token after the next, as DeepSeek-V3 does."""
    mtp_weight: Annotated[float, _TRAINING] = _PRESET
    """Weight of the multi-token prediction loss; divided by 3 for the last third of the run
    (default: 0.3)."""
    grad_accum: Annotated[int, _TRAINING] = 1
    """Micro-batches (forward passes) in one optimizer step."""
    lr: Annotated[float, _TRAINING] = _PRESET
    """Peak learning rate (default: the preset's, or a tenth of it when you start from an imported
    or upcycled model)."""
    lr_schedule: Annotated[Literal["cosine", "wsd", "constant"], _TRAINING, _NAMED] = "cosine"
    """Learning rate after the warm-up: cosine falls until the last step, wsd stays at the peak and
    falls linearly at the end, constant stays."""
    warmup: Annotated[int | None, _TRAINING] = None
    """Steps in which the learning rate rises to the peak (default: a tenth of --steps, 100 at
    most)."""
    decay: Annotated[float, _TRAINING] = _PRESET
    """Share of --steps, the last ones, in which wsd lowers the learning rate (default: 0.2)."""
    min_lr: Annotated[float, _TRAINING] = _PRESET
    """Learning rate of the last step as a share of the peak, with cosine and wsd (default: 0.1)."""
    router_lr: Annotated[float, _TRAINING] = 1.0
    """Factor on the learning rate of the routers; 0 freezes them."""
    weight_decay: Annotated[float, _TRAINING] = 0.1
    """Weight decay of matrices; the gains of norms have none."""
    clip: Annotated[float, _TRAINING] = 1.0
    """Scale gradients down to this norm; 0 disables it."""
    optimizer: Annotated[Literal["adamw", "muon"], _TRAINING] = "adamw"
    """Optimizer: adamw, or muon for the matrices of attention, dense layers and experts with adamw
    for the rest."""
    seed: Annotated[int, _TRAINING] = 0
    """Seed of weights, batches and the sample: same seed, same machine, same losses."""
    device: Annotated[Literal["auto", "cpu", "cuda"], _TRAINING] = "auto"
    """Device; auto uses a GPU if there is one."""
    dtype: Annotated[Literal["auto", "fp32", "bf16", "fp16"], _TRAINING] = "auto"
    """Number format of matrix products; auto uses bf16 if the hardware supports it, and fp16 with
    automatic loss scaling on older GPUs."""
    compile: Annotated[bool, _TRAINING, _SPEED] = False
    """Compile every layer with torch.compile; takes minutes at the start."""
    activation_checkpointing: Annotated[bool, _TRAINING, _SPEED] = False
    """Keep only the input of each layer and recompute the rest: less memory, slower steps."""
    deterministic: Annotated[bool, _TRAINING, _SPEED] = False
    """On a GPU, use deterministic operations only: slower, but resuming is bit for bit there
    too."""
    parallel: Annotated[Literal["ddp", "fsdp"] | None, _TRAINING] = None
    """Parallelism under torchrun: ddp (the default there) keeps the whole model in every process,
    fsdp a part of it."""
    expert_parallel: Annotated[int, _TRAINING] = 1
    """Under torchrun: N neighbouring processes share the routed experts, 1/N each."""

    balance: Annotated[Literal["bias", "aux", "none"], _BALANCE, _NAMED] = _PRESET
    """Load balancing: bias (as DeepSeek-V3, no loss; the default), aux (auxiliary loss) or none."""
    bias_update_rate: Annotated[float, _BALANCE] = _PRESET
    """Change of an expert's bias per step with --balance bias (default: the preset's); 0 in the
    last 3.4 %."""
    seq_aux_weight: Annotated[float, _BALANCE] = _PRESET
    """Weight of the sequence-wise auxiliary loss (default: the preset's with --balance bias, else
    0)."""
    aux_weight: Annotated[float, _BALANCE] = _PRESET
    """Weight of the classic auxiliary loss with --balance aux (default: 1e-2)."""
    balance_scope: Annotated[Literal["step", "pass"], _BALANCE, _NAMED] = _PRESET
    """Token counts in the classic auxiliary loss: of the whole step before (step, the default), or
    of each forward pass (pass: depends on how a step is divided)."""
    z_loss_weight: Annotated[float, _BALANCE] = 0.0
    """Weight of the router z-loss, which keeps router logits small; 1e-3 is usual, 0 disables
    it."""
    force_collapse: Annotated[str | None, _BALANCE] = None
    """LAYER@STEP: from that step on, route every token of that layer to the same experts, in
    checkpoints too."""

    run: Annotated[str, _RUN] = _PRESET
    """Name of the run (default: PRESET-YYYY-MM-DD-HHMMSS)."""
    log_dir: Annotated[Path, _OUTPUT] = Path("logs")
    """Write the run log to LOG_DIR/RUN."""
    profile: Annotated[Literal["pretrain", "finetune"] | None, _OUTPUT] = None
    """Which limits the diagnosis uses (default: finetune when you start from an imported model,
    else pretrain; a resumed run keeps its profile)."""
    counts_every: Annotated[int, _OUTPUT] = 1
    """Log counts and biases of all experts at step 1 and every N steps; other steps have summaries
    only."""
    checkpoint_dir: Annotated[Path, _RUN] = Path("checkpoints")
    """Write checkpoints to CHECKPOINT_DIR/RUN/latest, previous and best."""
    save_every: Annotated[int, _RUN] = _PRESET
    """Steps between checkpoints (default: the preset's); the last step is always saved."""
    keep: Annotated[str | None, _RUN] = None
    """Keep all checkpoints, or the KEEP newest, as CHECKPOINT_DIR/RUN/kept-STEP; each takes 12
    bytes per parameter."""
    eval_every: Annotated[int, _OUTPUT] = _PRESET
    """Steps between evaluations (default: the preset's); the last step is always evaluated."""
    resume: Annotated[str | None, _RUN] = None
    """Resume from a checkpoint, bit for bit; auto takes the newest of --run, or starts it. Options
    not given are taken from that run."""
    on_collapse: Annotated[Literal["log", "checkpoint", "stop"], _RUN, _NAMED] = "log"
    """After a collapse or divergence: log reports it, checkpoint also saves the state at that step,
    stop saves and exits with 3."""
    sample_prompt: Annotated[str | None, _OUTPUT, Parameter(allow_leading_hyphen=True)] = None
    """Prompt for the sample at the end (default: the start of the held-out text)."""
    trace_sample: Annotated[bool, _OUTPUT, _SWITCH] = False
    """Also write LOG_DIR/RUN-sample: the prompt and the sample with the experts that every token
    chose."""

    model: Annotated[ModelOverrides, Parameter(group=_MODEL, name_transform=str)] = ModelOverrides()  # noqa: RUF009  # frozen
    """Fields of the model that differ from the preset."""

    def model_config(self, vocabulary: int, earlier: ModelConfig | None = None) -> ModelConfig:
        """The preset, or the model that is resumed, with the fields of ``--model``.

        Args:
            vocabulary: Tokens of the tokenizer.
            earlier: The model that is resumed; ``None`` for the preset.

        Raises:
            UsageError: If fields contradict each other, an option or the tokenizer.
        """
        given = _given(dataclasses.asdict(self.model))
        if self.mtp and not given.setdefault("num_nextn_predict_layers", 1):
            raise UsageError(
                "--mtp contradicts --model.num_nextn_predict_layers 0: omit one of them."
            )
        if "drop_policy" in given and "capacity_factor" not in given:
            raise UsageError(
                f"--drop-policy {given['drop_policy']} has no effect without --capacity-factor: "
                "add it, or omit the policy."
            )
        fields = {"vocab_size": vocabulary, **PRESETS[self.preset]}
        if earlier is not None:
            fields = earlier.to_dict()
        try:
            config = ModelConfig.from_dict({**fields, **given})
        except ValueError as error:
            raise UsageError(f"--model: {error}") from error
        if config.topk_method != "noaux_tc" and self.bias_update_rate:
            # Names neither --balance nor --bias-update-rate as given: both have defaults.
            raise UsageError(
                f"a router with topk_method={config.topk_method} has no bias, which --balance bias "
                "updates: add --balance aux, or none."
            )
        if config.vocab_size < vocabulary:
            raise UsageError(
                f"--model.vocab_size {config.vocab_size} is less than the {vocabulary} tokens of "
                "the tokenizer: omit it, or choose a larger one."
            )
        if self.seq_len > config.max_position_embeddings:
            raise UsageError(
                f"--seq-len {self.seq_len} is more than max_position_embeddings="
                f"{config.max_position_embeddings}: add --model.max_position_embeddings "
                f"{self.seq_len}."
            )
        return config

    def to_dict(self) -> dict[str, Any]:
        """Every option by name, ready for JSON; of the model's fields only those given."""
        plain = dataclasses.asdict(self)
        plain["model"] = _given(plain["model"])
        return plain | {name: str(path) for name, path in plain.items() if isinstance(path, Path)}


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    plain = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            value = _given(value)
        if value is not None and value != {}:
            plain[name] = value
    return plain


def flag_name(name: str) -> str:
    """The option ``name`` as the command line spells it."""
    return "--" + name.replace("_", "-")
