"""What is trained, at the start: the block that ``attach`` logs, and ``training`` in the header.

Failures that people have reported are rebuilt here with small models.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset as Rows
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import DeepseekV3ForCausalLM, MixtralForCausalLM, TrainingArguments
from trl import GRPOConfig, GRPOTrainer

from benchmarks.families.tiny import build, families
from microscope_tui.probe import MicroscopeCallback, attach, find_sites
from microscope_tui.probe.trained import trained
from tests.probe.layers import ROUTERS, Model, records
from tests.probe.real_text import small_mixtral, tokenizer
from tests.probe.test_real_trainers import settings

pytestmark = pytest.mark.filterwarnings("ignore")  # of PEFT
IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(0))
WRONG_NAMES = {"target_modules": ["q_proj", "gate_proj", "up_proj", "down_proj"]}


def header(model: Any, folder: Path, steps: int = 1, **options: Any) -> dict[str, Any]:
    with attach(model, folder, **options) as probe:
        for _ in range(steps):
            model(input_ids=IDS).logits.square().mean().backward()
            probe.step()
    return records(folder, "run")[0]


def lora(family: str, **options: Any) -> PeftModel:
    return get_peft_model(build(family), LoraConfig(task_type="CAUSAL_LM", **options))


def of(model: nn.Module) -> dict[str, Any]:
    return trained(model, find_sites(model, None))


@pytest.mark.parametrize("family", families())
def test_routers_and_experts_of_every_family_are_found_trained_and_frozen(family: str) -> None:
    model = build(family)
    sites = find_sites(model, None)
    whole = trained(model, sites)
    assert whole["routers"] == [len(sites)] * 2
    assert whole["experts"][0] == whole["experts"][1] >= len(sites)
    assert whole["expert_weights"] == 1.0
    assert "adapters" not in whole
    assert "missing_targets" not in whole
    model.requires_grad_(False)
    none = trained(model, sites)
    assert {n: part[0] for n, part in none.items() if isinstance(part, list)} == dict.fromkeys(
        whole.keys() - {"expert_weights"}, 0
    )
    assert none["expert_weights"] == 0.0


@pytest.mark.parametrize(
    ("family", "options", "expected"),
    [
        ("mixtral", {"target_modules": ["q_proj", "o_proj"]},
         {"routers": [0, 4], "experts": [0, 8], "attention": [8, 16], "embeddings": [0, 2]}),
        ("qwen3_moe", WRONG_NAMES, {"experts": [8, 8], "attention": [4, 16]}),  # PEFT translates
        ("mixtral", {"target_modules": ["q_proj"], "target_parameters": ["gate.weight"]},
         {"routers": [4, 4], "experts": [0, 8]}),
        ("gpt_oss", {"target_modules": ["q_proj"], "modules_to_save": ["router", "embed_tokens"]},
         {"routers": [4, 4], "embeddings": [1, 2]}),
        ("llama4", {"target_parameters": ["experts.gate_up_proj"]}, {"experts": [4, 8]}),
        ("switch_transformers", {"target_modules": ["wi"]}, {"experts": [32, 64]}),
        ("mixtral", {"target_modules": r".*\.v_proj"}, {"attention": [4, 16]}),
    ],
)  # fmt: skip
def test_adapters_are_counted_by_their_target_and_a_pair_is_one_tensor(
    family: str, options: dict[str, Any], expected: dict[str, Any]
) -> None:
    model = lora(family, **options)
    found = of(model.get_base_model())
    assert found == found | expected
    tuner: Any = model.base_model  # PEFT's own lists of what it adapted are the oracle
    targeted = len(tuner.targeted_module_names) + len(tuner.targeted_parameter_names)
    assert sum(found["adapters"].values()) == targeted
    assert "missing_targets" not in found
    experts = {n: p for n, p in model.named_parameters() if ".experts" in n}
    share = sum(p.numel() for p in experts.values() if p.requires_grad)
    assert found["expert_weights"] == share / sum(p.numel() for p in experts.values())


def test_weights_of_which_a_rank_holds_only_a_part_count_as_a_whole() -> None:
    model = build("mixtral")
    whole = of(model.requires_grad_(False))
    for name, parameter in model.named_parameters():  # as DeepSpeed leaves them under ZeRO-3
        parameter.ds_shape = parameter.shape  # type: ignore[attr-defined]
        parameter.data = torch.empty(0)
        parameter.requires_grad = "down_proj" in name
    after = of(model)
    assert after == whole | {"experts": [4, 8], "expert_weights": pytest.approx(1 / 3)}


def test_attach_logs_one_block_and_the_unreadable_is_unknown(tmp_path: Path, caplog: Any) -> None:
    model = Model()
    model.layers[1].gate.weight.requires_grad_(False)
    for block in model.layers[1:]:
        block.linears, block.experts = block.experts, None
    with caplog.at_level(logging.INFO, "microscope_tui.probe"):
        attach(model, tmp_path, routers=ROUTERS).detach()
    blocks = [one.splitlines() for one in caplog.messages if one.startswith("trained tensors: ")]
    known = "routers 1 of 2, experts unknown, attention unknown, embeddings 1 of 1"
    assert blocks == [[f"trained tensors: {known}", "frozen: no part", "balancing: unknown"]]


def test_adapters_that_miss_experts_by_name_are_told_at_attach(tmp_path: Path, caplog: Any) -> None:
    """unsloth#3405: GPT-OSS has none of these modules, and the training only tunes attention."""
    caplog.set_level(logging.INFO, "microscope_tui.probe")
    run = header(lora("gpt_oss", **WRONG_NAMES), tmp_path)
    training = run["training"]
    assert training["missing_targets"] == ["down_proj", "gate_proj", "up_proj"]
    assert training["adapters"] == {"experts": 0, "attention": 4, "router": 0, "other": 0}
    assert "the model does not have: down_proj, gate_proj, up_proj" in caplog.text
    assert "frozen: routers, experts, embeddings" in caplog.text
    for cause in ("missing targets", "adapters miss experts"):
        assert [m for m in caplog.messages if m.startswith("attach: ") and cause in m]


