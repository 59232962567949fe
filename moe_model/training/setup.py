"""From resolved options to a run, new or resumed.

All errors in the options are found here, before any file is written.
"""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from moe_model import (
    PRESETS,
    Checkpoint,
    LanguageModel,
    ModelConfig,
    UsageError,
    shown,
    stop_ids_of,
)
from moe_model.threads import settle_threads
from moe_model.training.batches import Batch, TrainingBatches, held_out_batches
from moe_model.training.checkpoint import (
    AUTO,
    candidates,
    find_checkpoint,
    has_training_state,
    is_newest,
    refuse_contradictions,
    refuse_other_model,
    restore,
)
from moe_model.training.corpus import Corpus, cache_key, learned_tokenizer, load_sources
from moe_model.training.machine import LOCK, choose_dtype, refuse_too_large
from moe_model.training.options import Options
from moe_model.training.parallel import parallelize, refuse_layout
from moe_model.training.run import LossScale, Progress, Run
from moe_model.training.step import make_optimizer
from moe_model.training.world import World, agree

LOG = "metrics.jsonl"
HEADER = b'{"kind":"run"'
EVALUATION_SEQUENCES = 128
PROMPT_TOKENS = 32


def prepare(options: Options, world: World) -> Run:
    """Read and build everything that a run needs, restored where it resumes.

    All ranks call this.

    Raises:
        UsageError: If the options cannot be satisfied.
        CheckpointError: If the checkpoint is damaged.
    """
    with world.together():
        checkpoint = find_checkpoint(options, world)
        resumed_at = 1 if _refuse_existing(options, checkpoint) else None
        threads: object = None
        stops: tuple[int, ...] = ()
        if checkpoint is not None:
            threads = checkpoint.description.get("threads")
            stops = checkpoint.stop_ids
            if has_training_state(checkpoint.folder):
                resumed_at = checkpoint.step + 1
        settle_threads(threads, world.say)
        dtype = choose_dtype(options.dtype, world.device)
    config, corpora = _read_data(options, checkpoint, world)
    tokenizer = corpora[0].tokenizer
    agree(world, start_facts(corpora, checkpoint, dtype))
    with world.together():
        prompt = _choose_prompt(options, corpora[0])
        model = _build_model(options, config, checkpoint)
        forced_collapse = _forced_collapse(options, model.router_depths)
        if world.is_main and checkpoint is None:
            _refuse_log_of_another(options, model.config)
    forward = parallelize(model, options.parallel, world, options.expert_parallel)
    run = Run(
        options=options,
        world=world,
        dtype=dtype,
        tokenizer=tokenizer,
        text_digest=" ".join(f"{one.digest}:{one.weight}" for one in corpora).removesuffix(":1"),
        prompt=prompt,
        stop_ids=stop_ids_of(tokenizer, stops),
        forced_collapse=forced_collapse,
        model=model,
        forward=forward,
        optimizer=make_optimizer(model, options),
        loss_scale=LossScale() if dtype == torch.float16 else None,
        batches=TrainingBatches(
            [one.training for one in corpora],
            weights=[one.weight for one in corpora],
            batch_size=options.batch_size,
            grad_accum=options.grad_accum,
            seq_len=options.seq_len,
            ahead=config.num_nextn_predict_layers,
            seed=options.seed,
            rank=world.rank,
            world_size=world.size,
            pin=world.device.type == "cuda",
        ),
        held_out=_held_out(options, corpora),
        progress=Progress(collapse_index=[None] * len(model.routers)),
        start=checkpoint,
        resumed_at_step=resumed_at,
        is_newest=checkpoint is not None and is_newest(checkpoint, options),
    )
    if checkpoint is not None:
        with world.together():
            restore(run, checkpoint)
    return run


