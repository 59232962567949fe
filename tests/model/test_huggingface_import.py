"""However transformers and others store a model, it gives the same logits here."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

from moe_model import UsageError, read_checkpoint
from moe_model.huggingface.config import read_config
from moe_model.huggingface.read import load_pretrained
from tests.model.published import (
    YARN,
    assert_same,
    change_config,
    change_tensors,
    command,
    fill,
    imported,
    of_type,
    our_logits,
    tensors,
    their_ahead_logits,
    their_logits,
    their_model,
)


@pytest.mark.parametrize("storage", ["bf16", "fp16", "shards", "head twice"])
def test_weights_are_exact_in_every_storage(storage: str, tmp_path: Path, ids_BS: Tensor) -> None:
    """Some writers store a tied head."""
    folder = tmp_path / "theirs"
    theirs = their_model(tie_word_embeddings=storage == "head twice")
    if storage in ("bf16", "fp16"):
        theirs.to({"bf16": torch.bfloat16, "fp16": torch.float16}[storage])
    theirs.save_pretrained(folder, max_shard_size="10KB" if storage == "shards" else "1GB")
    if storage == "shards":
        assert len(list(folder.glob("*.safetensors"))) > 10
    expected = their_logits(folder, ids_BS)
    if storage == "head twice":
        copy = tensors(folder)["model.embed_tokens.weight"]
        change_tensors(folder, lambda content: content.update({"lm_head.weight": copy.clone()}))
    model = imported(folder)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert_same(our_logits(model, ids_BS), expected)


def test_more_fields_of_a_published_config_are_ignored(tmp_path: Path, ids_BS: Tensor) -> None:
    folder = tmp_path / "theirs"
    their_model(rope_parameters=YARN).save_pretrained(folder)
    expected = their_logits(folder, ids_BS)
    old = {name: value for name, value in YARN.items() if not name.startswith("rope_")}
    change_config(
        folder, rope_parameters=..., rope_interleave=..., rope_theta=10_000, head_dim=...,
        rope_scaling={**old, "type": "yarn", "beta_fast": 32, "beta_slow": 1},
        scoring_func="sigmoid", topk_method="noaux_tc", ep_size=1, aux_loss_alpha=0.001,
        seq_aux=True, moe_layer_freq=1, torch_dtype="bfloat16", num_key_value_heads=None,
        auto_map={"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"},
    )  # fmt: skip
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    change_tensors(folder, lambda content: content.update(inv_freq))
    assert_same(our_logits(imported(folder), ids_BS), expected)


@pytest.mark.parametrize("none", [None, 0])
def test_shared_experts_may_be_absent(none: int | None, tmp_path: Path, ids_BS: Tensor) -> None:
    folder, theirs = tmp_path / "theirs", their_model()
    for layer in theirs.model.layers[1:]:
        torch.nn.init.zeros_(layer.mlp.shared_experts.down_proj.weight)
    theirs.save_pretrained(folder)
    expected = their_logits(folder, ids_BS)

    def without(content: dict[str, Tensor]) -> None:
        for name in [name for name in content if ".shared_experts." in name]:
            del content[name]

    change_tensors(folder, without)
    change_config(folder, n_shared_experts=none)
    assert_same(our_logits(load_pretrained(folder)[0], ids_BS), expected)


@pytest.mark.parametrize("model_type", ["deepseek_v3", "deepseek_v2", "glm4_moe_lite"])
def test_a_rule_that_is_left_out_is_that_of_transformers(model_type: str, tmp_path: Path) -> None:
    folder, theirs = tmp_path / "theirs", AutoConfig.for_model(model_type).to_dict()
    of_type(model_type).save_pretrained(folder)
    rules = (
        "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "rms_norm_eps",
        "first_k_dense_replace", "initializer_range", "tie_word_embeddings", "attention_bias",
        "topk_method", "num_nextn_predict_layers",
    )  # fmt: skip
    change_config(folder, **dict.fromkeys((*rules, "mlp_layer_types"), ...), num_hidden_layers=4)
    config = read_config(folder / "config.json").config
    expected = {name: theirs[name] for name in rules if theirs.get(name) is not None}
    assert {name: getattr(config, name) for name in expected} == expected
    change_config(folder, num_mtp_layers=2)  # another name of the last
    assert read_config(folder / "config.json").config.num_nextn_predict_layers == 2


def test_glm_need_not_list_dense_layers_and_may_count_them(tmp_path: Path, ids_BS: Tensor) -> None:
    of_type("glm4_moe_lite").save_pretrained(tmp_path / "theirs")
    expected = their_logits(tmp_path / "theirs", ids_BS)
    for more in ({}, {"first_k_dense_replace": 1}):
        change_config(tmp_path / "theirs", mlp_layer_types=..., **more)
        assert_same(our_logits(load_pretrained(tmp_path / "theirs")[0], ids_BS), expected)


def test_the_bias_survives_bit_for_bit_and_routers_stay_fp32(tmp_path: Path) -> None:
    theirs = their_model()
    theirs.save_pretrained(tmp_path / "theirs")
    assert command("import", tmp_path / "theirs", tmp_path / "ours", "--dtype", "bf16") == 0
    kept = tensors(tmp_path / "ours")
    gate = theirs.model.layers[2].mlp.gate
    assert torch.equal(kept["layers.2.mlp.router.expert_bias"], gate.e_score_correction_bias)
    assert torch.equal(kept["layers.2.mlp.router.weight"], gate.weight)
    assert kept["layers.2.mlp.experts.down_proj"].dtype == torch.bfloat16
    model = read_checkpoint(tmp_path / "ours").load_model()
    assert torch.equal(model.routers[1].expert_bias, gate.e_score_correction_bias)


def add_their_prediction(theirs: DeepseekV3ForCausalLM, folder: Path, copied: bool) -> MtpModel:
    """One depth of multi-token prediction with random weights, added to ``folder`` as published."""
    depth = MtpModel(theirs, 1).eval()
    fill(depth.layers, 5)
    gate = depth.layers[0].mtp_block.mlp.gate
    gate.e_score_correction_bias.normal_(-0.6, 0.3, generator=torch.Generator().manual_seed(6))
    added: dict[str, Tensor] = {}
    for name, tensor in depth.layers[0].state_dict().items():
        name = name.removeprefix("mtp_block.").replace("post_norm", "shared_head.norm")
        if name.startswith("mlp.experts."):
            matrices = {"down_proj": tensor}
            if name.endswith("gate_up_proj"):
                matrices = dict(zip(("gate_proj", "up_proj"), tensor.chunk(2, dim=1), strict=True))
            for matrix, stacked in matrices.items():
                for expert, weight in enumerate(stacked):
                    added[f"mlp.experts.{expert}.{matrix}.weight"] = weight.clone()
        else:
            added[name] = tensor.clone()
    if copied:
        added["embed_tokens.weight"] = theirs.get_input_embeddings().weight.data.clone()
        added["shared_head.head.weight"] = theirs.lm_head.weight.data.clone()
    published = {f"model.layers.3.{name}": tensor for name, tensor in added.items()}
    change_tensors(folder, lambda content: content.update(published))
    return depth


@pytest.mark.parametrize(("tied", "copied"), [(True, True), (False, True), (False, False)])
def test_mtp_layers_are_kept(tied: bool, copied: bool, tmp_path: Path, ids_BS: Tensor) -> None:
    """With copies of the embedding and the head that belong to it, and without."""
    folder = tmp_path / "theirs"
    theirs = their_model(rope_parameters=YARN, tie_word_embeddings=tied)
    theirs.save_pretrained(folder)
    depth = add_their_prediction(theirs, folder, copied)
    model = imported(folder)
    assert model.config.num_nextn_predict_layers == 1
    ids_BS, next_ids = ids_BS[:, :-1], ids_BS[:, 1:]
    with torch.no_grad():
        actual = model(ids_BS, next_ids=next_ids)
        hidden = theirs.model(ids_BS).last_hidden_state
    assert_same(actual.ahead_logits[0], their_ahead_logits(depth, hidden, next_ids)[0])

    if copied:
        head = "model.layers.3.shared_head.head.weight"
        change_tensors(folder, lambda content: content[head].mul_(1.5))
        problem = f"{head} differs from {'model.embed_tokens' if tied else 'lm_head'}.weight"
    else:
        change_tensors(folder, lambda content: content.pop("model.layers.3.eh_proj.weight"))
        problem = r"model.layers.3.eh_proj.weight .32, 64. is missing"
    with pytest.raises(UsageError, match=problem):
        load_pretrained(folder)
