"""How often a training step waits for the device: every read of a tensor by the host, counted.

On a CPU a read costs nothing, on a GPU it empties the queue. Where there is no GPU they are counted
as torch is asked for them.
"""

from types import ModuleType
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from moe_model import experts
from moe_model.training.batches import TrainingBatches

ROUTERS = 2
READS = {"tolist", "cpu", "numpy", "__array__"}
WAITING_OPERATORS = {
    "_local_scalar_dense", "nonzero", "bincount", "equal", "is_nonzero",
    "masked_select", "_unique2",
}  # fmt: skip


class HostReads(TorchFunctionMode):
    """What Python asks for directly: ``tolist`` of a CPU tensor is not an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if getattr(func, "__name__", "") in READS:
            self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Operators whose result the host needs, and copies between devices."""

    def __init__(self, reads: HostReads) -> None:
        super().__init__()
        self.reads = reads

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func.overloadpacket.__name__ in WAITING_OPERATORS:
            self.reads.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("way", "more", "expected"),
    [
        ("grouped", (), []),
        ("grouped", ("--capacity-factor=1.0", "--drop-policy=weight"), []),
        ("grouped", ("--mtp", "--grad-accum=2"), []),
        ("in turn", (), ["tolist"] * ROUTERS),
        ("grouped", ("--optimizer=muon",), ["_local_scalar_dense"]),
    ],
)
def test_a_step_reads_its_report_and_nothing_else(
    train: Any, trainer: ModuleType, monkeypatch: Any, way: str, more: Any, expected: Any
) -> None:
    """One read a step with grouped products, after the optimizer started; one more a router and
    pass without, and with Muon.

    Batches are drawn by the host from tensors of its own, which is not counted.
    """
    steps: list[list[str]] = []
    plain, draw, clear = (
        trainer.optimizer_step,
        TrainingBatches.draw,
        torch.optim.Optimizer.zero_grad,
    )
    counting: list[HostReads] = []

    def drawn(batches: TrainingBatches) -> Any:
        before = len(counting[-1].names)
        found = draw(batches)
        del counting[-1].names[before:]
        return found

    def counted(run: Any, step: int) -> dict[str, Any]:
        reads = HostReads()
        counting.append(reads)
        with reads, Operators(reads):
            record = plain(run, step)
        steps.append(reads.names)
        return record

    def cleared(optimizer: Any) -> None:
        counting[-1].names.append("updated")
        clear(optimizer)

    monkeypatch.setattr(torch.optim.Optimizer, "zero_grad", cleared)
    monkeypatch.setattr(experts, "_grouped_is_better", lambda *_: way == "grouped")
    monkeypatch.setattr(trainer, "optimizer_step", counted)
    monkeypatch.setattr(TrainingBatches, "draw", drawn)
    assert train("--run=r", "--steps=2", *more) == 0
    assert steps == [[*expected, "updated", "tolist"]] * 2


def test_deterministic_operations_are_asked_for(train: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        assert train("--run=r", "--steps=2", "--mtp", "--deterministic") == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
