"""How many threads compute, and how they wait: as the user has set it, else as the machine is."""

import os
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch

from moe_model import threads
from tests.forked import ROOT
from tests.training.story import Capsys, ReadLog, Train

ATTACHED = """
import os, sys, torch
before = dict(os.environ), torch.get_num_threads()
import train
from microscope_tui.probe import attach
from moe_model import LanguageModel, ModelConfig
model = LanguageModel(ModelConfig.preset("tiny", vocab_size=9, num_hidden_layers=2)).train()
model.init_weights(torch.Generator().manual_seed(0))
with attach(model, sys.argv[1]):
    model(torch.arange(512).view(2, 256) % 9).logits_BSV.square().mean().backward()
assert before == (dict(os.environ), 2)
print([p.grad.double().sum().item() for p in model.parameters() if p.grad is not None])
"""


@pytest.fixture(autouse=True)
def _nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", *threads._CHOSEN):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.mark.parametrize(
    ("setting", "idle", "policy"),
    [
        ("HOME=/", 1.9, None), ("HOME=/", 1.0, "PASSIVE"), ("OMP_NUM_THREADS=1", 0.0, None),
        ("GOMP_SPINCOUNT=9", 0.0, None), ("OMP_WAIT_POLICY=ACTIVE", 0.0, "ACTIVE"),
        ("RANK=0", 0.0, None),
    ],
)  # fmt: skip
def test_threads_sleep_on_a_busy_machine_unless_the_user_or_a_launcher_has_chosen(
    setting: str, idle: float, policy: str, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    seconds = count(0, idle * threads._LOOK_S)
    monkeypatch.setenv(*setting.split("="))
    monkeypatch.setattr(threads, "processors", lambda: 2)
    monkeypatch.setattr(threads, "_idle_s", lambda: next(seconds))
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "torch")
        threads.choose_waiting()
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    assert not any(capsys.readouterr()), "what a run prints begins with the training"


@pytest.mark.parametrize(
    ("group", "files", "most"),
    [
        ("0::/", {"cpu.max": "max 100000"}, 6),
        ("0::/a/b", {"a/b/cpu.max": "450000 100000", "a/cpu.max": "250000 100000"}, 3),
        ("1:cpu:/d", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 6),
        ("1:cpu:/d", {"cpu/d/cpu.cfs_quota_us": "5000", "cpu/d/cpu.cfs_period_us": "100000"}, 1),
    ],
)
def test_processors_follow_from_the_affinity_and_the_quotas_of_control_groups(
    group: str, files: dict[str, str], most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in {"self/cgroup": group, **files}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(threads, "_PROC", tmp_path)
    monkeypatch.setattr(threads, "_CGROUPS", tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    assert threads.processors() == most


def test_a_resumed_run_takes_the_threads_of_its_checkpoint_unless_the_user_has_set_others(
    train: Train, read_log: ReadLog, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = [2]  # not really: two threads are slow beside other tests
    monkeypatch.setattr(torch, "get_num_threads", lambda: number[-1])
    monkeypatch.setattr(torch, "set_num_threads", number.append)
    monkeypatch.setattr(threads, "processors", lambda: 2)
    for steps in (1, 2, 3):
        if steps == 3:
            assert "last bits" not in capsys.readouterr().err
            monkeypatch.setenv("OMP_NUM_THREADS", "1")
        assert train("--run=r", f"--steps={steps}", "--resume=auto") == 0
        number.append(1)
    assert "with 2 threads, this process has 1: the last bits" in capsys.readouterr().err
    heads = [record for record in read_log("r") if record["kind"] == "run"]
    assert [head["config"]["threads"] for head in heads] == [2, 2, 1]


def test_waiting_changes_no_bit_and_attach_changes_neither_environment_nor_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = set()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    for name, value in (("GOMP_SPINCOUNT", "1000"), ("OMP_WAIT_POLICY", "PASSIVE")):
        environment = {**os.environ, name: value}
        command = [sys.executable, "-c", ATTACHED, str(tmp_path / name)]
        found.add(subprocess.check_output(command, env=environment))
    assert len(found) == 1
