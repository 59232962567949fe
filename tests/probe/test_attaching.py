"""What a probe counts, and what ``attach`` and ``detach`` do to a model and a folder."""

import copy
import gc
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from benchmarks.families.tiny import build
from microscope_tui.probe import Adapter, attach
from tests.probe import layers
from tests.probe.layers import PAIRS, ROUTERS, TOP_K, Model, records, sums, tokens, watched
from tests.problems import problems_in


def hooks(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def test_layers_are_named_by_their_true_depth(tmp_path: Path) -> None:
    with watched(tmp_path) as (model, probe):
        model(tokens()).sum().backward()
        probe.step(loss=1.5, learning_rate=0.1)
    (run,), (line,) = records(tmp_path, "run"), records(tmp_path)
    assert run["model"]["layers"] == [1, 2]
    assert run["model"]["layer_names"] == ["L1", "L2"]
    assert (line["loss"], line["learning_rate"]) == (1.5, 0.1)
    assert sums(tmp_path) == [[PAIRS, PAIRS]]
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    assert list(problems_in(enumerate(lines, 1))) == []


def test_passes_without_gradients_or_in_evaluation_do_not_count(tmp_path: Path) -> None:
    with watched(tmp_path) as (model, probe):
        model(tokens())
        with torch.no_grad():
            model(tokens())
        model.eval()(tokens())
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
        model.train()(tokens())
        probe.step()
    assert sums(tmp_path) == [[2 * PAIRS, 2 * PAIRS]]
    assert records(tmp_path, "run")[0]["profile"] == "eval"


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_model_checkpointed_as_a_whole_counts_once(reentrant: bool, tmp_path: Path) -> None:
    model, weights = Model(), torch.zeros(1, requires_grad=True)

    def run(ids: Tensor, weights: Tensor) -> Tensor:
        return model(ids) + weights

    with attach(model, tmp_path, routers=ROUTERS) as probe:
        checkpoint(run, tokens(), weights, use_reentrant=reentrant).sum().backward()
        probe.step()
    assert sums(tmp_path) == [[PAIRS, PAIRS]]


def test_every_third_step_is_logged_and_describes_itself_alone(tmp_path: Path) -> None:
    with watched(tmp_path, every=3) as (model, probe):
        for _ in range(7):
            model(tokens())
            probe.step()
    assert [line["step"] for line in records(tmp_path)] == [3, 6]
    assert sums(tmp_path) == [[PAIRS] * 2] * 2


def square(real_BS: Tensor) -> Tensor:
    causal = torch.ones(12, 12, dtype=torch.bool).tril()
    return (causal & real_BS[:, None, :])[:, None]


MASKS: dict[str, Any] = {
    "numbers": lambda real: real.long(),
    "bool": lambda real: real,
    "numbered sequences": lambda real: real.long() * 3,
    "cache": lambda real: torch.nn.functional.pad(real, (5, 0), value=True),
    "one per kind": lambda real: {"full_attention": square(real)},
    "square bool": square,
    "square added": lambda real: (~square(real)).float() * -1e9,
}


@pytest.mark.parametrize("kind", MASKS)
def test_padding_is_left_out_in_every_form_of_mask(kind: str, tmp_path: Path) -> None:
    real = torch.ones(2, 12, dtype=torch.bool)
    real[0, :5] = real[1, 9:] = False
    assert layers.one_step(Model(), tmp_path, tokens(), MASKS[kind](real))["tokens"] == 16
    assert sums(tmp_path) == [[16 * TOP_K] * 2]


POSITIONS = torch.tensor([[0, 1, 2, 0, 1, 0, 0, 0], [0, 1, 2, 3, 4, 5, 6, 0]])


@pytest.mark.parametrize(
    ("shape", "inputs", "real"),
    [
        ((1, 24), {"cu_seq_lens_q": torch.tensor([0, 7, 19])}, 19),
        # Filled up with position zero; a single zero is a sequence of one token.
        ((2, 8), {"position_ids": POSITIONS}, 5 + 8),
    ],
)
def test_a_packed_batch_ends_with_its_last_sequence(
    shape: tuple[int, int], inputs: dict[str, Tensor], real: int, tmp_path: Path
) -> None:
    assert layers.one_step(Model(), tmp_path, tokens(*shape), **inputs)["tokens"] == real


def test_experts_that_take_their_tokens_in_pieces_are_counted_once(tmp_path: Path) -> None:
    class InPieces(Model):
        def forward(self, input_ids: Tensor, attention_mask: Any = None, **more: Any) -> Tensor:
            x_BSD = self.embed(input_ids)
            for layer in self.layers:
                x_BSD = torch.cat([layer(half) for half in x_BSD.split(1)])
            return x_BSD

    real = torch.ones(2, 12, dtype=torch.long)
    real[1, 4:] = 0
    layers.one_step(InPieces(), tmp_path, tokens(), real)
    assert records(tmp_path, "run")[0]["model"]["layer_names"] == ["L1", "L2"]
    assert sums(tmp_path) == [[16 * TOP_K] * 2]


def test_ids_that_are_no_expert_are_unrouted_and_never_an_error(tmp_path: Path) -> None:
    def some(module: Any, args: Any, output: Any) -> Tensor:
        ids_TK = output[1].clone()
        ids_TK[0, 0], ids_TK[1, 1] = -1, layers.EXPERTS + 7
        return ids_TK

    model = Model()
    with attach(
        model, tmp_path, routers={"layers.1.gate": Adapter(some, layers.EXPERTS, TOP_K)}
    ) as probe:
        model(tokens())
        probe.step()
    assert records(tmp_path)[0]["router"]["unrouted"] == [2]
    assert sums(tmp_path) == [[PAIRS - 2]]


def test_a_pass_without_tokens_counts_nothing_and_ends_nothing(tmp_path: Path) -> None:
    with watched(tmp_path) as (model, probe):
        for batch in (tokens(), tokens()[:0], tokens()):
            model(batch)
        probe.step()
        assert not probe.hooks.problem
    assert sums(tmp_path) == [[2 * PAIRS] * 2]


def test_the_probe_changes_neither_outputs_nor_gradients_nor_the_model(tmp_path: Path) -> None:
    def gradients(model: Model) -> list[Tensor]:
        model(tokens()).square().mean().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    plain, watched = Model(), Model()
    with attach(watched, tmp_path, routers=ROUTERS, saliency=True):
        assert hooks(watched) > 0
        assert watched.state_dict().keys() == plain.state_dict().keys()
        for a, b in zip(gradients(plain), gradients(watched), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    assert hooks(watched) == 0
    assert vars(watched).keys() == vars(plain).keys()


def test_a_copy_of_the_model_is_not_watched(tmp_path: Path) -> None:
    with watched(tmp_path) as (model, probe):
        for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            other(tokens())
        model(tokens())
        probe.step()
    assert sums(tmp_path) == [[PAIRS] * 2]


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
    attach(model, tmp_path / "c", routers=ROUTERS)  # forgotten at once
    gc.collect()
    assert not model._forward_hooks
    attach(model, tmp_path / "c", routers=ROUTERS).detach()


def test_a_model_without_moe_layers_is_refused_with_its_kinds_of_modules(tmp_path: Path) -> None:
    looked_at = r"no MoE layer found in Sequential.*Linear \(0\).*routers="
    with pytest.raises(ValueError, match=looked_at):
        attach(nn.Sequential(nn.Linear(2, 2)), tmp_path)
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"routers": {"layers.9.gate": layers.ADAPTER}}, ValueError, r"'layers\.9\.gate', which"),
        ({"routers": {"layers.1.gate": print}}, TypeError, "pass Adapter"),
        ({"mode": "training"}, ValueError, "choose 'train' or 'eval'"),
        ({"every": 0}, ValueError, "every is 0"),
        ({"start_step": 0}, ValueError, "start_step is 0"),
    ],
)
def test_mistakes_in_the_call_raise(changes: Any, error: Any, message: str, tmp_path: Path) -> None:
    model = Model()
    with pytest.raises(error, match=message):
        attach(model, tmp_path, **({"routers": ROUTERS} | changes))
    assert hooks(model) == 0


def test_an_adapter_without_a_function_or_experts_raises() -> None:
    with pytest.raises(TypeError, match="pass a function"):
        Adapter(None, 4, 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        Adapter(print, 0, 2)


def test_a_folder_that_cannot_be_written_raises_in_attach(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError):  # noqa: PT011  # whichever the system gives
        attach(Model(), tmp_path / "file" / "run", routers=ROUTERS)


def test_a_transformers_before_5_is_refused_in_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    model = build("mixtral")  # its first use loads the package anew
    monkeypatch.setattr("transformers.__version__", "4.57.1")
    with pytest.raises(ValueError, match=r"^transformers 4\.57\.1 is too old .*: install 5\.0$"):
        attach(model, tmp_path)
