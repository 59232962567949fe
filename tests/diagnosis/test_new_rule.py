"""A new rule is one file, with its limits. Tried in a scratch copy."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RULE = '''
"""MASS: the chosen experts hold little of the probability."""

from microscope_tui.diagnosis.context import RuleLimits
from microscope_tui.diagnosis.episodes import Reading, Severity
from microscope_tui.diagnosis.rules.base import Nothing, Rule


class MassLimits(RuleLimits, frozen=True):
    """Invented for a test."""

    warn: float = 0.3
    leave: float = 0.4
    persistence: int = 10


class Mass(Rule[MassLimits, Nothing]):
    name = "MASS"
    subject = "Undecided routing"
    means = "Most of the probability is on experts that were not chosen."
    formula = "selected_mass below its limit in 90 % of 10 steps"
    turn = 155
    cause_rank = 115
    low_is_bad = True

    def read(self, view):
        mass = view.signal("selected_mass")
        if mass is None:
            return None
        found, limits = {}, self.limits
        for index, value in enumerate(mass.values):
            severity = Severity.WARN if value < limits.warn else None
            found[index] = Reading(severity, value > limits.leave, value, limits.warn)
        return found

    @staticmethod
    def words(worst, run):
        why = f"the chosen experts hold {worst.value:.0%} of the probability"
        return why, "wait, or lower the temperature of the router"
'''
SCRIPT = """
import json, sys
from microscope_tui.cli import main
from microscope_tui.diagnosis.engine import Diagnosis
from microscope_tui.diagnosis.advice import report
from microscope_tui.runlog.records import RouterInfo, RouterSummary, RunRecord, StepRecord

run = RunRecord(run="r", routers=(RouterInfo("L1", 1, 8, 2),), balance={"method": "bias"})
diagnosis = Diagnosis(run)
for step in range(1, 301):
    mass = {210: 0.05, 260: 0.2}.get(step, 0.25 if step > 200 else 0.6)
    router = RouterSummary(effective_experts=(8.0,), selected_mass=(mass,))
    diagnosis.observe(StepRecord(step=step, tokens=4096.0, router=router), lambda index: None)
((finding, advice),) = report(diagnosis)
worst = finding.worst
found = [worst.rule, worst.onset, worst.value, worst.worst_at, worst.now.value]
print(json.dumps([*found, advice.why]), flush=True)
sys.argv[1:] = ["explain", "mass", "--config", sys.argv[1]]
sys.exit(main())
"""


def test_a_new_rule_is_judged_explained_and_given_other_limits(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("*.pyc")
    shutil.copytree(ROOT / "microscope_tui", tmp_path / "microscope_tui", ignore=ignore)
    (tmp_path / "microscope_tui" / "diagnosis" / "rules" / "mass.py").write_text(RULE.lstrip())
    config = tmp_path / "config.toml"
    config.write_text("[rules.MASS]\nwarn = 0.2\n")
    command = [sys.executable, "-c", SCRIPT, str(config)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    judged, _, explained = done.stdout.partition("\n")
    *found, why = json.loads(judged)
    assert found == ["MASS", 201, 0.05, 210, 0.25]  # the lowest value is the worst
    assert "hold 5% of the probability" in why
    assert "hold 25% of the probability" in why
    assert "MASS: Undecided routing" in explained
    assert "warn = 0.2 (by default 0.3)" in explained
