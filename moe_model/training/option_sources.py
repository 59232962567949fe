"""Options that are not on the command line: from a TOML file, or from a checkpoint.

Precedence: command line, ``--config FILE.toml``, the run that ``--resume`` continues, the preset.
So a resumed run keeps every option that you do not change.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from cyclopts import App
from cyclopts.argument import ArgumentCollection
from cyclopts.config import Dict, Toml

from moe_model import CheckpointError, UsageError, read_plain_description
from moe_model.training.resume import candidates

_BELONGS_TO_BALANCE = ("bias_update_rate", "seq_aux_weight", "aux_weight")
_NOT_INHERITED = ("resume", "config", "parallel")
"""Options of a start, not of the run: the number of processes may change at every start."""


def read_option_sources(app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Fill in arguments that have no value from the file or from the checkpoint.

    cyclopts calls this between reading the command line and converting it.

    Raises:
        UsageError: If the file is missing or not TOML.
        CycloptsError: If it holds an unknown option, or a value of the wrong type.
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
    for candidate in candidates(resume, _given(arguments, "--run"), folder):
        try:
            saved = read_plain_description(candidate).get("options", {})
            inherited = _inherited(saved, _given(arguments, "--balance"))
        except (CheckpointError, AttributeError):
            continue  # loading it reports what is wrong
        Dict(inherited, allow_unknown=True, source=str(candidate))(app, commands, arguments)
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


def _inherited(saved: dict[str, Any], balance: str | None) -> dict[str, Any]:
    """The options set in a checkpoint, without those of another balance method."""
    left_out = list(_NOT_INHERITED)
    if balance is not None and balance != saved.get("balance"):
        left_out += _BELONGS_TO_BALANCE
    return {
        name: value
        for name, value in saved.items()
        if name not in left_out and value is not None and value is not False
    }
