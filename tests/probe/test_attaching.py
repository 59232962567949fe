"""What a probe counts, when, and what it does with mistakes."""

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from microscope_tui.probe import Adapter, attach
from tests.probe.layers import ADAPTER, EXPERTS, ROUTERS, TOP_K, Model, records, sums, tokens
from tests.problems import problems_in

PAIRS = 2 * 12 * TOP_K


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def test_layers_are_named_by_their_true_depth(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        model(tokens()).sum().backward()
        probe.step(loss=1.5, learning_rate=0.1)
    (run,), (line,) = records(tmp_path, "run"), records(tmp_path)
    assert run["model"]["layers"] == [1, 2]
    assert run["model"]["layer_names"] == ["L1", "L2"]
    assert line["loss"] == 1.5
    assert line["learning_rate"] == 0.1
    assert sums(tmp_path) == [[PAIRS, PAIRS]]
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert list(problems_in(enumerate(lines, 1))) == []


def test_passes_without_gradients_or_in_evaluation_do_not_count(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        model(tokens())
        with torch.no_grad():
            model(tokens())
        model.eval()
        model(tokens())
        model.train()
        probe.step()
    assert sums(tmp_path) == [[PAIRS, PAIRS]]


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_eval_mode_counts_passes_in_evaluation(context: Any, tmp_path: Path) -> None:
    model = Model().eval()
    with attach(model, tmp_path, routers=ROUTERS, mode="eval") as probe:
        for _ in range(2):
            with context():
                model(tokens())
        probe.step()
    assert sums(tmp_path) == [[2 * PAIRS, 2 * PAIRS]]
    assert records(tmp_path, "run")[0]["profile"] == "eval"


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_model_that_is_checkpointed_as_a_whole_counts_once(
    reentrant: bool, tmp_path: Path
) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        weights = torch.zeros(1, requires_grad=True)

        def run(ids: Tensor, weights: Tensor) -> Tensor:
            return model(ids) + weights

        output = checkpoint(run, tokens(), weights, use_reentrant=reentrant)
        output.sum().backward()
        probe.step()
    assert sums(tmp_path) == [[PAIRS, PAIRS]]


def test_micro_batches_are_summed_and_steps_are_not(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        for micro_batches in (1, 3, 1):
            for _ in range(micro_batches):
                model(tokens())
            probe.step()
    assert sums(tmp_path) == [[PAIRS] * 2, [3 * PAIRS] * 2, [PAIRS] * 2]


def test_every_third_step_is_logged_and_describes_itself_alone(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS, every=3) as probe:
        for _ in range(7):
            model(tokens())
            probe.step()
    assert [line["step"] for line in records(tmp_path)] == [3, 6]
    assert sums(tmp_path) == [[PAIRS] * 2] * 2


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(lambda real: real.long(), id="numbers"),
        pytest.param(lambda real: real, id="bool"),
        pytest.param(lambda real: real.long() * 3, id="numbered sequences"),
        pytest.param(lambda real: torch.nn.functional.pad(real, (5, 0), value=True), id="cache"),
        pytest.param(lambda real: {"full_attention": _square(real)}, id="one per kind"),
        pytest.param(lambda real: _square(real), id="square bool"),
        pytest.param(lambda real: (~_square(real)).float() * -1e9, id="square added"),
    ],
)
def test_padding_is_left_out_whatever_the_mask_looks_like(mask: Any, tmp_path: Path) -> None:
    model, real = Model(), torch.ones(2, 12, dtype=torch.bool)
    real[0, :5] = real[1, 9:] = False
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        model(tokens(), mask(real))
        probe.step()
    assert records(tmp_path)[0]["tokens"] == 16
    assert sums(tmp_path) == [[16 * TOP_K] * 2]


def _square(real_BS: Tensor) -> Tensor:
    causal = torch.ones(12, 12, dtype=torch.bool).tril()
    return (causal & real_BS[:, None, :])[:, None]


def test_a_packed_batch_ends_where_its_cumulative_lengths_end(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        model(tokens(1, 24), cu_seq_lens_q=torch.tensor([0, 7, 19]))
        probe.step()
    assert records(tmp_path)[0]["tokens"] == 19


def test_a_packed_batch_is_filled_up_with_position_zero(tmp_path: Path) -> None:
    model = Model()
    positions = torch.tensor([[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 0]])
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        model(tokens(2, 8), position_ids=positions)
        probe.step()
    assert records(tmp_path)[0]["tokens"] == 5 + 8  # a single zero is a sequence of one token


def test_experts_that_take_their_tokens_in_pieces_are_counted_once(tmp_path: Path) -> None:
    class InPieces(Model):
        def forward(self, input_ids: Tensor, attention_mask: Any = None, **more: Any) -> Tensor:
            x_BSD = self.embed(input_ids)
            for layer in self.layers:
                x_BSD = torch.cat([layer(half) for half in x_BSD.split(1)])
            return x_BSD

    model, real = InPieces(), torch.ones(2, 12, dtype=torch.long)
    real[1, 4:] = 0
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        model(tokens(), real)
        probe.step()
    assert records(tmp_path, "run")[0]["model"]["layer_names"] == ["L1", "L2"]
    assert sums(tmp_path) == [[16 * TOP_K] * 2]


def test_a_layer_that_runs_twice_has_two_rows(tmp_path: Path) -> None:
    class Looped(Model):
        def forward(self, input_ids: Tensor, attention_mask: Any = None, **more: Any) -> Tensor:
            x_BSD = self.layers[0](self.embed(input_ids))
            for layer in (self.layers[1], self.layers[2], self.layers[2]):
                x_BSD = layer(x_BSD)
            return x_BSD

    model = Looped()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        model(tokens())
        probe.step()
    assert records(tmp_path, "run")[0]["model"]["layer_names"] == ["L1", "L2#1", "L2#2"]
    assert sums(tmp_path) == [[PAIRS] * 3]


def test_ids_that_are_no_expert_are_unrouted_and_never_an_error(tmp_path: Path) -> None:
    def some(module: Any, args: Any, output: Any) -> Tensor:
        ids_TK = output[1].clone()
        ids_TK[0, 0], ids_TK[1, 1] = -1, EXPERTS + 7
        return ids_TK

    model = Model()
    with attach(model, tmp_path, routers={"layers.1.gate": Adapter(some, EXPERTS, TOP_K)}) as probe:
        model(tokens())
        probe.step()
    assert records(tmp_path)[0]["router"]["unrouted"] == [2]
    assert sums(tmp_path) == [[PAIRS - 2]]


def test_detaching_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = Model()
    before, state = hooks(model), {k: v.clone() for k, v in model.state_dict().items()}
    probe = attach(model, tmp_path, routers=ROUTERS)
    assert hooks(model) > before
    assert model.state_dict().keys() == state.keys()
    probe.detach()
    assert hooks(model) == before
    assert vars(model).keys() == vars(Model()).keys()


def test_the_probe_changes_neither_outputs_nor_gradients(tmp_path: Path) -> None:
    def gradients(model: Model) -> list[Tensor]:
        model(tokens()).square().mean().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain, watched = Model(), Model()
    expected = gradients(plain)
    with attach(watched, tmp_path, routers=ROUTERS, saliency=True):
        for a, b in zip(expected, gradients(watched), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_copy_of_the_model_is_not_watched(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            other(tokens())
        model(tokens())
        probe.step()
    assert sums(tmp_path) == [[PAIRS] * 2]


def test_a_model_without_moe_layers_says_what_was_looked_at(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"no MoE layer found in Sequential.*Linear \(0\).*routers="
    ):
        attach(nn.Sequential(nn.Linear(2, 2)), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"routers": {"layers.9.gate": ADAPTER}}, r"'layers\.9\.gate', which the model does not"),
        ({"mode": "training"}, "choose 'train' or 'eval'"),
        ({"every": 0}, "every is 0"),
        ({"start_step": 0}, "start_step is 0"),
    ],
)
def test_mistakes_in_the_call_raise(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = Model()
    with pytest.raises(ValueError, match=message):
        attach(model, tmp_path, **({"routers": ROUTERS} | changes))
    assert hooks(model) == 0


def test_an_adapter_that_is_none_raises(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="pass a function"):
        Adapter(None, 4, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="pass Adapter"):
        attach(Model(), tmp_path, routers={"layers.1.gate": lambda: 0})  # type: ignore[dict-item]


def test_an_adapter_that_fails_costs_one_warning_and_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(module: Any, args: Any, output: Any) -> Tensor:
        raise RuntimeError("not like this")

    model = Model()
    with attach(model, tmp_path, routers={"layers.1.gate": Adapter(broken, 6, 2)}) as probe:
        for _ in range(3):
            model(tokens()).sum().backward()
            probe.step(loss=1.0)
    failed = [r for r in caplog.records if "stops counting" in r.message]
    assert len(failed) == 1
    assert all(line["incomplete"] == "1 ranks did not count" for line in records(tmp_path))


def test_a_step_without_a_forward_pass_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        model(tokens())
        probe.step()
        probe.step(loss=2.0)
    line = records(tmp_path)[1]
    assert line["incomplete"] == "no forward pass was counted"
    assert line["tokens_per_expert"] == [None, None]
    assert line["loss"] == 2.0
    assert "no forward pass was counted" in caplog.text


def test_a_loss_that_is_not_finite_is_logged_as_it_is(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        for loss in (float("nan"), torch.tensor(float("inf")), None):
            model(tokens())
            probe.step(loss=loss, mine="no number", grad_norm=torch.tensor(1.5))
    assert [line["loss"] for line in records(tmp_path)] == ["NaN", "Infinity", None]
    assert [line["grad_norm"] for line in records(tmp_path)] == [1.5] * 3


def test_after_a_pass_that_ctrl_c_ended_the_next_step_counts(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:

        def interrupt(module: nn.Module, args: Any) -> None:
            raise KeyboardInterrupt

        handle = model.layers[2].register_forward_pre_hook(interrupt)
        with pytest.raises(KeyboardInterrupt):
            model(tokens())
        handle.remove()
        probe.step()
        model(tokens())
        probe.step()
    assert [sum(row) for row in records(tmp_path)[-1]["tokens_per_expert"]] == [PAIRS, PAIRS]


def test_a_pass_without_tokens_counts_nothing_and_ends_nothing(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        for batch in (tokens(), tokens()[:0], tokens()):
            model(batch)
        probe.step()
        assert not probe.hooks.problem
    assert sums(tmp_path) == [[2 * PAIRS] * 2]


def test_an_exception_inside_the_with_is_passed_on_and_ends_the_run_as_failed(
    tmp_path: Path,
) -> None:
    model = Model()

    def train() -> None:
        with attach(model, tmp_path, routers=ROUTERS) as probe:
            model(tokens())
            probe.step()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train()
    assert records(tmp_path, "event")[-1]["reason"] == "failed"
    assert hooks(model) == 0


def test_two_probes_share_a_model_and_not_a_folder(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path / "a", routers=ROUTERS) as one:
        with pytest.raises(ValueError, match="another probe"):
            attach(model, tmp_path / "a", routers=ROUTERS)
        with attach(model, tmp_path / "b", routers=ROUTERS) as two:
            model(tokens())
            one.step()
            two.step()
    assert sums(tmp_path / "a") == sums(tmp_path / "b") == [[PAIRS] * 2]


def test_a_model_may_be_cast_and_compiled_after_attach(tmp_path: Path) -> None:
    model = Model()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        model(tokens())
        model.bfloat16()
        probe.step()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for _ in range(2):
            compiled(tokens()).float().sum().backward()
            probe.step()
    assert sums(tmp_path) == [[PAIRS] * 2] * 3


def test_a_model_compiled_and_run_before_attach_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    compiled = torch.compile(Model(), backend="aot_eager")
    compiled(tokens()).sum().backward()
    with attach(compiled, tmp_path, routers=ROUTERS) as probe:
        compiled(tokens()).sum().backward()
        probe.step()
    assert "incomplete" in records(tmp_path)[0]
    assert "code compiled before attach, hides them" in caplog.text


def test_a_folder_that_cannot_be_written_raises_in_attach(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):  # noqa: PT011  # whichever the system gives
        attach(Model(), tmp_path / "file" / "run", routers=ROUTERS)


def test_alerts_reach_the_callback_whose_exceptions_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []

    def on_alert(alert: Any) -> None:
        seen.append(alert.rule)
        raise ValueError("mine")

    def collapsed(module: Any, args: Any, output: Any) -> Tensor:
        return torch.tensor([[0, 1]]).expand(len(output[1]), 2)

    model, routers = Model(), {"layers.1.gate": Adapter(collapsed, EXPERTS, TOP_K)}
    logging.getLogger("moe_microscope").setLevel(logging.INFO)
    with attach(model, tmp_path, routers=routers, on_alert=on_alert) as probe:
        for _ in range(160):
            model(tokens())
            probe.step(loss=1.0)
    assert "COLLAPSE" in seen
    assert "on_alert raised" in caplog.text
    assert len(records(tmp_path)) == 160