def _held_out(
    options: Options, corpora: Sequence[Corpus]
) -> tuple[tuple[str, Sequence[Batch]], ...]:
    most = max(1, EVALUATION_SEQUENCES // len(corpora))
    shape = (options.batch_size, options.seq_len, most)
    return tuple((corpus.name, held_out_batches(corpus.held_out, *shape)) for corpus in corpora)


def _build_model(
    options: Options, config: ModelConfig, checkpoint: Checkpoint | None
) -> LanguageModel:
    model = LanguageModel(config).train()
    model.init_weights(torch.Generator().manual_seed(options.seed))
    if options.dense_twin:
        model = twin_of(model, options.seed)
    if checkpoint is not None:
        if model.config.num_nextn_predict_layers == checkpoint.config.num_nextn_predict_layers:
            checkpoint.load_weights(model)
        else:  # of multi-token prediction only the depths that both have
            weights, saved = model.state_dict(), checkpoint.load_model().state_dict()
            model.load_state_dict({name: saved.get(name, weights[name]) for name in weights})
    if not options.mtp_weight:
        model.freeze_ahead()
    model.recompute = options.activation_checkpointing
    if options.compile:
        for layer in (*model.layers, *model.mtp):
            layer.compile()
    return model


def twin_of(mixture: LanguageModel, seed: int) -> LanguageModel:
    """The dense twin of ``mixture``, with its values where name and shape of a tensor agree.

    The others are initialised with ``seed``.
    """
    twin = LanguageModel(mixture.config.dense_twin()).train()
    twin.init_weights(torch.Generator().manual_seed(seed))
    weights, values = twin.state_dict(), mixture.state_dict()
    for name, weight in weights.items():
        if name in values and values[name].shape == weight.shape:
            weight.copy_(values[name])
    return twin


def _read_data(
    options: Options, checkpoint: Checkpoint | None, world: World
) -> tuple[ModelConfig, list[Corpus]]:
    """The text as tokens, and the shape of the model that reads them."""
    with world.main_first():  # it downloads and encodes, the others use the cache
        sources = load_sources(options.data, options.text_field)
        if checkpoint is not None:
            refuse_contradictions(options, checkpoint)
            tokenizer = checkpoint.tokenizer
        else:
            vocabulary = options.model.vocab_size or PRESETS[options.preset].get("vocab_size")
            tokenizer = learned_tokenizer(options.tokenizer, sources, vocabulary)
        earlier = None if checkpoint is None or options.dense_twin else checkpoint.config
        config = options.model_config(len(tokenizer), earlier)
        if checkpoint is not None:
            own = config.dense_twin() if options.dense_twin else config
            refuse_other_model(own, checkpoint)
        refuse_layout(config, options.parallel, world, options.expert_parallel)
        parts = world.size if options.parallel == "fsdp" else 1
        refuse_too_large(config, world.device, parts, options.expert_parallel)
        ahead = config.num_nextn_predict_layers
        return config, [
            Corpus.build(source, tokenizer, options.seq_len, ahead) for source in sources
        ]


def _refuse_existing(options: Options, checkpoint: Checkpoint | None) -> bool:
    """Whether the folders of this run may exist already, because it is resumed in them.

    ``UsageError`` if they exist and the run is not resumed, or if logs and checkpoints share a
    folder.
    """
    if options.log_dir.resolve() == options.checkpoint_dir.resolve():
        raise UsageError(
            f"--log-dir and --checkpoint-dir are both {options.log_dir}: choose two folders."
        )
    own = options.checkpoint_dir / options.run
    folders = [f for f in (options.log_dir / options.run, own) if _is_taken(f)]
    in_place = checkpoint is not None and checkpoint.folder.parent == own.resolve()
    if folders and not in_place and options.resume != AUTO:
        # Two runs in one folder would mix their logs.
        raise UsageError(
            f"--run {options.run}: {folders[0]} already exists: resume it (--resume auto), choose "
            "another name, or remove it."
        )
    return bool(folders)


def _refuse_log_of_another(options: Options, model: ModelConfig) -> None:
    """A run that starts with a log must have written it: ``UsageError`` if its checkpoints are
    elsewhere, or its model is another one."""
    log = options.log_dir / options.run / LOG
    header = _last_header(log)
    own = options.checkpoint_dir / options.run
    before = header.get("checkpoint_dir")
    if isinstance(before, str) and candidates(AUTO, options.run, Path(before)):
        raise UsageError(
            f"--resume auto: {own} has no checkpoint, but {Path(before, options.run)} has, and "
            f"belongs to {log}: add --checkpoint-dir {before}, or choose another --run."
        )
    saved: Any = header.get("model")
    if not isinstance(saved, dict):
        return
    for field, value in model.to_dict().items():
        if saved.get(field, value) != value:
            raise UsageError(
                f"--resume auto: {own} has no checkpoint, and {log} is of another model: {field} "
                f"was {shown(saved[field])}, now it is {value}: add the --checkpoint-dir of that "
                "run, or choose another --run."
            )


def _last_header(log: Path) -> dict[str, Any]:
    """The options of the last start in ``log``, none if it is missing or damaged."""
    found: Any = {}
    with suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
        with log.open("rb") as lines:
            headers = [line for line in lines if line.startswith(HEADER)]
        found = json.loads(headers[-1])["config"] if headers else {}
    return found if isinstance(found, dict) else {}


def _is_taken(path: Path) -> bool:
    if path.is_dir():
        return any(inside.name != LOCK for inside in path.iterdir())
    return os.path.lexists(path)


def _choose_prompt(options: Options, corpus: Corpus) -> str:
    if not options.sample_prompt:
        start = corpus.held_out.ids[:PROMPT_TOKENS].tolist()
        return corpus.tokenizer.decode(start)
    try:
        corpus.tokenizer.encode(options.sample_prompt)
    except ValueError as error:
        raise UsageError(f"--sample-prompt {options.sample_prompt!r}: {error}") from error
    return options.sample_prompt


def start_facts(
    corpora: Sequence[Corpus], checkpoint: Checkpoint | None, dtype: torch.dtype
) -> dict[str, str]:
    """What a run starts from: the same options may find different files on different machines.

    Args:
        checkpoint: ``None`` for a new run.
        dtype: Number format of matrix products; ``auto`` depends on the machine.

    Returns:
        Values by the name an error shows, for :func:`~moe_model.training.world.agree`.
    """
    tokenizer = corpora[0].tokenizer
    found = "none"
    if checkpoint is not None:  # its description has the SHA-256 of all files
        plain = json.dumps(checkpoint.description, sort_keys=True).encode()
        found = f"step {checkpoint.step}, sha256 {hashlib.sha256(plain).hexdigest()[:16]}"
    return {
        "the version of torch": torch.__version__,
        "the number format (--dtype)": str(dtype).removeprefix("torch."),
        "the checkpoint (--resume)": found,
        "the text (--data)": f"sha256 {' '.join(one.digest[:16] for one in corpora)}",
        "the tokenizer (--tokenizer)": (
            f"{len(tokenizer)} tokens, sha256 {cache_key('', tokenizer)[:16]}"
        ),
    }


def _forced_collapse(options: Options, depths: Sequence[int]) -> tuple[int, int] | None:
    text = options.force_collapse
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)@(\d+)", text)
    layer, step = (int(match[1]), int(match[2])) if match else (-1, 0)
    if layer not in depths or not 1 <= step <= options.steps:
        raise UsageError(
            f"--force-collapse {text!r} is not LAYER@STEP with a layer of "
            f"{', '.join(map(str, depths))} and a step from 1 to {options.steps}: correct it."
        )
    return depths.index(layer), step