@pytest.mark.parametrize(
    ("options", "missing"),
    [
        ({"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_projs"]},
         ["mlp.experts.gate_up_projs"]),
        ({"target_modules": ["q_proj"], "modules_to_save": ["routers"]}, ["routers"]),
        ({"target_modules": ["q_proj"], "modules_to_save": ["head"]}, []),  # PEFT saves lm_head
        # Names of single projections of a weight that holds both and is adapted, as unsloth does.
        (WRONG_NAMES | {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]}, []),
    ],
)  # fmt: skip
def test_only_names_without_match_are_missing(options: dict[str, Any], missing: list[str]) -> None:
    assert of(lora("gpt_oss", **options).get_base_model()).get("missing_targets", []) == missing


@dataclass
class WithCoefficient(TrainingArguments):
    """Arguments as those of TRL, of a Trainer that does not use them."""

    router_aux_loss_coef: float | None = None


class Fast(MixtralForCausalLM):
    """Replaces the forward and drops the auxiliary loss, as unsloth did for GRPO (#6904)."""

    def forward(self, *args: Any, **given: Any) -> Any:
        return super().forward(*args, **given | {"output_router_logits": False})


class Adding(DeepseekV3ForCausalLM):
    """Computes an auxiliary loss that its family does not have, as the fused forward of TRL."""

    def forward(self, *args: Any, **given: Any) -> Any:
        output = super().forward(*args, **given)
        output.aux_loss = output.logits.mean()
        return output


def plain(folder: Path) -> Any:
    return WithCoefficient(output_dir=str(folder), router_aux_loss_coef=0.02)


