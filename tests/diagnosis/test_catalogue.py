"""What a rule declares about itself is all that others use; the catalogue only finds it."""

from itertools import pairwise

import pytest

from microscope_tui.diagnosis import RULES
from microscope_tui.diagnosis.context import PROFILES

CAUSES_FIRST = ["METER", "STILL", "COLLAPSE", "LOGITS", "GRADSPIKE", "DEAD", "ERODING"]
CAUSES_FIRST += ["OSCILLATION", "BIAS_RUNAWAY", "DROPS", "STARVED", "OVERLOAD", "MISMATCH"]
CAUSES_FIRST += ["UNIFORM", "LINT", "HOT_EXPERT", "SHOCK"]


@pytest.mark.parametrize("name", RULES)
def test_what_a_rule_declares_fits_the_other_rules(name: str) -> None:
    rule, before = RULES[name], list(RULES)[: list(RULES).index(name)]
    assert set(rule.muted_by) <= set(before), "it evaluates a step after those that mute it"
    assert not rule.mutes_all or all(RULES[other].mutes_all for other in before)
    named = {*rule.muted_by, *rule.ends_in} | ({rule.announced_by} if rule.announced_by else set())
    assert named <= set(RULES) - {name}
    assert set(rule.rolls_back_in) <= set(PROFILES)
    if rule.announced_by:
        assert RULES[rule.announced_by].limits_type().values()["followed"] > 0
    assert rule.judges_settings == ("held_causes" in vars(rule))


def test_every_rule_has_a_turn_and_a_place_in_the_order_of_causes() -> None:
    assert len({rule.turn for rule in RULES.values()}) == len(RULES)
    ranks = {name: rule.cause_rank for name, rule in RULES.items()}
    assert len(set(ranks.values())) == len(RULES)
    assert all(ranks[cause] < ranks[effect] for cause, effect in pairwise(CAUSES_FIRST))
