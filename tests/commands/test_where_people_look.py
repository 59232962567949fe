"""The pages of ``examples`` show what their commands print; the skill, the Slurm epilogue and the
CI step do what they promise. ``UPDATE_PAGES=1`` writes the screens again."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from microscope_tui.scenarios import Shape, write_run
from tests.sources import wandb_bytes
from tests.sources.test_reinforcement import vio

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
STEPS, LONG_AGO = 240, 1e9


def rows(step: int) -> dict[str, Any]:
    """What each tool logs of three layers of 8 experts: from step 120 on L2 uses two of them, and
    trainer and engine differ."""
    late = step >= 120
    even = [256 + (-1) ** expert * ((7 * step + expert // 2) % 11) for expert in range(8)]
    loads = [even, even, [1024, 1024] + [0] * 6 if late else even]
    cells = [(at, expert, n) for at, layer in enumerate(loads) for expert, n in enumerate(layer)]
    prime = {
        "expert_load/max_mean/max": max(map(max, loads)) / 256,
        "mismatch_kl/mean": 0.05 if late else 0.0005,
    }
    return {
        "verl/grpo.jsonl": {"step": step, "data": vio(loads)},
        "outputs/monitors/file/metrics.jsonl": {"step": step, "time": LONG_AGO + step, **prime},
        "slime": {"train/train_rollout_logprob_abs_diff": 0.2 if late else 0.01},
        "automodel": {
            f"moe_expert_utilization/layer_{at}_expert_{e}": n / 256 for at, e, n in cells
        },
        ".": {f"tokens_per_expert/{at}/{e}": n for at, e, n in cells},
    }


@pytest.fixture(name="workplace")
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what every framework of the page leaves there."""
    logged = [rows(step) for step in range(1, STEPS + 1)]
    for name in logged[0]:
        path = tmp_path / name
        data = "".join(json.dumps(row[name]) + "\n" for row in logged).encode()
        if not path.suffix:
            path /= "wandb/offline-run-20261201_101500-abc123/run-abc123.wandb"
            history = [wandb_bytes.history(row[name], n) for n, row in enumerate(logged, 1)]
            head = wandb_bytes.run(), wandb_bytes.config(num_experts_per_tok=2)
            data = wandb_bytes.log([*head, *history, wandb_bytes.exit_record(0)])
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
    for name, scenario in (("logs/sft", "collapse"), ("fine", "healthy")):
        write_run(tmp_path / name, scenario, shape=Shape(routers=3, steps=STEPS))
    for path in tmp_path.rglob("*.*"):
        os.utime(path, (LONG_AGO, LONG_AGO))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.usefixtures("workplace")
def test_every_screen_of_the_frameworks_is_what_its_command_prints(call: Any) -> None:
    file = EXAMPLES / "frameworks.md"
    page = file.read_text(encoding="utf-8")
    pattern = r"```text\n\$ moe-microscope (.+?)\n(.*?)```"

    def printed(block: re.Match[str]) -> str:
        code, out, err = call(*shlex.split(block[1]))
        assert code in (1, 2), err
        out = re.sub(r"  note: .*\n", "", out)
        return f"```text\n$ moe-microscope {block[1]}\n{out}```"

    again, count = re.subn(pattern, printed, page, flags=re.DOTALL)
    if os.environ.get("UPDATE_PAGES"):
        file.write_text(again, encoding="utf-8")
    assert (again, count) == (page, 6)


def shell(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it with this ``moe-microscope`` and stubs of Slurm, which print what Slurm's do."""
    stubs = {
        "moe-microscope": f'exec {sys.executable} -m microscope_tui.cli "$@"',
        "scontrol": f'[ "$1" = update ] && echo "$@" >> updates || echo "   WorkDir={Path.cwd()}"',
        "sacct": "printf 'TIMEOUT\\nTIMEOUT\\n'",
    }
    for name, text in stubs.items():
        Path(name).write_text(f"#!/bin/sh\n{text}\n")
        Path(name).chmod(0o755)
    env = {**os.environ, "PATH": f"{Path.cwd()}{os.pathsep}{os.environ['PATH']}", **environment}
    return subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True)


@pytest.mark.usefixtures("workplace")
def test_the_commands_of_the_skill_find_the_cause_and_its_remedy() -> None:
    skill = (EXAMPLES / "skills/moe-microscope/SKILL.md").read_text(encoding="utf-8")
    assert re.match(r"---\nname: [a-z-]+\ndescription: .+?\n---\n", skill, re.DOTALL)
    blocks = re.findall(r"```bash\n(.*?)```", skill, re.DOTALL)
    ran = [shell(block.replace("PATH", "logs")) for block in blocks]
    assert [one.returncode for one in ran] == [0, 2, 0, 0], [one.stderr for one in ran]
    (line,) = ran[2].stdout.splitlines()
    assert line.startswith("crit | bias update too slow | Raise bias_update_rate from ")


def test_the_epilogue_writes_the_verdict_and_marks_a_job_with_a_collapse(workplace: Path) -> None:
    ran = shell(f"sh {EXAMPLES}/slurm_epilogue.sh", SLURM_JOB_ID="17")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    *verdict, last = (workplace / "moe-17.txt").read_text().splitlines()
    assert verdict[0].startswith("sft: CRITICAL at step 240")
    assert last == "job 17: TIMEOUT, moe-microscope check: 2"
    assert "JobId=17 AdminComment=MoE routers critical" in (workplace / "updates").read_text()


@pytest.mark.usefixtures("workplace")
@pytest.mark.parametrize(("run", "code"), [("logs/sft", 2), ("none", 3), ("fine", 0)])
def test_the_ci_step_passes_the_exit_code_on_and_writes_a_summary(run: str, code: int) -> None:
    ran = shell(f"sh {EXAMPLES}/ci_step.sh {run}", GITHUB_STEP_SUMMARY="summary.md")
    assert (ran.returncode, "no verdict" in ran.stderr) == (code, code == 3)
    summary = Path("summary.md").read_text().splitlines()  # no name can end the block
    assert f" {Path(run).stem}: " in summary[0]
    assert all(line.startswith("    ") for line in summary)
