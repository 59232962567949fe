"""What transformers saves gives the same logits here: the oracle is transformers, through disk."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

from moe_model import read_checkpoint
from moe_model.huggingface import HuggingFaceError, load_pretrained, read_config
from tests.model.published import (
    YARN,
    assert_same,
    change_config,
    change_tensors,
    command,
    fill,
    imported,
    our_logits,
    tensors,
    their_ahead_logits,
    their_logits,
    their_model,
)

VARIANTS = [
    pytest.param(
        {
            "q_lora_rank": rank,
            "n_group": groups,
            "topk_group": (groups + 1) // 2,
            "rope_parameters": yarn,
        },
        id=f"query rank {rank}, {groups} groups, {'yarn' if yarn else 'plain rotary'}",
    )
    for rank, groups, yarn in itertools.product((None, 20), (1, 4), (None, YARN))
]


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_those_of_transformers(
    variant: dict[str, Any], tmp_path: Path, ids_BS: Tensor
) -> None:
    their_model(**variant).save_pretrained(tmp_path / "theirs")
    expected = their_logits(tmp_path / "theirs", ids_BS)
    assert_same(our_logits(imported(tmp_path / "theirs"), ids_BS), expected)


def test_halves_become_pairs_where_rotary_is_not_interleaved(
    tmp_path: Path, ids_BS: Tensor
) -> None:
    for rank in (None, 20):
        folder = tmp_path / f"rank-{rank}"
        their_model(q_lora_rank=rank, rope_interleave=False).save_pretrained(folder)
        expected = their_logits(folder, ids_BS)
        assert_same(our_logits(imported(folder), ids_BS), expected)
        change_config(folder, rope_interleave=True)
        assert (their_logits(folder, ids_BS) - expected).abs().max() > 1e-2, "it does matter"


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors:UserWarning")
def test_a_model_without_shared_experts_is_imported(tmp_path: Path, ids_BS: Tensor) -> None:
    """transformers writes matrices of no rows for them."""
    their_model(n_shared_experts=0).save_pretrained(tmp_path / "theirs")
    assert any(0 in tensor.shape for tensor in tensors(tmp_path / "theirs").values())
    model = imported(tmp_path / "theirs")
    assert model.config.n_shared_experts == 0
    assert_same(our_logits(model, ids_BS), their_logits(tmp_path / "theirs", ids_BS))


def test_a_tied_head_is_the_embedding(tmp_path: Path, ids_BS: Tensor) -> None:
    folder = tmp_path / "theirs"
    their_model(tie_word_embeddings=True).save_pretrained(folder)
    assert "lm_head.weight" not in tensors(folder)
    model = imported(folder)
    assert model.lm_head is None
    assert_same(our_logits(model, ids_BS), their_logits(folder, ids_BS))

    # Some writers store the head although it is the embedding.
    copy = tensors(folder)["model.embed_tokens.weight"]
    change_tensors(folder, lambda content: content.update({"lm_head.weight": copy.clone()}))
    again, _ = load_pretrained(folder)
    assert torch.equal(our_logits(again, ids_BS), our_logits(model, ids_BS))


def test_half_precision_is_read_exactly(tmp_path: Path, ids_BS: Tensor) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        folder = tmp_path / str(dtype)
        their_model().to(dtype).save_pretrained(folder)
        assert tensors(folder)["lm_head.weight"].dtype == dtype
        model = imported(folder)
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        assert_same(our_logits(model, ids_BS), their_logits(folder, ids_BS))


def test_shards_are_put_together(tmp_path: Path, ids_BS: Tensor) -> None:
    their_model().save_pretrained(tmp_path / "theirs", max_shard_size="10KB")
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 10
    expected = their_logits(tmp_path / "theirs", ids_BS)
    assert_same(our_logits(imported(tmp_path / "theirs"), ids_BS), expected)


def test_stacked_experts_are_read_as_well(tmp_path: Path, ids_BS: Tensor) -> None:
    """A state dict of transformers 5 saved as it is."""
    theirs = their_model()
    theirs.save_pretrained(tmp_path / "theirs")
    save_file(theirs.state_dict(), tmp_path / "theirs" / "model.safetensors")
    assert any(name.endswith("experts.gate_up_proj") for name in tensors(tmp_path / "theirs"))
    with torch.no_grad():
        expected = theirs(ids_BS, use_cache=False).logits
    assert_same(our_logits(imported(tmp_path / "theirs"), ids_BS), expected)


def test_additional_fields_of_a_published_config_are_ignored(
    tmp_path: Path, ids_BS: Tensor
) -> None:
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
    change_tensors(
        folder,
        lambda content: content.update(
            {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
        ),
    )
    assert_same(our_logits(imported(folder), ids_BS), expected)


def test_a_model_without_shared_experts_is_one_where_they_say_nothing(
    tmp_path: Path, ids_BS: Tensor
) -> None:
    folder, theirs = tmp_path / "theirs", their_model()
    for layer in theirs.model.layers[1:]:
        torch.nn.init.zeros_(layer.mlp.shared_experts.down_proj.weight)
    theirs.save_pretrained(folder)
    expected = their_logits(folder, ids_BS)

    def without(content: dict[str, Tensor]) -> None:
        for name in [name for name in content if ".shared_experts." in name]:
            del content[name]

    change_tensors(folder, without)
    for none in (None, 0):
        change_config(folder, n_shared_experts=none)
        model, _ = load_pretrained(folder)
        assert_same(our_logits(model, ids_BS), expected)


def test_a_rule_that_is_left_out_is_that_of_transformers(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    their_model().save_pretrained(folder)
    rules = (
        "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "rms_norm_eps",
        "first_k_dense_replace", "initializer_range", "tie_word_embeddings",
        "num_nextn_predict_layers",
    )  # fmt: skip
    change_config(folder, **dict.fromkeys(rules, ...), num_hidden_layers=4)
    config = read_config(folder / "config.json").config
    theirs = DeepseekV3Config()
    assert {n: getattr(config, n) for n in rules} == {n: getattr(theirs, n) for n in rules}


def test_long_work_says_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    their_model().save_pretrained(tmp_path / "theirs")
    monkeypatch.setattr("moe_model.huggingface.read.SECONDS_BETWEEN_LINES", 0.0)
    imported(tmp_path / "theirs")
    captured = capsys.readouterr()
    assert re.search(r"^read \d+ of \d+ tensors$", captured.err, re.MULTILINE)
    assert not captured.out


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


def their_prediction(theirs: DeepseekV3ForCausalLM, folder: Path, copied: bool) -> MtpModel:
    """One depth of multi-token prediction with random weights, added to ``folder`` as published."""
    depth = MtpModel(theirs, 1).eval()
    fill(depth.layers, 5)
    gate = depth.layers[0].mtp_block.mlp.gate
    gate.e_score_correction_bias.normal_(-0.6, 0.3, generator=torch.Generator().manual_seed(6))

    def add(content: dict[str, Tensor]) -> None:
        for name, tensor in depth.layers[0].state_dict().items():
            name = name.removeprefix("mtp_block.").replace("post_norm", "shared_head.norm")
            if name == "mlp.experts.gate_up_proj":
                halves = dict(zip(("gate_proj", "up_proj"), tensor.chunk(2, dim=1), strict=True))
            elif name == "mlp.experts.down_proj":
                halves = {"down_proj": tensor}
            else:
                content[f"model.layers.3.{name}"] = tensor.clone()
                continue
            for matrix, stacked in halves.items():
                for expert, weight in enumerate(stacked):
                    one = f"model.layers.3.mlp.experts.{expert}.{matrix}.weight"
                    content[one] = weight.clone()
        if copied:
            embedding = content["model.embed_tokens.weight"]
            head = content.get("lm_head.weight", embedding)
            content["model.layers.3.embed_tokens.weight"] = embedding.clone()
            content["model.layers.3.shared_head.head.weight"] = head.clone()

    change_tensors(folder, add)
    return depth


@pytest.mark.parametrize("copied", [True, False], ids=["with copies", "without copies"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_multi_token_prediction_is_kept(
    tied: bool, copied: bool, tmp_path: Path, ids_BS: Tensor
) -> None:
    folder = tmp_path / "theirs"
    theirs = their_model(rope_parameters=YARN, tie_word_embeddings=tied)
    theirs.save_pretrained(folder)
    depth = their_prediction(theirs, folder, copied)
    model = imported(folder)
    assert model.config.num_nextn_predict_layers == 1
    ids_BS, next_ids = ids_BS[:, :-1], ids_BS[:, 1:]
    with torch.no_grad():
        actual = model(ids_BS, next_ids=next_ids)
        hidden = theirs.model(ids_BS).last_hidden_state
    assert_same(actual.ahead_logits[0], their_ahead_logits(depth, hidden, next_ids)[0])

    change_tensors(folder, lambda content: content.pop("model.layers.3.eh_proj.weight"))
    with pytest.raises(HuggingFaceError, match=r"model.layers.3.eh_proj.weight .32, 64. is miss"):
        load_pretrained(folder)


def test_copies_that_are_none_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    theirs = their_model()
    theirs.save_pretrained(folder)
    their_prediction(theirs, folder, copied=True)
    head = "model.layers.3.shared_head.head.weight"
    change_tensors(folder, lambda content: content[head].mul_(1.5))
    with pytest.raises(HuggingFaceError, match=f"{head} differs from lm_head.weight"):
        load_pretrained(folder)
