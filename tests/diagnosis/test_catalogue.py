"""What a rule says about itself is all that others know of it; the catalogue only finds it."""

from itertools import pairwise

import pytest

from microscope_tui.diagnosis import PROFILES, RULES

CAUSES_FIRST = ["METER", "COLLAPSE", "LOGITS", "GRADSPIKE", "DEAD", "ERODING", "OSCILLATION"]
CAUSES_FIRST += [
    "BIAS_RUNAWAY",
    "DROPS",
    "STARVED",
    "OVERLOAD",
    "MISMATCH",
    "UNIFORM",
    "LINT",
    "HOT_EXPERT",
]
CAUSES_FIRST += ["SHOCK"]

each_rule = pytest.mark.parametrize("name", RULES)


@each_rule
def test_a_rule_looks_at_a_step_after_those_that_mute_it(name: str) -> None:
    before = list(RULES)[: list(RULES).index(name)]
    assert set(RULES[name].muted_by) <= set(before)
    if RULES[name].mutes_all:
        assert all(RULES[other].mutes_all for other in before)


@each_rule
def test_a_rule_names_only_rules_and_profiles_that_there_are(name: str) -> None:
    rule = RULES[name]
    named = {*rule.muted_by, *rule.ends_in} | ({rule.announced_by} if rule.announced_by else set())
    assert named <= set(RULES) - {name}
    assert set(rule.rolls_back_in) <= set(PROFILES)
    if rule.announced_by:
        assert RULES[rule.announced_by].limits_type().values()["followed"] > 0


@each_rule
def test_a_rule_judges_settings_where_it_gives_causes_that_stand(name: str) -> None:
    assert RULES[name].judges_settings == ("whole_run_causes" in vars(RULES[name]))


def test_every_rule_has_a_turn_of_its_own() -> None:
    assert len({rule.turn for rule in RULES.values()}) == len(RULES)


def test_every_rule_has_a_place_of_its_own_in_the_order_of_causes() -> None:
    ranks = {name: rule.cause_rank for name, rule in RULES.items()}
    assert len(set(ranks.values())) == len(RULES)
    assert all(ranks[cause] < ranks[effect] for cause, effect in pairwise(CAUSES_FIRST))
