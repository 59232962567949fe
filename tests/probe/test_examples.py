"""The examples run as they are printed, and name the run to open next."""

import runpy
import socket
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.probe.layers import records

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py"))
PARTS = {"actors": ["critic", "policy"]}
"""Runs of an example that writes several."""


@pytest.mark.filterwarnings("default")  # of the trainers, not of the probe
@pytest.mark.parametrize("name", NAMES)
def test_an_example_trains_without_network_and_names_its_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an example connects to a network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--steps", "3", "--logs", str(tmp_path)])
    if name == "jax_loop":
        pytest.importorskip("jax")
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    run = tmp_path / name.replace("_", "-")
    assert capsys.readouterr().out.splitlines()[-1] == f"next: moe-microscope {run}"
    logs = sorted(run.rglob("metrics.jsonl"))
    assert [log.parent.name for log in logs] == PARTS.get(name, [run.name])
    for lines in (records(log.parent) for log in logs):
        assert [line["step"] for line in lines] == [1, 2, 3]
        for line in lines:
            assert "incomplete" not in line
            assert {sum(row) for row in line["tokens_per_expert"]} == {2 * line["tokens"]}


def test_the_example_of_the_trainer_names_the_extra_that_installs_accelerate() -> None:
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
    assert "accelerate" in str(project["optional-dependencies"]["hf"])
    assert "pip install '.[hf]'    # with accelerate" in (EXAMPLES / "hf_trainer.py").read_text()
