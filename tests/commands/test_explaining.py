"""``explain``: every rule of the catalogue in words and numbers."""

import pytest

from microscope_tui.commands.explain import explained, rule_text
from microscope_tui.diagnosis import RULES, changed_limits


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_explained_with_every_limit_and_its_evidence(name: str) -> None:
    text = rule_text(explained(name))
    for label in ("means", "fires", "evidence", "silent", "next", "limits"):
        assert f"\n  {label}" in text
    for limit, value in RULES[name].limits_type().values().items():
        assert f" {limit} = {value:g}" in text
    assert max(map(len, text.splitlines())) <= 100


def test_explain_names_what_mutes_a_rule() -> None:
    assert explained("METER")["silenced_by"] == []
    assert "COLLAPSE" in " ".join(explained("OVERLOAD")["silenced_by"])
    assert explained("GRADSPIKE")["silent_profiles"] == ["eval"]
    assert explained("COLLAPSE")["silent_profiles"] == []


def test_a_limit_that_was_changed_shows_both_values() -> None:
    one = explained("COLLAPSE", changed_limits({"COLLAPSE": {"warn": 0.3}}))
    assert "warn = 0.3 (by default 0.35)" in rule_text(one)
    assert (one["limits"]["warn"], one["defaults"]["warn"]) == (0.3, 0.35)
