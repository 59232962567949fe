"""``moe-microscope explain``: the rules of the diagnosis, in words and numbers."""

import json
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from microscope_tui.commands.config import limits_of
from microscope_tui.console import USAGE, fail, print_data
from microscope_tui.diagnosis import RULES
from microscope_tui.report import as_list, explained, rule_text, rules_json
from microscope_tui.runlog import safe_text


def explain(
    rule: str = "",
    /,
    *,
    as_json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
    config: Path | None = None,
) -> int:
    """List the rules, or explain one: what it means, when it fires, its limits, and the remedy.

    Parameters
    ----------
    rule
        Name of a rule, in any case; without it, list every rule.
    as_json_
        Print the same as JSON.
    config
        Config file whose limits to show; by default your own, if it exists.
    """
    if rule and rule.upper() not in RULES:
        fail(f"{safe_text(rule, 40)}: no such rule; there are {', '.join(RULES)}", USAGE)
    limits, _ = limits_of(config)
    found = [explained(name, limits) for name in ([rule.upper()] if rule else RULES)]
    if as_json_:
        print_data(json.dumps(rules_json(found), indent=2, ensure_ascii=False))
    else:
        print_data(rule_text(found[0]) if rule else as_list(found))
    return 0
