"""The pages of ``examples`` show what their commands print; the skill, the Slurm epilogue and the
CI step do what they promise.

``UPDATE_PAGES=1`` writes the screens again.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.scenarios import Shape, write_run
from tests.sources import wandb_bytes

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PAGE = EXAMPLES / "frameworks.md"
STEPS = 240
LONG_AGO = 1e9
Row = dict[str, float]


def loads(step: int) -> list[list[int]]:
    """Three layers of 8 experts, 2,048 pairs; from step 120 on the last one uses two experts."""
    even = [256 + (-1) ** expert * ((7 * step + expert // 2) % 11) for expert in range(8)]
    return [even, even, even if step < 120 else [1024, 1024] + [0] * 6]


def vio(step: int) -> Row:
    row: Row = {}
    for layer, counts in enumerate(loads(step)):
        off = [count / 256 - 1 for count in counts]
        found = {"max": max(off), "min": min(off), "avg": sum(map(abs, off)) / 8}
        row |= {f"rollout/moe/{name}_vio/layer_{layer}": x for name, x in found.items()}
    return row


def aggregated(step: int) -> Row:
    worst = max(max(counts) for counts in loads(step)) / 256
    drift = 0.0005 if step < 120 else 0.05
    return {"expert_load/max_mean/max": worst, "mismatch_kl/mean": drift}


def by_expert(step: int, key: str, unit: float) -> Row:
    rows = enumerate(loads(step))
    cells = ((layer, expert, n) for layer, row in rows for expert, n in enumerate(row))
    return {key.format(layer, expert): n / unit for layer, expert, n in cells}


def wandb_run(folder: Path, row: Callable[[int], Row]) -> None:
    """What an offline run leaves, with its folder named as W&B names it."""
    records = [wandb_bytes.run(), wandb_bytes.config(num_experts_per_tok=2)]
    records += [wandb_bytes.history(row(step), step) for step in range(1, STEPS + 1)]
    path = folder / "wandb/offline-run-20261201_101500-abc123/run-abc123.wandb"
    path.parent.mkdir(parents=True)
    path.write_bytes(wandb_bytes.log([*records, wandb_bytes.exit_record(0)]))


def json_lines(path: Path, line: Callable[[int], dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(line(step)) + "\n" for step in range(1, STEPS + 1)))


@pytest.fixture(name="workplace")
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what every framework of the page leaves."""
    json_lines(tmp_path / "verl/grpo.jsonl", lambda n: {"step": n, "data": vio(n)})
    file = tmp_path / "outputs/monitors/file/metrics.jsonl"
    json_lines(file, lambda n: {"step": n, "time": LONG_AGO + n, **aggregated(n)})
    drift = "train/train_rollout_logprob_abs_diff"
    wandb_run(tmp_path / "slime", lambda n: {drift: 0.01 if n < 120 else 0.2})
    gates = "moe_expert_utilization/layer_{}_expert_{}"
    wandb_run(tmp_path / "automodel", lambda n: by_expert(n, gates, 256))
    wandb_run(tmp_path, lambda n: by_expert(n, "tokens_per_expert/{}/{}", 1))
    shape = Shape(routers=3, steps=STEPS)
    write_run(tmp_path / "logs/sft", "collapse", shape=shape, seed=0)
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_screen_of_the_frameworks_is_what_its_command_prints(
    workplace: Path, call: Any
) -> None:
    page = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```text\n\$ moe-microscope (.+?)\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 6
    for command, screen in blocks:
        code, out, err = call(*shlex.split(command))
        assert code in (1, 2), err
        out = re.sub(r"  note: .*\n", "", out)
        if os.environ.get("UPDATE_PAGES"):
            page = page.replace(f"{command}\n{screen}```", f"{command}\n{out}```")
            PAGE.write_text(page, encoding="utf-8")
        else:
            assert out == screen, command


def shell(script: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with this ``moe-microscope`` and stubs of Slurm, which print what Slurm's do."""
    bin_ = cwd / "bin"
    bin_.mkdir(exist_ok=True)
    stubs = {
        "moe-microscope": f'exec {sys.executable} -m microscope_tui.cli "$@"',
        "scontrol": f'[ "$1" = update ] && echo "$@" >> updates || echo "   WorkDir={cwd}"',
        "sacct": "printf 'TIMEOUT\\nTIMEOUT\\n'",
    }
    for name, text in stubs.items():
        (bin_ / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin_ / name).chmod(0o755)
    path = f"{bin_}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, **environment}
    return subprocess.run(
        ["sh", "-c", script], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )


def test_the_commands_of_the_skill_find_the_cause_and_its_remedy(workplace: Path) -> None:
    skill = (EXAMPLES / "skills/moe-microscope/SKILL.md").read_text(encoding="utf-8")
    assert re.match(r"---\nname: [a-z-]+\ndescription: .+?\n---\n", skill, re.DOTALL)
    find, judge, read, look = re.findall(r"```bash\n(.*?)```", skill, re.DOTALL)
    ran = [shell(one.replace("PATH", "logs"), workplace) for one in (find, judge, read, look)]
    assert [one.returncode for one in ran] == [0, 2, 0, 0], [one.stderr for one in ran]
    (line,) = ran[2].stdout.splitlines()
    assert line.startswith("crit | bias update too slow | Raise bias_update_rate from ")
    for code in ("0 healthy", "1 warning", "2 critical", "3 no verdict", "64 usage error"):
        assert code in skill


def test_the_epilogue_writes_the_verdict_and_marks_a_job_with_a_collapse(workplace: Path) -> None:
    ran = shell(f"sh {EXAMPLES}/slurm_epilogue.sh", workplace, SLURM_JOB_ID="17")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    *verdict, last = (workplace / "moe-17.txt").read_text().splitlines()
    assert verdict[0].startswith("sft: CRITICAL at step 240")
    assert last == "job 17: TIMEOUT, moe-microscope check: 2"
    assert "JobId=17 AdminComment=router collapse" in (workplace / "updates").read_text()


@pytest.mark.parametrize(("run", "code"), [("logs/sft", 2), ("verl/grpo.jsonl", 3), ("fine", 0)])
def test_the_ci_step_passes_the_exit_code_on_and_writes_a_summary(
    workplace: Path, run: str, code: int
) -> None:
    write_run(workplace / "fine", "healthy", shape=Shape(routers=3, steps=STEPS), seed=0)
    summary = str(workplace / "summary.md")
    script = f"sh {EXAMPLES}/ci_step.sh {run}"
    ran = shell(script, workplace, GITHUB_STEP_SUMMARY=summary)
    assert ran.returncode == code, ran.stderr
    assert ("too short" in ran.stderr) == (code == 3)
    assert Path(summary).read_text().startswith(f"```\n{Path(run).stem}: ")
