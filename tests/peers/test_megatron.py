"""The probe on Megatron-Core's own GPT: counts against a recomputation and its own counters."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from microscope_tui.probe import attach
from tests.peers.alone import process_group
from tests.probe.layers import records

pytest.importorskip("megatron.core.transformer.moe.router")
pytestmark = pytest.mark.filterwarnings("default")  # of the framework, not of the probe
EXPERTS, K, BATCH, LENGTH = 8, 2, 2, 12


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Makes a GPT of three layers, the first of them dense. Megatron-Core wants a GPU in a few
    places that a CPU can do as well."""
    from megatron.core import parallel_state
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.tensor_parallel import random as megatron_random
    from megatron.core.transformer.moe import moe_utils
    from megatron.core.transformer.transformer_config import TransformerConfig

    monkeypatch.setattr(torch.cuda, "current_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(moe_utils, "te_general_gemm", None, raising=False)  # misses an else
    monkeypatch.setattr(megatron_random, "_CUDA_RNG_STATE_TRACKER", None)
    monkeypatch.setattr(megatron_random, "_CUDA_RNG_STATE_TRACKER_INITIALIZED", False)

    def build(capacity: dict[str, Any] | None = None, **changes: Any) -> Any:
        settings = {
            "num_layers": 3, "hidden_size": 16, "num_attention_heads": 2, "add_bias_linear": False,
            "num_moe_experts": EXPERTS, "moe_router_topk": K, "moe_layer_freq": [0, 1, 1],
            "moe_token_dispatcher_type": "allgather", "use_cpu_initialization": True,
            "attention_dropout": 0.0, "hidden_dropout": 0.0, "moe_aux_loss_coeff": 0.01,
        }  # fmt: skip
        config = TransformerConfig(**(settings | changes))
        for name, value in (capacity or {}).items():
            setattr(config, name, value)  # the dispatcher that asks for it needs a CUDA stream
        torch.manual_seed(0)
        spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False)
        model = GPTModel(config, spec, vocab_size=64, max_sequence_length=LENGTH)
        for router in routers(model):
            torch.nn.init.normal_(router.weight)
        return model.train()

    with process_group(tmp_path), torch.compiler.set_stance("force_eager"):
        parallel_state.initialize_model_parallel()
        megatron_random.initialize_rng_tracker(inference_rng_tracker=True)
        yield build
        parallel_state.destroy_model_parallel()


def routers(model: Any) -> list[Any]:
    return [layer.mlp.router for layer in model.decoder.layers[1:]]


def step(model: Any, folder: Path, **given: Any) -> tuple[dict[str, Any], list[Any], list[Any]]:
    """The line of one step, and what both routers were given and returned."""
    inputs: list[Tensor] = []
    outputs: list[Any] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        inputs.append(args[0].detach())
        outputs.append(output)

    for router in routers(model):
        router.register_forward_hook(keep)
    ids_BS = torch.randint(64, (BATCH, LENGTH))
    positions_BS = torch.arange(LENGTH).expand(BATCH, LENGTH)
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)  # true: not to be seen
    with attach(model, folder / "run") as probe:
        loss_BS = model(ids_BS, positions_BS, mask, labels=ids_BS, **given)
        loss_BS.mean().backward()
        probe.step(loss=loss_BS.mean())
    (line,) = records(folder / "run")
    return line, inputs, outputs


def logits(router: Any, input_SBD: Tensor) -> Tensor:
    return input_SBD.double().flatten(0, 1) @ router.weight.detach().double().T


def counted(ids_TK: Tensor) -> list[int]:
    return torch.bincount(ids_TK.flatten(), minlength=EXPERTS).tolist()


