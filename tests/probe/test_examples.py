"""The examples run as they are printed, and say what to open next."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.probe.layers import records

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ["hf_trainer", "own_layer", "plain_loop", "sft_lora"]


def test_every_example_in_python_is_tried_here() -> None:
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.py")) == EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_trains_without_network_and_names_its_run(name: str, tmp_path: Path) -> None:
    run = name.replace("_", "-")
    done = subprocess.run(
        [sys.executable, f"examples/{name}.py", "--steps", "3", "--logs", str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "http_proxy": "http://localhost:9"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == f"next: moe-microscope {tmp_path / run}"
    lines = records(tmp_path / run)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert "incomplete" not in line
        assert {sum(row) for row in line["tokens_per_expert"]} == {2 * line["tokens"]}
