"""From settled options to everything a run is made of.

Whatever can be wrong with the options is found here, before a single file is written.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from moe_model.command import UsageError
from moe_model.config import ModelConfig
from moe_model.model import LanguageModel
from moe_model.training.data import Corpus, TrainingBatches, held_out_batches, load_text
from moe_model.training.machine import choose_device, choose_dtype, refuse_too_large
from moe_model.training.optimizer import make_optimizer
from moe_model.training.options import Options, parse_forced_collapse

EVALUATION_BATCHES = 16
PROMPT_TOKENS = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run is made of."""

    options: Options
    device: torch.device
    dtype: torch.dtype
    """Number format of matrix products; weights are fp32."""
    corpus: Corpus
    prompt: str
    """What the sample at the end continues."""
    forced_collapse: tuple[int, int] | None
    """Router that is collapsed on purpose, and the first step of it."""
    model: LanguageModel
    optimizer: torch.optim.Optimizer
    batches: TrainingBatches
    held_out: Sequence[tuple[Tensor, Tensor]]


def prepare(options: Options) -> Run:
    """Read the data, build the model and its optimizer.

    Raises:
        UsageError: If the options ask for something that cannot be.
    """
    _refuse_existing(options)
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    corpus = Corpus.from_text(load_text(options.data), options.seq_len)
    config = options.model_config(len(corpus.tokenizer))
    refuse_too_large(config, device)
    forced_collapse = None
    if options.force_collapse is not None:
        forced_collapse = parse_forced_collapse(options.force_collapse, config, options.steps)
    prompt = _choose_prompt(options, corpus)

    model = LanguageModel(config)
    model.init_weights(torch.Generator().manual_seed(options.seed))
    model.to(device).train()
    batch, length = options.batch_size, options.seq_len
    window = length + 1 + config.num_nextn_predict_layers
    return Run(
        options=options,
        device=device,
        dtype=dtype,
        corpus=corpus,
        prompt=prompt,
        forced_collapse=forced_collapse,
        model=model,
        optimizer=make_optimizer(model, options.lr),
        batches=TrainingBatches(corpus.training, batch, window, options.seed),
        held_out=held_out_batches(corpus.held_out, batch, length, EVALUATION_BATCHES),
    )


def describe(run: Run) -> dict[str, Any]:
    """What the log says about the run before its first step, and how often it counts experts."""
    options, config = run.options, run.model.config
    return {
        "run": options.run,
        "planned_steps": options.steps,
        "counts_every": options.counts_every,
        "model": {
            "name": "deepseek-v3",
            "layers": list(config.router_depths),
            "layer_names": layer_names(config),
            "num_experts": config.n_routed_experts,
            "top_k": config.num_experts_per_tok,
            "num_shared_experts": config.n_shared_experts,
            "score_function": config.scoring_func,
            "norm_top_k": config.norm_topk_prob,
            "capacity_factor": config.capacity_factor,
            "parameters": config.parameters(),
            "active_parameters": config.active_parameters(),
        },
        "balance": {
            "method": options.balance,
            "bias_update_rate": options.bias_update_rate,
            "seq_aux_weight": options.seq_aux_weight,
            "aux_weight": options.aux_weight,
            "z_loss_weight": options.z_loss_weight,
        },
        "config": {
            **options.to_dict(),
            "device": run.device.type,
            "dtype": dtype_name(run),
            "model": config.to_dict(),
        },
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }


def layer_names(config: ModelConfig) -> list[str]:
    """What the routers are called on a screen."""
    layers = config.num_hidden_layers
    return [
        f"L{depth}" if depth < layers else f"mtp.{depth - layers}" for depth in config.router_depths
    ]


def dtype_name(run: Run) -> str:
    """The number format as the command line spells it."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[run.dtype]


def _refuse_existing(options: Options) -> None:
    if options.log_dir.resolve() == options.checkpoint_dir.resolve():
        raise UsageError(
            f"--log-dir and --checkpoint-dir are both {options.log_dir}: choose two folders."
        )
    # Two runs in one folder would make one log of two stories.
    for folder in (options.log_dir / options.run, options.checkpoint_dir / options.run):
        if folder.exists():
            raise UsageError(
                f"--run {options.run}: {folder} exists already: choose another name, or remove it."
            )


def _choose_prompt(options: Options, corpus: Corpus) -> str:
    if not options.sample_prompt:
        return corpus.tokenizer.decode(corpus.held_out[:PROMPT_TOKENS].tolist())
    try:
        corpus.tokenizer.encode(options.sample_prompt)
    except ValueError as error:
        raise UsageError(f"--sample-prompt {options.sample_prompt!r}: {error}") from error
    return options.sample_prompt