def test_a_gpt_is_counted_as_its_logits_choose(built: Any, tmp_path: Path) -> None:
    model = built()
    line, inputs, _ = step(model, tmp_path)
    (run,) = records(tmp_path / "run", "run")
    assert run["model"]["layer_names"] == ["L1", "L2"]
    assert run["model"]["score_function"] == "softmax"
    assert (run["balance"]["method"], run["balance"]["aux_weight"]) == ("aux", 0.01)
    assert line["tokens"] == BATCH * LENGTH
    for row, router in enumerate(routers(model)):
        logits_TE = logits(router, inputs[row])
        assert line["tokens_per_expert"][row] == counted(logits_TE.topk(K).indices)
        entropy = torch.special.entr(logits_TE.softmax(-1)).sum(-1).mean()
        assert line["router"]["entropy"][row] == pytest.approx(float(entropy), rel=1e-4)
        grad_norm = float(router.weight.grad.norm())
        assert line["router"]["grad_norm"][row] == pytest.approx(grad_norm, rel=1e-4)


def test_counts_are_those_of_the_counter_that_moves_its_bias(built: Any, tmp_path: Path) -> None:
    model = built(
        moe_router_score_function="sigmoid", moe_router_enable_expert_bias=True,
        moe_router_load_balancing_type="none", moe_router_num_groups=4, moe_router_group_topk=2,
    )  # fmt: skip
    for router in routers(model):
        router.expert_bias.normal_(std=0.3)
    line, _, _ = step(model, tmp_path)
    for row, router in enumerate(routers(model)):
        assert line["tokens_per_expert"][row] == router.local_tokens_per_expert.tolist()
        bias = router.expert_bias.tolist()
        assert line["expert_bias"][row] == pytest.approx(bias, rel=1e-3)
    balance = records(tmp_path / "run", "run")[0]["balance"]
    assert (balance["method"], balance["update"]) == ("bias", "sign")
    assert balance["bias_update_rate"] == model.config.moe_router_bias_update_rate
    assert "margin" not in line["router"]  # groups: the best left out may not have been eligible


def test_padding_counts_for_no_expert(built: Any, tmp_path: Path) -> None:
    model = built(moe_router_load_balancing_type="none")
    pad_BS = torch.zeros(BATCH, LENGTH, dtype=torch.bool)
    pad_BS[0, 7:] = True
    line, inputs, _ = step(model, tmp_path, padding_mask=pad_BS)
    assert line["tokens"] == BATCH * LENGTH - 5
    real_T = ~pad_BS.T.flatten()  # [S, B]
    for row, router in enumerate(routers(model)):
        ids_TK = logits(router, inputs[row]).topk(K).indices[real_T]
        assert line["tokens_per_expert"][row] == counted(ids_TK)


@pytest.mark.parametrize("pads", [False, True])
@pytest.mark.parametrize("policy", ["probs", "position"])
def test_a_capacity_changes_the_drop_rate_and_not_the_counts(
    policy: str, pads: bool, built: Any, tmp_path: Path
) -> None:
    model = built(
        {
            "moe_expert_capacity_factor": 0.5,
            "moe_token_drop_policy": policy,
            "moe_pad_expert_input_to_capacity": pads,
        }
    )
    line, inputs, outputs = step(model, tmp_path)
    for row, router in enumerate(routers(model)):
        ids_TK = logits(router, inputs[row]).topk(K).indices
        runs_TE = outputs[row][1].tolist()
        dropped = sum(not runs_TE[t][e] for t, ids in enumerate(ids_TK.tolist()) for e in ids)
        assert dropped > 0
        assert line["tokens_per_expert"][row] == counted(ids_TK)
        rate = line["router"]["drop_rate"][row]
        assert rate == pytest.approx(dropped / ids_TK.numel(), rel=1e-4)


def test_a_random_choice_is_read_from_the_map_without_entropy(built: Any, tmp_path: Path) -> None:
    line, _, outputs = step(built(moe_router_force_load_balancing=True), tmp_path)
    for row, (_, map_TE) in enumerate(outputs):
        assert line["tokens_per_expert"][row] == map_TE.sum(0).tolist()
    assert "entropy" not in line["router"]


def test_a_random_choice_with_a_capacity_is_refused(built: Any, tmp_path: Path) -> None:
    model = built({"moe_expert_capacity_factor": 1.0}, moe_router_force_load_balancing=True)
    with pytest.raises(ValueError, match=r"moe_router_force_load_balancing.*pass an Adapter"):
        attach(model, tmp_path / "run")
