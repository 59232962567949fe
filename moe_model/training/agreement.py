"""What must be the same on all ranks, compared before the first step.

Ranks make the same decisions because they use the same numbers. A rank with another learning rate
or another text would not fail: it would train, and its gradients would count.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from moe_model import CheckpointError, UsageError, read_plain_description
from moe_model.training.options import Options, flag_name
from moe_model.training.resume import candidates
from moe_model.training.token_cache import cache_key

if TYPE_CHECKING:
    from moe_model import Checkpoint
    from moe_model.training.corpus import Corpus
    from moe_model.training.distributed import World

_MAY_DIFFER = ("config", "device")
"""Not compared: what a config file sets is compared anyway, and different devices cannot meet."""
NOT_GIVEN = "not given"
_FOLDERS = ("log_dir", "checkpoint_dir")


def agree(world: World, facts: Mapping[str, str]) -> None:
    """Return if ``facts`` are the same on every rank. A collective: all ranks call it.

    Args:
        world: The ranks to compare.
        facts: Values by the name an error shows; the error names the first that differs.

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
                    "command, files and software versions."
                )


def option_facts(options: Options) -> dict[str, str]:
    """Every option by its flag, folders as full paths; the same on ranks that
    were given the same."""
    plain = options.to_dict()
    model = plain.pop("model")
    facts = {name: value for name, value in plain.items() if name not in _MAY_DIFFER}
    facts |= {name: os.path.abspath(facts[name]) for name in _FOLDERS}
    # First what --resume finds: a checkpoint also supplies the options that were not given.
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
                return "damaged"  # loading it reports the details
    return "nothing"


def start_facts(
    corpus: Corpus, checkpoint: Checkpoint | None, dtype: torch.dtype
) -> dict[str, str]:
    """What a run starts from: the same options may find different files on different machines.

    Args:
        corpus: The text, and the tokenizer that read it.
        checkpoint: The one to resume from.
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
