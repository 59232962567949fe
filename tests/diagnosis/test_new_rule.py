"""A new rule is one file, with its limits. Tried in a scratch copy."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RULE = '''
"""MASS: the chosen experts hold little of the probability."""

from microscope_tui.diagnosis.context import ENDS_INSIDE, RuleLimits
from microscope_tui.diagnosis.episodes import Reading, Severity
from microscope_tui.diagnosis.rules.base import Nothing, Rule


class MassLimits(RuleLimits, frozen=True):
    """Invented for a test."""

    warn: float = 0.3
    leave: float = 0.4
    persistence: int = 10

    relations = (("warn <= leave", ENDS_INSIDE),)


class Mass(Rule[MassLimits, Nothing]):
    name = "MASS"
    subject = "Undecided routing"
    means = "Most of the probability is on experts that were not chosen."
    formula = "selected_mass below its limit in 90 % of 10 steps"
    turn = 155
    cause_rank = 115
    low_is_bad = True

    def set_up(self):
        self.persist(self.limits.persistence)

    def read(self, view):
        mass = view.signal("selected_mass")
        if mass is None:
            return None
        return {
            index: Reading(
                severity=Severity.WARN if value < self.limits.warn else None,
                clear=value > self.limits.leave,
                value=value,
                limit=self.limits.warn,
            )
            for index, value in enumerate(mass.values)
        }

    @staticmethod
    def words(worst, run):
        why = f"the chosen experts hold {worst.value:.0%} of the probability"
        return why, "wait, or lower the temperature of the router"
'''
JUDGE = """
import json
from microscope_tui.diagnosis.engine import Diagnosis
from microscope_tui.diagnosis.ledger import group
from microscope_tui.diagnosis.advice import advise
from microscope_tui.runlog.records import RouterInfo, RouterSummary, RunRecord, StepRecord

run = RunRecord(run="r", routers=(RouterInfo("L1", 1, 8, 2),), balance={"method": "bias"})
diagnosis = Diagnosis(run)
for step in range(1, 301):
    mass = {210: 0.05, 260: 0.2}.get(step, 0.25 if step > 200 else 0.6)
    router = RouterSummary(effective_experts=(8.0,), selected_mass=(mass,))
    diagnosis.observe(StepRecord(step=step, tokens=4096.0, router=router), lambda index: None)
(finding,) = group(diagnosis.episodes)
worst = finding.worst
print(json.dumps({
    "rule": worst.rule, "onset": worst.onset, "worst": worst.value, "worst_at": worst.worst_at,
    "now": worst.now.value, "why": advise(finding, run).why,
}))
"""


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """A copy of the package with the rule in it."""
    shutil.copytree(
        ROOT / "microscope_tui", tmp_path / "microscope_tui", ignore=shutil.ignore_patterns("*.pyc")
    )
    rules = tmp_path / "microscope_tui" / "diagnosis" / "rules"
    (rules / "mass.py").write_text(RULE.lstrip())
    return tmp_path


def fresh(scratch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the copy, not the package that is installed."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=scratch, capture_output=True, text=True, timeout=60
    )


def test_the_worst_of_a_new_rule_whose_low_values_are_bad_is_its_lowest(scratch: Path) -> None:
    done = fresh(scratch, "-c", JUDGE)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    why = found.pop("why")
    assert found == {"rule": "MASS", "onset": 201, "worst": 0.05, "worst_at": 210, "now": 0.25}
    assert "hold 5% of the probability" in why
    assert "hold 25% of the probability" in why


def test_a_new_rule_is_explained_ignored_and_given_other_limits(scratch: Path) -> None:
    config = scratch / "config.toml"
    config.write_text("[rules.MASS]\nwarn = 0.5\n")
    command = ["-m", "microscope_tui.cli"]
    refused = fresh(scratch, *command, "explain", "mass", "--config", str(config))
    assert refused.returncode != 0
    assert "warn must not be above leave" in refused.stderr
    config.write_text("[rules.MASS]\nwarn = 0.2\n")
    done = fresh(scratch, *command, "explain", "mass", "--config", str(config))
    assert done.returncode == 0, done.stderr
    assert "MASS: Undecided routing" in done.stdout
    assert "warn = 0.2 (by default 0.3)" in done.stdout
