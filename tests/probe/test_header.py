"""The header of the log: what balances the routers, and the names of the settings in their
framework."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from benchmarks.families.tiny import build
from microscope_tui.probe import attach, find_sites
from microscope_tui.probe.losses import StepLosses
from tests.probe.layers import records

IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
BOTH = {"aux_weight": "router_aux_loss_coef", "output_router_logits": "output_router_logits"}
FAMILIES = {
    **dict.fromkeys(("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "gpt_oss", "minimax_m2"), BOTH),
    "qwen3_vl_moe": {ours: f"text_config.{name}" for ours, name in BOTH.items()},
    "dbrx": BOTH | {"aux_weight": "ffn_config.moe_loss_weight"},
    "switch_transformers": BOTH,
    "llama4": {},  # has a weight, and no loss to use it
}


def loss_of(model: Any, weight: float, **given: Any) -> float:
    """The loss, after the weight was set in all configurations and where it was copied."""
    configs = [model.config, *(getattr(model.config, f"{p}_config", None) for p in ("text", "ffn"))]
    for holder in (*configs, *model.modules()):
        for name in {"router_aux_loss_coef", "moe_loss_weight"} & vars(holder or nn).keys():
            setattr(holder, name, weight)
    torch.manual_seed(0)
    return model(input_ids=IDS, labels=IDS, **given).loss.item()  # type: ignore[no-any-return]


def step(model: Any, folder: Path, **given: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    with attach(model, folder) as probe:
        probe.hooks.losses = StepLosses(model, 1, across_ranks=False)
        torch.manual_seed(0)
        model(input_ids=IDS, labels=IDS, **given).loss.backward()
        probe.step()
    return records(folder, "run")[0], records(folder)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_an_aux_loss_is_applied_exactly_if_its_weight_moves_it(family: str, tmp_path: Path) -> None:
    model: Any = build(family)
    for configured, given in ((False, {}), (True, {}), (False, {"output_router_logits": True})):
        for config in (model.config, model.config.get_text_config()):
            config.output_router_logits = configured and family != "switch_transformers"
        loss = loss_of(model, 0.0, **given)
        applied = loss_of(model, 3.0, **given) != loss
        run, line = step(model, tmp_path / f"{configured}{given}", **given)
        balance = run["balance"]
        names = {ours: balance.get("names", {}).get(ours) for ours in FAMILIES[family]}
        assert names == FAMILIES[family]
        assert balance.get("output_router_logits", False) is applied
        assert balance["method"] == ("aux" if names else "none")
        assert balance.get("aux_weight") == (3.0 if names else None)
        assert balance.get("pools_layers", False) is applied
        idle = family == "minimax_m2" and not applied
        assert balance.get("updates_bias") is (False if idle else None)
        if family != "switch_transformers":  # returns its terms one by one
            assert line["loss"] == pytest.approx(loss, rel=1e-5)


@pytest.mark.filterwarnings("ignore")  # of PEFT
@pytest.mark.parametrize(
    ("family", "trained", "frozen"),
    [
        ("mixtral", {"target_parameters": ["gate.weight"]}, 0),
        ("deepseek_v3", {"target_modules": "all-linear"}, 0),
        ("gpt_oss", {"target_modules": "all-linear"}, 4),
        ("gpt_oss", {"modules_to_save": ["router"]}, 0),
        ("llama4", {"modules_to_save": ["router"]}, 0),
    ],
)
def test_a_router_inside_an_adapter_is_read_as_before_and_only_counts_as_frozen_if_it_is(
    family: str, trained: dict[str, Any], frozen: int, tmp_path: Path
) -> None:
    run, line = step(build(family), tmp_path / "plain")
    lora = LoraConfig(task_type="CAUSAL_LM", **{"target_modules": ["o_proj"]} | trained)
    after, same = step(get_peft_model(build(family), lora), tmp_path / "lora")
    assert after["model"] | {"parameters": 0} == run["model"] | {"parameters": 0}
    for name in ("tokens_per_expert", "expert_bias"):
        assert same.get(name) == line.get(name)
    assert same["router"]["entropy"] == line["router"]["entropy"]
    assert after["balance"].get("frozen_routers", 0) == frozen


class TopKRouter(nn.Module):
    __module__ = "megatron.core.transformer.moe.router"
    num_experts = 4

    def __init__(self, kind: str, bias: bool) -> None:
        super().__init__()
        names = "topk num_groups score_function bias_update_rate"
        known: Any = dict.fromkeys((f"moe_router_{name}" for name in names.split()), 1)
        known |= {"moe_router_load_balancing_type": kind, "moe_router_enable_expert_bias": bias}
        known |= {"moe_aux_loss_coeff": 0.01, "moe_z_loss_coeff": 0.1}
        self.config = SimpleNamespace(**known, moe_expert_capacity_factor=None)


@pytest.mark.parametrize(
    ("kind", "bias", "expected"),
    [
        ("aux_loss", False, {"method": "aux", "aux_weight": 0.01, "z_loss_weight": 0.1}),
        ("none", True, {"method": "bias", "update": "sign", "bias_update_rate": 1}),
        ("none", False, {"method": "none"}),
        ("sinkhorn", False, {"method": "sinkhorn"}),
        ("quantile_balancing", False, {"method": "bias", "update": "quantile"}),
    ],
)
def test_megatron_balances_by_its_options(kind: str, bias: bool, expected: dict[str, Any]) -> None:
    (site,) = find_sites(nn.Sequential(TopKRouter(kind, bias)), None)
    assert site.balance == site.balance | expected
    assert site.balance["names"]["aux_weight"] == "--moe-aux-loss-coeff"
