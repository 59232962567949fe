"""Ranks that agree: what must be the same on all of them, compared before the first step.

Ranks decide alike because they decide from the same numbers. One that was started with another
learning rate, or that reads another text, would train on in silence, and its gradients would count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from moe_model.command import UsageError
from moe_model.description import CheckpointError, read_plain_description
from moe_model.training.options import Options, flag_name
from moe_model.training.resume import candidates
from moe_model.training.token_cache import cache_key

if TYPE_CHECKING:
    from moe_model.store import Checkpoint
    from moe_model.training.corpus import Corpus
    from moe_model.training.distributed import World

_MAY_DIFFER = ("config", "device")
"""What a file of options says is in the others; on different devices the ranks do not even meet."""
NOT_GIVEN = "not given"
_FOLDERS = ("log_dir", "checkpoint_dir")


def agree(world: World, facts: Mapping[str, str]) -> None:
    """Return if ``facts`` are those of rank 0 on every rank. All ranks ask.

    Args:
        world: Who must agree.
        facts: Values by what the reader calls them; of those that differ the first is named.

    Raises:
        UsageError: On rank 0, if they are not, with the rank, the fact and both values.
        SystemExit: On the others then, with the same exit code.
    """
    if world.size == 1:
        return
    of_first: dict[str, str] = json.loads(world.broadcast_text(json.dumps(dict(facts))))
    with world.together():
        for name in {**of_first, **facts}:
            here, there = facts.get(name, NOT_GIVEN), of_first.get(name, NOT_GIVEN)
            if here != there:
                raise UsageError(
                    f"{name} is {here}, on rank 0 it is {there}: start all ranks with the same "
                    "command, where they see the same files and software."
                )


def option_facts(options: Options) -> dict[str, str]:
    """Every option by its flag, folders as full paths; the same on ranks that
    were given the same."""
    plain = options.to_dict()
    model = plain.pop("model")
    facts = {name: value for name, value in plain.items() if name not in _MAY_DIFFER}
    facts |= {name: os.path.abspath(facts[name]) for name in _FOLDERS}
    # First what --resume finds: a checkpoint also gives the options that nobody else gave.
    named = {"what --resume finds": _newest(options)}
    named |= {flag_name(name): value for name, value in facts.items()}
    named |= {f"--model.{field}": value for field, value in model.items()}
    return {flag: NOT_GIVEN if v is None else str(v) for flag, v in named.items()}


def _newest(options: Options) -> str:
    if options.resume is not None:
        for checkpoint in candidates(options.resume, options.run, options.checkpoint_dir):
            try:
                return f"step {read_plain_description(checkpoint).get('step')}"
            except CheckpointError:
                return "damaged"  # whoever loads it says more
    return "nothing"


def start_facts(
    corpus: Corpus, checkpoint: Checkpoint | None, dtype: torch.dtype
) -> dict[str, str]:
    """What a run starts from, wherever each rank found it: the same options may find other files.

    Args:
        corpus: The text, and the tokenizer that read it.
        checkpoint: The one to go on from.
        dtype: Number format of matrix products; ``auto`` depends on the machine.
    """
    tokenizer = corpus.tokenizer
    return {
        "the version of torch": torch.__version__,
        "the number format (--dtype)": str(dtype).removeprefix("torch."),
        "the checkpoint (--resume)": _checkpoint_fact(checkpoint),
        "the text (--data)": f"sha256 {corpus.digest[:16]}",
        "the tokenizer (--tokenizer)": (
            f"{len(tokenizer)} tokens, sha256 {cache_key('', tokenizer)[:16]}"
        ),
    }


def _checkpoint_fact(checkpoint: Checkpoint | None) -> str:
    """Its description lists the SHA-256 of all its files."""
    if checkpoint is None:
        return "none"
    plain = json.dumps(checkpoint.description, sort_keys=True).encode()
    return f"step {checkpoint.step}, sha256 {hashlib.sha256(plain).hexdigest()[:16]}"