@pytest.mark.parametrize("fast", [False, True])
def test_a_coefficient_of_the_trainer_that_the_model_does_not_apply_is_found_at_the_first_step(
    fast: bool, tmp_path: Path, caplog: Any
) -> None:
    """TRL#6083: GRPO took the coefficient and asked no model for its auxiliary loss."""
    model = build("mixtral", output_router_logits=fast)
    if fast:
        model.__class__ = Fast
    model.config.router_aux_loss_coef = 0.5  # too late: the model copied it when it was built
    balance = header(model, tmp_path, trainer_args=plain(tmp_path))["balance"]
    assert balance["output_router_logits"] is False
    assert (balance["aux_weight"], balance["trainer_aux_weight"]) == (0.001, 0.02)
    assert balance["names"]["aux_weight"] == "router_aux_loss_coef"
    assert balance["names"]["trainer_aux_weight"] == "WithCoefficient.router_aux_loss_coef"
    (said,) = [m for m in caplog.messages if m.startswith("step 1: ") and "trainer aux" in m]
    assert "WithCoefficient.router_aux_loss_coef is 0.02" in said


@pytest.mark.parametrize("adding", [False, True])
def test_an_auxiliary_loss_counts_if_a_pass_returned_one(adding: bool, tmp_path: Path) -> None:
    model = build("deepseek_v3")
    model.__class__ = Adding if adding else type(model)
    balance = header(model, tmp_path, trainer_args=plain(tmp_path))["balance"]
    key = "aux_weight" if adding else "trainer_aux_weight"
    assert (balance["method"], balance[key]) == ("aux" if adding else "bias", 0.02)
    assert ("trainer_aux_weight" in balance) is not adding


@pytest.mark.parametrize(("weight", "applied"), [(0.05, 0.05), (0.0, 0.0), (None, 0.02)])
def test_the_coefficient_that_trl_applies_is_the_one_in_the_header(
    weight: float | None, applied: float, tmp_path: Path, caplog: Any
) -> None:
    """It asks every pass for the auxiliary loss, whatever the configuration of the model says."""
    model = small_mixtral()
    model.config.output_router_logits = False
    given = settings(tmp_path, max_steps=1) | {"router_aux_loss_coef": weight}
    with caplog.at_level(logging.INFO, "microscope_tui.probe"):
        GRPOTrainer(
            model, reward_funcs=lambda completions, **kw: [float(len(c)) for c in completions],
            args=GRPOConfig(**given, num_generations=4, max_completion_length=8),
            train_dataset=Rows.from_list([{"prompt": "a b"}] * 4), processing_class=tokenizer(),
            callbacks=[MicroscopeCallback(tmp_path)],
        ).train()  # fmt: skip
    balance = records(tmp_path / "run", "run")[0]["balance"]
    assert balance["aux_weight"] == applied
    assert "trainer_aux_weight" not in balance
    assert balance.get("output_router_logits") is (True if applied else None)
    name = "router_aux_loss_coef" if weight is None else "GRPOConfig.router_aux_loss_coef"
    assert balance["names"]["aux_weight"] == name
    assert "the first step shows whether it is applied" in caplog.text
    assert "is configured, but" not in caplog.text  # LINT about a flag that TRL does not need


def test_a_flag_that_does_not_reach_the_text_model_is_named(tmp_path: Path, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "microscope_tui.probe")
    model: Any = build("qwen3_vl_moe")
    model.config.output_router_logits = True
    balance = header(model, tmp_path)["balance"]
    assert balance["output_router_logits"] is False
    assert "not applied: text_config.output_router_logits is false" in caplog.text


def test_a_bias_that_moves_under_a_frozen_router_is_found(tmp_path: Path, caplog: Any) -> None:
    """mcore-bridge#195: the updates went on, and the saved adapter did not have them."""
    model: Any = lora("deepseek_v3", target_modules=["q_a_proj"])
    sites = find_sites(model.get_base_model(), None)
    with attach(model, tmp_path) as probe:
        for _ in range(3):
            model(input_ids=IDS).logits.square().mean().backward()
            for site in sites:
                site.router.e_score_correction_bias.add_(0.001 * torch.randn(8))
            probe.step()
    run = records(tmp_path, "run")[0]
    assert run["training"]["routers"] == [0, 3]
    assert run["balance"]["frozen_routers"] == 3
    (found,) = [m for m in caplog.messages if "bias moves, router frozen" in m]
    assert found.startswith(("step 2", "step 3"))
