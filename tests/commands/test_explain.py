"""``explain`` as a program."""

import json
from collections.abc import Callable
from typing import Any

from microscope_tui.diagnosis import RULES

Run = Callable[..., Any]


def test_every_rule_of_the_catalogue_is_listed(microscope: Run) -> None:
    done = microscope("explain")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(RULES)


def test_a_rule_is_explained_whatever_the_case_of_its_name(microscope: Run) -> None:
    done = microscope("explain", "hot_Expert")
    assert done.returncode == 0
    assert done.stdout.startswith("HOT_EXPERT: ")
    assert "share = 0.8" in done.stdout


def test_the_same_as_data(microscope: Run) -> None:
    every = json.loads(microscope("explain", "--json").stdout)
    (one,) = json.loads(microscope("explain", "meter", "--json").stdout)["rules"]
    assert every["schema_version"] == 1
    assert one == next(rule for rule in every["rules"] if rule["rule"] == "METER")


def test_an_unknown_rule_is_a_usage_error_with_the_list(microscope: Run) -> None:
    done = microscope("explain", "colapse")
    assert (done.returncode, done.stdout) == (64, "")
    assert f"colapse: no such rule; there are {', '.join(RULES)}" in done.stderr
