"""Limits of one's own: the table of ``thresholds.py`` with some values replaced.

Each value is checked by itself, and then against the others: what would switch a rule off
without a word, or let it never end, is refused.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from microscope_tui.diagnosis.thresholds import DEFAULTS, Limits

_NEVER = "it could never speak"
_NEVER_ENDS = "what it reports would never end"
_SILENT_CUT = "it would be cut without a word"
RELATIONS: tuple[tuple[str, str, str], ...] = (
    ("METER", "needed <= window", _NEVER),
    ("METER", "luck <= 1", "all counts would be forced ones: it is a chance"),
    ("METER", "summary_error <= 1", "no summary would be wrong: it is a share of the value"),
    ("COLLAPSE", "critical <= warn", "it would be critical before it is a warning"),
    ("COLLAPSE", "urgent <= warn", "it would be urgent before it is a warning"),
    ("COLLAPSE", "warn <= leave", "an episode would end inside its own limit"),
    ("COLLAPSE", "leave < 1", f"{_NEVER_ENDS}: c is 1 at most"),
    ("COLLAPSE", "window <= max_window", _SILENT_CUT),
    ("COLLAPSE", "max_window <= 1000", "too much is held: the counts of so many steps"),
    ("COLLAPSE", "even <= 1", "no layer would ever have settled: c is 1 at most"),
    ("COLLAPSE", "relative_fall < 1", f"{_NEVER}: it is the share of c that is lost"),
    ("ERODING", "8 <= short", f"{_NEVER}: fewer points are no trend"),
    ("ERODING", "short < long", _NEVER),
    ("ERODING", "long <= 400", "a look takes too long: it compares every point with every other"),
    ("ERODING", "level <= 1", "every slide would be deep enough: c is 1 at most"),
    ("ERODING", "fall < 1", f"{_NEVER}: it is the share of c that is lost"),
    ("DEAD", "min_window <= max_window", _SILENT_CUT),
    ("DEAD", "warn_steps <= critical_steps", "it would be critical before it is a warning"),
    ("DEAD", "critical_share <= 1", "nothing would be critical: it is a share of the experts"),
    ("STARVED", "window <= 200", f"{_SILENT_CUT}: no more steps are summed"),
    ("STARVED", "share <= 1", f"{_NEVER}: it is a share of the experts"),
    ("STARVED", "over_reference <= 1", f"{_NEVER}: it is a share of the experts"),
    ("STARVED", "enter <= 0.1", "an episode would end inside its own limit"),
    ("HOT_EXPERT", "leave <= share", "an episode would end inside its own limit"),
    ("HOT_EXPERT", "share <= 1", f"{_NEVER}: it is a share of the tokens"),
    ("OVERLOAD", "1 < rank_ratio", f"{_NEVER_ENDS}: the busiest rank has at least the mean"),
    ("DROPS", "0 < warn", f"{_NEVER_ENDS}: it ends below half of this"),
    ("DROPS", "warn <= critical", "it would be critical before it is a warning"),
    ("DROPS", "critical <= 1", "nothing would be critical: it is a share of the assignments"),
    ("LOGITS", "1 <= leave", f"{_NEVER_ENDS}: 1 is the usual value"),
    ("LOGITS", "leave <= warn", "an episode would end inside its own limit"),
    ("LOGITS", "warn <= critical", "it would be critical before it is a warning"),
    ("LOGITS", "0 < max_logit", "every logit would be too large"),
    ("GRADSPIKE", "not_finite <= persistence", "norms that are no number could never tell"),
    ("GRADSPIKE", "1 <= raised", "every episode would be dated back to the start"),
    ("GRADSPIKE", "1 <= leave", f"{_NEVER_ENDS}: 1 is the usual value"),
    ("GRADSPIKE", "raised <= ratio", "an episode would be dated to after its alarm"),
    ("GRADSPIKE", "leave <= ratio", "an episode would end inside its own limit"),
    ("GRADSPIKE", "ratio <= once", "a single step would tell before many do"),
    ("UNIFORM", "entropy_share <= 1", f"{_NEVER}: it is a share of ln E"),
    ("UNIFORM", "after_share <= 1", f"{_NEVER}: it is a share of the planned steps"),
    ("UNIFORM", "gradient <= learning", "a router that learns would learn nothing"),
    ("OSCILLATION", "4 <= window", f"{_NEVER}: the shortest swing takes two steps, twice"),
    ("OSCILLATION", "window <= 1000", "too much is held: the counts of so many steps"),
    ("OSCILLATION", "every <= most", _SILENT_CUT),
    ("OSCILLATION", "experts_share < 1", f"{_NEVER}: it is a share of the experts"),
    ("OSCILLATION", "agreement <= 1", f"{_NEVER}: it is a correlation"),
    ("OSCILLATION", "recurrence <= 1", f"{_NEVER}: it is a correlation"),
    ("OSCILLATION", "usual_step <= 1", "chance alone would be a swing: it is a share of the sum"),
    ("BIAS_RUNAWAY", "3 <= points", "there would be no straight line to see"),
    ("BIAS_RUNAWAY", "straightness < 1", f"{_NEVER}: it is an R²"),
    ("BIAS_RUNAWAY", "rate <= 1", f"{_NEVER}: 1 is as fast as a bias can grow"),
    ("BIAS_RUNAWAY", "collapse_index <= 1", "nothing is even enough: c is 1 at most"),
    ("SHOCK", "drop < 1", f"{_NEVER}: c is 1 at most"),
    ("SHOCK", "back <= drop", "a dip would be over as it begins"),
    ("SHOCK", "least_steps <= within", _NEVER),
    ("LINT", "floor <= 1", "every auxiliary loss would be at its floor: it is a share of it"),
    ("LINT", "sign_agreement <= 1", f"{_NEVER}: it is 1 at most"),
    ("LINT", "uneven <= 1", "every layer would be uneven: it is a share of the experts"),
)
"""Rule, what has to hold between its limits, and what would be the case otherwise."""


class BadLimit(ValueError):
    """A limit that does not exist or has no such value; the message says what to write."""


def changed_limits(rules: Mapping[str, Mapping[str, Any]]) -> Limits:
    """The table with some values replaced: ``{"COLLAPSE": {"warn": 0.3}}``.

    Raises:
        BadLimit: no such rule, no such limit, a value of another kind, or one that does not go
            together with the others.
    """
    limits, known, seen = DEFAULTS, [entry.name for entry in fields(Limits)], set[str]()
    for name, values in rules.items():
        rule = name.upper()
        if rule not in known:
            raise BadLimit(f"[rules.{name}]: no such rule; there are {', '.join(known)}")
        if rule in seen:
            raise BadLimit(f"[rules.{name}]: {rule} stands there twice; make one table of both")
        seen.add(rule)
        before = getattr(limits, rule)
        for key, value in values.items():
            if key not in (keys := [entry.name for entry in fields(before)]):
                raise BadLimit(f"[rules.{name}] {key}: no such limit; there are {', '.join(keys)}")
            _check(f"[rules.{name}] {key}", value, getattr(before, key))
        limits = replace(limits, **{rule: replace(before, **values)})
    for rule, relation, otherwise in RELATIONS:
        _check_relation(rule, getattr(limits, rule), relation, otherwise)
    return limits


def _check(what: str, value: object, default: float) -> None:
    if isinstance(default, int) and (type(value) is not int or not 1 <= value <= 10_000):
        raise BadLimit(f"{what} is {value!r}: give an integer from 1 to 10,000, like {default}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise BadLimit(f"{what} is {value!r}: give a number from 0 to 1e12, like {default:g}")


def _check_relation(rule: str, mine: object, relation: str, otherwise: str) -> None:
    """Both sides of ``low < high`` or ``low <= high`` are the name of a limit or a number."""
    left, sign, right = relation.split()
    low, high = _value(mine, left), _value(mine, right)
    if low < high or (sign == "<=" and low == high):
        return
    below, above = ("be below", "be above") if sign == "<" else ("not be above", "not be below")
    if left[0].isdigit():
        what, must, mend = f"{right} is {high:g}", f"it must {above} {left}", "raise it"
    elif right[0].isdigit():
        what, must, mend = f"{left} is {low:g}", f"it must {below} {right}", "lower it"
    else:
        what = f"{left} is {low:g} and {right} {high:g}"
        must, mend = f"{left} must {below} {right}", f"lower {left} or raise {right}"
    raise BadLimit(f"[rules.{rule}] {what}: {must}, or {otherwise}; {mend}")


def _value(mine: object, side: str) -> float:
    value: float = float(side) if side[0].isdigit() else getattr(mine, side)
    return value
