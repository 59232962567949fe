"""Things that happen to a model, a probe or a loop while a probe watches: training continues, also
in a folder that has a log already, and from a checkpoint."""

import copy
import itertools
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.utils.data import DataLoader

from microscope_tui.commands.check.format_check import check_format, exit_code
from microscope_tui.probe import Adapter, attach
from tests.probe import layers
from tests.probe.layers import PAIRS, ROUTERS, TOP_K, Block, Model, records, sums, tokens, watched
from tests.probe.real_text import Pieces, small_mixtral


def collapsed(module: Any, args: Any, output: Any) -> Tensor:
    return torch.tensor([[0, 1]]).expand(len(output[1]), TOP_K)


COLLAPSED = {"layers.1.gate": Adapter(collapsed, layers.EXPERTS, TOP_K)}


def train(model: nn.Module, probe: Any, steps: int = 1) -> None:
    """Steps of a plain loop; each of them moves the first weight of the model."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        before = next(model.parameters()).detach().clone()
        model(tokens()).square().mean().backward()
        optimizer.step()
        probe.step(loss=1.0)
        optimizer.zero_grad()
        assert not torch.equal(before, next(model.parameters()).detach())


def test_an_accelerate_loop_with_accumulation_is_counted_per_optimizer_step(tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = small_mixtral()
    model, optimizer, loader = accelerator.prepare(
        model, torch.optim.AdamW(model.parameters(), lr=1e-4), DataLoader(Pieces(), batch_size=4)
    )
    seen: list[Tensor] = []
    for layer in accelerator.unwrap_model(model).model.layers:
        layer.mlp.gate.register_forward_hook(
            lambda m, args, out: seen.append(torch.bincount(out[2].flatten(), minlength=8))
        )
    with attach(model, tmp_path) as probe:
        for batch, _ in zip(loader, range(6), strict=False):
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                probe.step(loss=loss)
    lines = records(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line, passes in zip(lines, torch.stack(seen).view(3, 2, 2, 8), strict=True):
        assert line["tokens_per_expert"] == passes.sum(0).tolist()
        assert line["tokens"] == 2 * 4 * 32
        assert "incomplete" not in line


def test_a_folder_that_disappears_before_the_first_step_costs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with watched(tmp_path / "run") as (model, probe):
        shutil.rmtree(tmp_path / "run")
        (tmp_path / "run").write_text("a file in its place")
        train(model, probe, 3)
    (message,) = caplog.messages
    assert "training continues" in message


def test_a_model_that_is_moved_or_cast_in_place_stays_watched(tmp_path: Path) -> None:
    with watched(tmp_path) as (model, probe):
        train(model, probe)
        model.to(device="cpu", dtype=torch.float64)
        train(model, probe)
        model.load_state_dict(Model().state_dict(), assign=True)  # all weights are new tensors
        train(model, probe)
    assert sums(tmp_path) == [[PAIRS] * 2] * 3
    assert all(all(norm > 0 for norm in line["router"]["grad_norm"]) for line in records(tmp_path))


def test_training_a_copy_instead_is_reported_once(tmp_path: Path, caplog: Any) -> None:
    with watched(tmp_path) as (model, probe):
        train(model, probe)
        train(copy.deepcopy(model), probe, 3)
    (message,) = [one for one in caplog.messages if "no forward pass was counted" in one]
    assert "call the model that was given to attach" in message
    first, *rest = records(tmp_path)
    assert "incomplete" not in first
    for line in rest:
        assert line["incomplete"] == "no forward pass was counted"
        assert line["tokens_per_expert"] == [None, None]
        assert line["loss"] == 1.0


def test_a_model_in_evaluation_mode_is_told_with_what_to_call(tmp_path: Path, caplog: Any) -> None:
    with watched(tmp_path) as (model, probe):
        train(model.eval(), probe)
    (message,) = caplog.messages
    assert "step 1: no forward pass was counted; call model.train() before" in message


def test_a_layer_that_is_replaced_is_named_once(tmp_path: Path, caplog: Any) -> None:
    with watched(tmp_path) as (model, probe):
        train(model, probe)
        model.layers[2] = Block()
        train(model, probe, 2)
    (message,) = [one for one in caplog.messages if "not seen" in one]
    assert "step 2: L2 not seen; where layers were replaced after attach" in message
    lines = records(tmp_path)
    assert [line.get("incomplete") for line in lines] == [None] + ["not seen: L2"] * 2
    assert [line["tokens_per_expert"][1] is None for line in lines] == [False, True, True]


def test_a_router_outside_the_pass_of_the_model_is_reported(tmp_path: Path, caplog: Any) -> None:
    with watched(tmp_path) as (model, probe):
        model.layers[1](torch.randn(2, 12, 8, requires_grad=True))
        probe.step()
    assert "routers run outside the forward of the model" in caplog.text


def test_a_router_that_sees_some_tokens_is_not_counted(tmp_path: Path, caplog: Any) -> None:
    class Half(Model):
        def forward(self, input_ids: Tensor, attention_mask: Any = None, **more: Any) -> Tensor:
            return super().forward(input_ids[:, ::2])

    model = Half()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        for _ in range(2):
            model(tokens(), torch.ones(2, 12)).sum().backward()
            probe.step()
    (message,) = caplog.messages
    assert "L1 (layers.1.gate) saw 12 of 24 tokens" in message
    assert all(line["incomplete"] == "1 ranks did not count" for line in records(tmp_path))


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        (lambda *call: {}["ids"], "KeyError: 'ids'"),
        (lambda *call: call[2][0], "gate returned torch.float32[24, 2]: return"),
        (lambda *call: call[2][1][:, 0], "torch.int64[24]: return the ids of the chosen experts"),
        (lambda *call: call[2], "returned tuple: return the ids of the chosen experts, integers"),
    ],
)
def test_an_adapter_that_fails_costs_one_warning_and_no_training(
    broken: Any, why: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    with attach(model, tmp_path, routers={"layers.1.gate": Adapter(broken, 6, 2)}) as probe:
        train(model, probe, 3)
    (message,) = [one for one in caplog.messages if "stops counting" in one]
    assert why in message
    lines = [(line["incomplete"], line["tokens"]) for line in records(tmp_path)]
    assert lines == [("1 ranks did not count", None)] * 3  # the format has no zero tokens


@pytest.mark.parametrize(
    ("error", "lacking"),
    [
        (torch.cuda.OutOfMemoryError, "no forward pass was counted"),
        (KeyboardInterrupt, "not seen: L2"),
    ],
)
def test_a_pass_that_ends_with_an_exception_costs_no_later_one(
    error: type[BaseException], lacking: str, tmp_path: Path
) -> None:
    with watched(tmp_path) as (model, probe):
        handle = model.layers[2].register_forward_pre_hook(mock.Mock(side_effect=error))
        with pytest.raises(error):
            model(tokens(), torch.ones(2, 12))
        handle.remove()
        probe.step()
        train(model, probe)
    first, second = records(tmp_path)
    assert first["incomplete"] == lacking
    assert [sum(row) for row in second["tokens_per_expert"]] == [PAIRS] * 2
    assert "incomplete" not in second


@pytest.mark.parametrize(("saliency", "incomplete"), [(False, None), (True, "1 ranks did not")])
def test_a_batch_that_is_run_again_in_parts_counts_once(
    saliency: bool, incomplete: str | None, tmp_path: Path
) -> None:
    """With saliency the routers before the failure are counted already."""
    with watched(tmp_path, saliency=saliency) as (model, probe):
        handle = model.layers[2].register_forward_pre_hook(mock.Mock(side_effect=RuntimeError))
        with pytest.raises(RuntimeError):
            model(tokens())
        handle.remove()
        for half_BS in tokens().chunk(2):
            model(half_BS)
        probe.step()
        train(model, probe)
    first, second = records(tmp_path)
    assert (first.get("incomplete") or "None").startswith(str(incomplete))
    if not saliency:
        assert (first["tokens"], sums(tmp_path)[0]) == (tokens().numel(), [PAIRS] * 2)
    assert "incomplete" not in second


class Again(Model):
    """It runs a layer ``times`` in each pass, and takes its batch as one argument."""

    times = 1

    def forward(self, batch: Any, extra: int = 0) -> Tensor:  # type: ignore[override]
        hidden_BSD = self.embed(nn.functional.pad(batch["input_ids"], (extra, 0)))
        for _ in range(self.times):
            hidden_BSD = self.layers[1](hidden_BSD)
        return self.layers[2](hidden_BSD)


def test_passes_beyond_those_of_the_first_step_are_reported(tmp_path: Path, caplog: Any) -> None:
    model = Again()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        for model.times in (1, 3):
            model({"input_ids": tokens()})
            probe.step()
    lacking = "more passes through routers than in the first logged step"
    assert [line.get("incomplete") for line in records(tmp_path)] == [None, lacking]
    assert "layers run more often than in the first logged step" in caplog.text


def test_a_batch_in_one_argument_shows_its_padding(tmp_path: Path) -> None:
    mask_BS = torch.ones_like(tokens())
    mask_BS[:, 9:] = 0
    line = layers.one_step(Again(), tmp_path, {"input_ids": tokens(), "attention_mask": mask_BS})
    assert line["tokens"] == mask_BS.sum()


def test_tokens_that_the_model_adds_are_counted_where_nothing_is_padding(tmp_path: Path) -> None:
    line = layers.one_step(Again(), tmp_path, {"input_ids": tokens()}, extra=3)
    assert (line["tokens"], "incomplete" in line) == (tokens().numel() + 3 * len(tokens()), False)


def test_after_detach_nothing_is_logged(tmp_path: Path) -> None:
    with watched(tmp_path) as (model, probe):
        train(model, probe)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    train(model, probe, 2)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_steps_may_begin_at_zero_again(tmp_path: Path) -> None:
    for _ in range(2):
        with watched(tmp_path) as (model, probe):
            model(tokens())
            probe.step(step=0)
    assert exit_code(check_format(tmp_path / "metrics.jsonl")) == 0


def test_the_time_of_a_step_is_of_the_steps_that_passed(tmp_path: Path, monkeypatch: Any) -> None:
    clock = itertools.count(step=10.0)
    with watched(tmp_path, every=5, start_step=4) as (model, probe):
        monkeypatch.setattr("time.perf_counter", lambda: next(clock))
        probe.begin(4, False, None)
        for _ in range(7):
            model(tokens())
            probe.step()
    assert [line["step_time_s"] for line in records(tmp_path)] == [10.0 / 2, 10.0 / 5]


def test_an_exception_in_the_with_is_passed_on_and_ends_the_run_as_failed(tmp_path: Path) -> None:
    model = Model()

    def fail() -> None:
        with attach(model, tmp_path, routers=ROUTERS) as probe:
            train(model, probe)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert records(tmp_path, "event")[-1]["reason"] == "failed"
    attach(model, tmp_path, routers=ROUTERS).detach()  # nothing holds the folder


def test_numbers_may_be_infinite_and_what_is_not_a_number_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with watched(tmp_path) as (model, probe):
        for loss in (float("nan"), torch.tensor(float("inf")), None):
            model(tokens())
            own = {"mine": [0.5], "router": {"disagreement": [0.1, 0.2]}, "step_time_s": None}
            probe.step(loss=loss, losses=torch.ones(1), grad_norm=torch.tensor(1.5), **own)
    assert "mine is [0.5], not a number: left out" in "".join(caplog.messages)
    assert "losses is a Tensor and left out: pass a mapping" in caplog.text
    assert [line["router"]["disagreement"] for line in records(tmp_path)] == [[0.1, 0.2]] * 3
    assert [line["loss"] for line in records(tmp_path)] == ["NaN", "Infinity", None]
    assert [(line["grad_norm"], line.get("mine")) for line in records(tmp_path)] == [
        (1.5, None)
    ] * 3


def test_an_event_whose_values_are_no_mapping_is_written_without_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with watched(tmp_path) as (model, probe):
        for values in ([1.0], {"a": torch.tensor(1.0)}):
            probe.event("mine", values)  # type: ignore[arg-type]
            model(tokens())
            probe.step()
    events = [event for event in records(tmp_path, "event") if event["event"] == "mine"]
    assert [event["values"] for event in events] == [{}, {"a": 1.0}]
    assert "values is a list and left out: pass a mapping" in caplog.text


def test_events_before_the_first_logged_step_are_written_with_it(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS, every=3) as probe:
        values = {"loss": 1.0}
        probe.event("eval", values, 0)
        values["loss"] = 2.0  # the caller may use it again
        for _ in range(3):
            model(tokens())
            probe.step()
            probe.event("mine", values)
    events = [(event["event"], event["step"]) for event in records(tmp_path, "event")]
    assert events == [("eval", 0), ("mine", 1), ("mine", 2), ("mine", 3), ("end", 3)]
    assert records(tmp_path, "event")[0]["values"] == {"loss": 1.0}


@pytest.mark.parametrize(("loss", "kind"), [(1.0, {"loss_kind": "given"}), (None, {})])
def test_the_header_has_what_kind_of_loss_the_log_has(
    loss: float | None, kind: dict[str, str], tmp_path: Path
) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        model(tokens())
        probe.step(loss=loss)
    (head,) = records(tmp_path, "run")
    assert {key: head[key] for key in head if key == "loss_kind"} == kind


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of PEFT
def test_a_model_that_is_wrapped_after_attach_stays_watched(tmp_path: Path) -> None:
    model = small_mixtral()
    with attach(model, tmp_path) as probe:
        wrapped = get_peft_model(model, LoraConfig(target_modules=["q_proj"]))
        wrapped(input_ids=tokens(), labels=tokens()).loss.backward()
        probe.step()
    assert sums(tmp_path) == [[PAIRS] * 2]


def test_a_model_compiled_and_run_before_attach_is_reported(tmp_path: Path, caplog: Any) -> None:
    compiled = torch.compile(Model(), backend="eager")
    compiled(tokens()).sum().backward()
    with attach(compiled, tmp_path, routers=ROUTERS) as probe:
        compiled(tokens()).sum().backward()
        probe.step()
    assert "incomplete" in records(tmp_path)[0]
    assert "code compiled before attach, hides them" in caplog.text


def test_alerts_reach_the_callback_whose_exceptions_are_logged(tmp_path: Path, caplog: Any) -> None:
    seen: list[str] = []

    def on_alert(alert: Any) -> None:
        seen.append(alert.rule)
        raise ValueError("mine")

    with watched(tmp_path, routers=COLLAPSED, on_alert=on_alert) as (model, probe):
        train(model, probe, 60)
    assert "COLLAPSE" in seen
    assert "on_alert raised" in caplog.text
    assert len(records(tmp_path)) == 60


def trained(folder: Path, steps: int, **options: Any) -> dict[str, Any]:
    model = Model()
    with attach(model, folder, **({"routers": ROUTERS} | options)) as probe:
        train(model, probe, steps)
        state = probe.state_dict()
        assert records(folder)[-1]["step"] == state["step"]  # on the disk before the checkpoint
        return state


@pytest.mark.parametrize("start_step", [None, 3])
def test_a_log_continues_after_its_last_step_or_with_the_given_one(
    start_step: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained(tmp_path, 3)
    trained(tmp_path, 2, start_step=start_step)
    first = start_step or 4
    assert [run["resumed_at_step"] for run in records(tmp_path, "run")] == [None, first]
    assert [line["step"] for line in records(tmp_path)] == [1, 2, 3, first, first + 1]
    assert ("continuing with step 4" in caplog.text) == (start_step is None)


def test_a_log_of_other_routers_is_refused(tmp_path: Path) -> None:
    trained(tmp_path, 1)
    with pytest.raises(ValueError, match=r"has other routers \(2 routers: L1×6, L2×6\)"):
        trained(tmp_path, 1, routers={"layers.1.gate": layers.ADAPTER})


def test_state_carries_the_step_and_the_judgement(tmp_path: Path) -> None:
    state = trained(tmp_path / "first", 60, routers=COLLAPSED)
    assert state["step"] == 60
    with watched(tmp_path / "second", routers=COLLAPSED) as (model, probe):
        probe.load_state_dict(state)
        train(model, probe)
        assert "COLLAPSE" in probe.verdict()  # long before the end of a warm-up of its own
        with pytest.raises(RuntimeError, match="after steps were logged"):
            probe.load_state_dict(state)
    assert [line["step"] for line in records(tmp_path / "second")] == [61]
    assert records(tmp_path / "second", "run")[0]["resumed_at_step"] == 61
