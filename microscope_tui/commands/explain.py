"""Explains a rule: meaning, formula, limits and their sources, and what mutes it."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from microscope_tui.commands.config import read_config
from microscope_tui.commands.console import USAGE, fail, print_data, print_json
from microscope_tui.commands.options import AsJson
from microscope_tui.diagnosis import DEFAULTS, RULES, Episode, Limits, Severity
from microscope_tui.diagnosis.context import WARM_UP_MAX, WARM_UP_SHARE, WARM_UP_STEPS
from microscope_tui.runlog import RouterInfo, RunRecord, safe_text

_WIDTH = 96
_LINE, _INDENT = 86, 12
Explanation = dict[str, Any]


def explained(name: str, limits: Limits = DEFAULTS) -> Explanation:
    """The rule ``name`` (``KeyError`` without it), with ``limits`` beside their defaults."""
    rule = RULES[name]
    mine = limits.of(rule.limits_type)
    return {
        "rule": name,
        "subject": rule.subject,
        "means": rule.means,
        "formula": rule.formula,
        "evidence": " ".join((type(mine).__doc__ or "").split()),
        "limits": mine.values(),
        "defaults": rule.limits_type().values(),
        "silenced_by": _silenced_by(name),
        "silent_profiles": ["eval"] if rule.trains_only else [],
        "next": _typical_remedy(name),
    }


def as_list(explanations: Sequence[Explanation]) -> str:
    """One line per rule: name, subject, and the first sentence of its meaning."""
    lines = []
    for one in explanations:
        line = f"{one['subject']}: {one['means'].partition('. ')[0]}"
        if len(line) > _LINE:
            line = line[: _LINE - 1] + "…"
        lines.append(f"{one['rule']:<12} {line}")
    return "\n".join(lines)


def rule_text(one: Explanation) -> str:
    limits = []
    for name, value in one["limits"].items():
        limit = f"{name} = {value:g}"
        if value != one["defaults"][name]:
            limit += f" (by default {one['defaults'][name]:g})"
        limits.append(limit)
    profiles = [f"the profile {profile}" for profile in one["silent_profiles"]]
    paragraphs = [
        ("means", one["means"]),
        ("fires", one["formula"]),
        ("evidence", one["evidence"]),
        ("silent", "; ".join([*one["silenced_by"], *profiles]) or "never"),
        ("next", one["next"] or "depends on the cause, which `check` names"),
    ]
    lines = [f"{one['rule']}: {one['subject']}"]
    for label, text in paragraphs:
        wrapped = textwrap.wrap(text, _WIDTH - _INDENT, break_on_hyphens=False)
        lines += [f"  {label:<9} {wrapped[0]}", *(" " * _INDENT + line for line in wrapped[1:])]
    lines.append(f"  limits    [rules.{one['rule']}] in the config file changes them")
    return "\n".join([*lines, *(" " * _INDENT + limit for limit in limits)])


def _silenced_by(name: str) -> list[str]:
    rule = RULES[name]
    reasons = []
    if not rule.mutes_all:
        muting = " or ".join(other.name for other in RULES.values() if other.mutes_all)
        reasons.append(f"{muting} in the same layer or in the run as a whole")
    if rule.muted_by:
        names = " or ".join(rule.muted_by)
        reasons.append(f"{names} in the same layer, unless this is worse")
    if not rule.in_warm_up:
        reasons.append(
            f"the warm-up: {WARM_UP_STEPS} steps, or {WARM_UP_SHARE:.0%} of a long run up to "
            f"{WARM_UP_MAX}, except where the evidence is overwhelming"
        )
    return reasons


def _typical_remedy(name: str) -> str | None:
    """What it advises in a small run that balances by bias."""
    if RULES[name].remedy_by_cause:
        return None
    router = RouterInfo("L1", 1, 64, 8)
    balance = {"method": "bias", "bias_update_rate": 0.001}
    run = RunRecord("typical", (router,), balance=balance, capacity_factor=1.25)
    at: dict[str, Any] = {"onset": 1, "alarm": 1, "last": 1, "value": 0.0, "limit": 0.0}
    episode = Episode(rule=name, router_index=0, router=router, severity=Severity.WARN, **at)
    _, remedy = RULES[name].words(episode, run)
    return f"For example: {remedy}."


def explain(rule: str = "", /, *, as_json_: AsJson = False, config: Path | None = None) -> int:
    """List the rules, or explain one: what it means, when it fires, its limits, and the remedy.

    Parameters
    ----------
    rule
        Name of a rule, in any case; without it, list every rule.
    config
        Config file whose limits to show; by default your own, if it exists.
    """
    if rule and rule.upper() not in RULES:
        fail(f"{safe_text(rule, 40)}: no such rule; there are {', '.join(RULES)}", USAGE)
    limits = read_config(config).limits
    names = [rule.upper()] if rule else list(RULES)
    found = [explained(name, limits) for name in names]
    if as_json_:
        print_json({"schema_version": 1, "rules": found})
    elif rule:
        print_data(rule_text(found[0]))
    else:
        print_data(as_list(found))
    return 0
