"""The examples run as they are printed, and name the run to open next."""

import math
import runpy
import socket
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.forked import ForkServer, free_port
from tests.probe.layers import records

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PIPELINE = "pipeline_loop"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem != PIPELINE)
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


def run_on_two_ranks(name: str, fork_server: ForkServer, folder: Path) -> str:
    """Three steps of an example, as torchrun starts it; what rank 0 prints."""
    program = f"""import runpy, warnings
warnings.simplefilter("default")  # of torch, not of the probe
runpy.run_path({str(EXAMPLES / f"{name}.py")!r}, run_name="__main__")"""
    words = "-c", program, "--steps", "3", "--logs", str(folder)
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    first, second = (fork_server.start(*words, RANK=str(rank), **together) for rank in (0, 1))
    printed, errors = first.communicate()
    assert [first.returncode, second.wait()] == [0, 0], errors
    return printed


def test_a_plain_loop_that_is_sharded_logs_the_norm_and_the_losses_of_every_step(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    run_on_two_ranks("plain_loop", fork_server, tmp_path)
    lines = records(tmp_path / "plain-loop")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert "incomplete" not in line
        assert line["tokens"] == 2 * 8 * 64
        assert 0 < line["grad_norm"] < 100
        assert 4 < line["loss"] < 7
        assert line["losses"]["aux"] > 1.9


def test_the_example_of_a_pipeline_writes_one_run_of_both_stages(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    printed = run_on_two_ranks(PIPELINE, fork_server, tmp_path)
    assert printed.splitlines()[-1] == f"next: moe-microscope {tmp_path / 'pipeline-loop'}"
    (run,) = records(tmp_path / "pipeline-loop", "run")
    assert run["model"]["layer_names"] == ["L0", "L1", "L2", "L3"]
    for line in records(tmp_path / "pipeline-loop"):
        assert {sum(row) for row in line["tokens_per_expert"]} == {2 * 16 * 64}
        assert all(0 < entropy <= math.log(8) for entropy in line["router"]["entropy"])
        assert line["loss"] > 0


def test_the_example_of_the_trainer_names_the_extra_that_installs_accelerate() -> None:
    project = tomllib.loads((EXAMPLES.parent / "pyproject.toml").read_text())["project"]
    assert "accelerate" in str(project["optional-dependencies"]["hf"])
    assert "pip install '.[hf]'    # with accelerate" in (EXAMPLES / "hf_trainer.py").read_text()
