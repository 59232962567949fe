"""Things that happen to a model, a disk or a loop while a probe watches: training continues."""

import copy
import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader

from microscope_tui.probe import attach
from tests.probe.layers import ROUTERS, TOP_K, Block, Model, records, sums, tokens
from tests.probe.real_text import Pieces, small_mixtral

PAIRS = 2 * 12 * TOP_K


def train(model: nn.Module, probe: Any, steps: int = 1) -> list[bool]:
    """Steps of a plain loop; whether each of them moved the first weight of the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    moved = []
    for _ in range(steps):
        before = next(model.parameters()).detach().clone()
        model(tokens()).square().mean().backward()
        optimizer.step()
        probe.step(loss=1.0)
        optimizer.zero_grad()
        moved.append(not torch.equal(before, next(model.parameters()).detach()))
    return moved


def test_the_loop_of_accelerate_with_accumulation_is_counted_per_optimizer_step(
    tmp_path: Path,
) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = small_mixtral()
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1e-4), DataLoader(Pieces(), batch_size=4)
    )
    seen: list[list[int]] = []
    for layer in accelerator.unwrap_model(model).model.layers:
        layer.mlp.gate.register_forward_hook(
            lambda m, args, out: seen.append(torch.bincount(out[2].flatten(), minlength=8).tolist())
        )
    with attach(model, tmp_path) as probe:
        for number, batch in enumerate(loader):
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                probe.step(loss=loss)
            if number == 5:
                break
    lines = records(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        first, second = [seen.pop(0) for _ in range(2)], [seen.pop(0) for _ in range(2)]
        both = [
            [a + b for a, b in zip(x, y, strict=True)] for x, y in zip(first, second, strict=True)
        ]
        assert line["tokens_per_expert"] == both
        assert line["tokens"] == 2 * 4 * 32
        assert "incomplete" not in line


def test_a_full_disk_costs_lines_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        train(model, probe, 2)
        probe.state_dict()  # waits until both lines are on the disk
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            patch.setattr("microscope_tui.runlog.writer.RETRY_S", 0.0)
            assert train(model, probe, 3) == [True] * 3
            probe.state_dict()
        assert train(model, probe) == [True]
    said = [message for message in caplog.messages if "No space left" in message]
    assert len(said) == 1
    assert str(tmp_path / "metrics.jsonl") in said[0]
    assert [line["step"] for line in records(tmp_path)] == [1, 2, 6]
    assert sums(tmp_path) == [[PAIRS] * 2] * 3


def test_a_model_that_is_moved_or_cast_in_place_stays_watched(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        train(model, probe)
        model.to(device="cpu", dtype=torch.float64)
        assert train(model, probe) == [True]
        model.load_state_dict(Model().state_dict(), assign=True)  # all weights are new tensors
        assert train(model, probe) == [True]
    assert sums(tmp_path) == [[PAIRS] * 2] * 3
    assert all(all(norm > 0 for norm in line["router"]["grad_norm"]) for line in records(tmp_path))


def test_training_a_copy_instead_is_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        train(model, probe)
        assert train(copy.deepcopy(model), probe, 3) == [True] * 3
    said = [message for message in caplog.messages if "no forward pass was counted" in message]
    assert len(said) == 1
    assert "call the model that was given to attach" in said[0]
    assert "or is a copy" in said[0]
    assert ["incomplete" in line for line in records(tmp_path)] == [False, True, True, True]


def test_a_layer_that_is_replaced_is_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        train(model, probe)
        model.layers[2] = Block()
        assert train(model, probe, 2) == [True] * 2
    (said,) = [message for message in caplog.messages if "not seen" in message]
    assert "step 2: L2 not seen; where layers were replaced after attach" in said
    assert [line.get("incomplete") for line in records(tmp_path)] == [None] + ["not seen: L2"] * 2
    assert [line["tokens_per_expert"][1] is None for line in records(tmp_path)] == [
        False, True, True,
    ]  # fmt: skip


def test_a_router_that_sees_a_part_of_the_tokens_is_not_guessed_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Half(Model):
        def forward(self, input_ids: Tensor, attention_mask: Any = None, **more: Any) -> Tensor:
            return super().forward(input_ids[:, ::2])

    model = Half()
    with attach(model, tmp_path, routers=ROUTERS) as probe, caplog.at_level(logging.WARNING):
        for _ in range(2):
            model(tokens(), torch.ones(2, 12)).sum().backward()
            probe.step()
    (said,) = caplog.messages
    assert "L1 (layers.1.gate) saw 12 of 24 tokens" in said
    assert all(line["incomplete"] == "1 ranks did not count" for line in records(tmp_path))


def test_a_pass_that_ends_with_an_exception_costs_no_later_one(tmp_path: Path) -> None:
    model = Model()

    def out_of_memory(module: Any, args: Any) -> None:
        raise torch.cuda.OutOfMemoryError("made to fail")

    with attach(model, tmp_path, routers=ROUTERS) as probe:
        handle = model.layers[2].register_forward_pre_hook(out_of_memory)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            model(tokens(), torch.ones(2, 12))
        handle.remove()
        probe.step()
        train(model, probe)
    first, second = records(tmp_path)
    assert first["incomplete"] == "not seen: L2"
    assert [sum(row) for row in second["tokens_per_expert"]] == [PAIRS] * 2
    assert "incomplete" not in second


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT
def test_a_model_that_is_wrapped_after_attach_stays_watched(tmp_path: Path) -> None:
    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **more: Any) -> Any:
            return self.inner(*args, **more)

    model = small_mixtral()
    with attach(model, tmp_path) as probe:
        with_adapter = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
        Wrapped(with_adapter)(input_ids=tokens(), labels=tokens()).loss.backward()
        probe.step()
    assert sums(tmp_path) == [[PAIRS] * 2]


def test_a_transformers_before_5_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.__version__", "4.57.1")
    with pytest.raises(ValueError, match=r"^transformers 4\.57\.1 is too old .*: install 5\.0$"):
        attach(small_mixtral(), tmp_path)
