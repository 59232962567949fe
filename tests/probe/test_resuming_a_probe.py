"""A probe in a folder that has a log already, and one that continues from a checkpoint."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microscope_tui.probe import Adapter, attach
from tests.probe.layers import ADAPTER, EXPERTS, ROUTERS, TOP_K, Model, records, tokens


def train(folder: Path, steps: int, **options: Any) -> dict[str, Any]:
    model = Model()
    with attach(model, folder, **({"routers": ROUTERS} | options)) as probe:
        for _ in range(steps):
            model(tokens())
            probe.step(loss=1.0)
        return probe.state_dict()


def test_without_a_start_step_the_log_continues_after_its_last_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tmp_path, 3)
    train(tmp_path, 2)
    assert [run["resumed_at_step"] for run in records(tmp_path, "run")] == [None, 4]
    assert [line["step"] for line in records(tmp_path)] == [1, 2, 3, 4, 5]
    assert "continuing with step 4" in caplog.text


def test_with_a_start_step_later_lines_are_superseded(tmp_path: Path) -> None:
    train(tmp_path, 5)
    train(tmp_path, 1, start_step=3)
    assert records(tmp_path, "run")[-1]["resumed_at_step"] == 3
    assert [line["step"] for line in records(tmp_path)] == [1, 2, 3, 4, 5, 3]


def test_a_log_of_other_routers_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 1)
    with pytest.raises(ValueError, match=r"has other routers \(2 routers: L1×6, L2×6\)"):
        train(tmp_path, 1, routers={"layers.1.gate": ADAPTER})


def test_state_carries_the_step_and_the_judgement(tmp_path: Path) -> None:
    def collapsed(module: Any, args: Any, output: Any) -> Tensor:
        return torch.tensor([[0, 1]]).expand(len(output[1]), 2)

    routers = {"layers.1.gate": Adapter(collapsed, EXPERTS, TOP_K)}
    state = train(tmp_path / "first", 160, routers=routers)
    assert state["step"] == 160
    model = Model()
    with attach(model, tmp_path / "second", routers=routers) as probe:
        probe.load_state_dict(state)
        model(tokens())
        probe.step()
        assert "COLLAPSE" in probe.verdict()  # long before a warm-up of its own
        with pytest.raises(RuntimeError, match="after steps were logged"):
            probe.load_state_dict(state)
    assert [line["step"] for line in records(tmp_path / "second")] == [161]
    assert records(tmp_path / "second", "run")[0]["resumed_at_step"] == 161
