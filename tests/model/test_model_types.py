"""DeepSeek-V2 and GLM-4.7-Flash: imported they compute what transformers does, and go back as such.

The oracle is transformers' own class of each, through disk.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.transformers_peer import their_name
from moe_model import WEIGHTS, Decoder, LatentCache, file_facts, read_checkpoint
from moe_model.huggingface import HuggingFaceError, load_pretrained
from tests.model.published import (
    LLAMA3,
    TOLERANCE,
    YARN,
    assert_same,
    change_config,
    change_tensors,
    command,
    imported,
    of_type,
    our_logits,
    tensors,
    their_logits,
)

GROUPS = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
SCALED = {"routed_scaling_factor": 16.0}
V2_LITE_YARN = YARN | {"mscale": 0.707, "mscale_all_dim": 0.707, "factor": 40.0}
VARIANTS = [
    pytest.param(name, fields, id=f"{name}: {what}")
    for name, what, fields in (
        ("deepseek_v2", "Lite", {"rope_parameters": V2_LITE_YARN}),
        ("deepseek_v2", "groups", {"q_lora_rank": 20, **GROUPS, **SCALED}),
        ("deepseek_v2", "groups of one", {**GROUPS, "n_group": 16, "topk_group": 5}),
        ("deepseek_v2", "yarn", {"q_lora_rank": 20, "rope_parameters": YARN, **GROUPS}),
        ("deepseek_v2", "biases", {"q_lora_rank": 20, "attention_bias": True}),
        ("deepseek_v2", "biases, full query", {"attention_bias": True}),
        ("glm4_moe_lite", "as published", {"q_lora_rank": 20}),
        ("glm4_moe_lite", "groups", {"n_group": 4, "topk_group": 2, "rope_parameters": YARN}),
        ("glm4_moe_lite", "biases", {"q_lora_rank": 20, "attention_bias": True}),
        ("glm4_moe_lite", "halves", {"attention_bias": True, "rope_interleave": False}),
        ("glm4_moe_lite", "two dense", {"mlp_layer_types": ["dense", "dense", "sparse"]}),
        ("deepseek_v3", "biases", {"q_lora_rank": 20, "attention_bias": True}),
        ("deepseek_v3", "halves", {"attention_bias": True, "rope_interleave": False}),
        ("deepseek_v3", "Llama 3's positions", {"rope_parameters": LLAMA3}),
    )
]


@pytest.mark.parametrize(("name", "fields"), VARIANTS)
def test_logits_read_at_once_and_token_by_token_are_theirs(
    name: str, fields: dict[str, Any], tmp_path: Path, ids_BS: Tensor
) -> None:
    theirs = of_type(name, **fields)
    theirs.save_pretrained(tmp_path / "theirs")
    model = imported(tmp_path / "theirs")
    assert_same(our_logits(model, ids_BS), their_logits(tmp_path / "theirs", ids_BS))
    past, cache = DynamicCache(config=theirs.config), LatentCache(model.config, 1, 24)
    decoder = Decoder(model, 24, weights=torch.float32)
    with torch.no_grad():
        for place in range(24):
            now = ids_BS[:1, place : place + 1]
            expected = theirs(now, cache=past, use_cache=True).logits
            assert_same(model(now, cache=cache).logits_BSV, expected)
            assert_same(decoder.read(now[0].tolist())[0], expected[0])


@pytest.mark.parametrize(
    ("name", "fields"), [v for v in VARIANTS if "rope_interleave" not in v.values[1]]
)
def test_gradients_of_every_weight_are_theirs(
    name: str, fields: dict[str, Any], tmp_path: Path, ids_BS: Tensor
) -> None:
    """Of those whose rows are in the same order."""
    of_type(name, **fields).save_pretrained(tmp_path / "theirs")
    model = imported(tmp_path / "theirs").train()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "theirs").train()
    targets = ids_BS.roll(-1, dims=1).flatten()
    F.cross_entropy(theirs(ids_BS, use_cache=False).logits.flatten(0, 1), targets).backward()
    F.cross_entropy(model(ids_BS).logits_BSV.flatten(0, 1), targets).backward()
    expected = {n: p.grad for n, p in theirs.named_parameters()}
    ours = {their_name(n): p.grad for n, p in model.named_parameters()}
    assert ours.keys() == expected.keys()
    for weight, gradient in expected.items():
        assert gradient is not None
        assert gradient.norm() > 0, weight
        torch.testing.assert_close(ours[weight], gradient, atol=TOLERANCE, rtol=1e-4)


@pytest.mark.parametrize(("name", "fields"), VARIANTS)
def test_it_goes_back_as_the_class_it_came_from_with_all_fields(
    name: str, fields: dict[str, Any], tmp_path: Path, ids_BS: Tensor
) -> None:
    theirs = of_type(name, **fields, bos_token_id=5, eos_token_id=[7, 9], pad_token_id=3)
    theirs.save_pretrained(tmp_path / "theirs")
    change_config(tmp_path / "theirs", aux_loss_alpha=0.001, ep_size=1, use_cache=False,
                  auto_map={"AutoModel": "code.Model"}, _name_or_path="/home")  # fmt: skip
    ours = tmp_path / "ours"
    assert command("import", tmp_path / "theirs", ours) == 0
    assert command("export", ours, tmp_path / "back") == 0
    before, after = (
        json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("theirs", "back")
    )
    assert not {"auto_map", "_name_or_path", "transformers_version"} & after.keys()
    same = before.keys() - {"auto_map", "_name_or_path", "transformers_version"}
    # Greedy has no groups, null there and 1 here; of multi-token prediction there are no layers.
    same -= {"rope_parameters", "n_group", "topk_group", "num_nextn_predict_layers"}
    if "rope_interleave" in fields:
        same -= {"rope_interleave"}
    assert {n: after[n] for n in same} == {n: before[n] for n in same}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "back").eval()
    assert type(again) is type(theirs)
    kept, original = tensors(tmp_path / "back"), tensors(tmp_path / "theirs")
    assert {n: t.shape for n, t in kept.items()} == {n: t.shape for n, t in original.items()}
    assert_same(their_logits(tmp_path / "back", ids_BS), their_logits(tmp_path / "theirs", ids_BS))
    # And back again, bit for bit.
    assert command("import", tmp_path / "back", tmp_path / "ours again") == 0
    first, second = (read_checkpoint(tmp_path / n) for n in ("ours", "ours again"))
    assert first.config == second.config
    assert (ours / WEIGHTS).read_bytes() == (tmp_path / "ours again" / WEIGHTS).read_bytes()


def test_groups_are_judged_by_their_best_and_the_other_judgement_shows(
    tmp_path: Path, ids_BS: Tensor
) -> None:
    folder = tmp_path / "theirs"
    of_type("deepseek_v2", **GROUPS).save_pretrained(folder)
    model, _ = load_pretrained(folder)
    expected = their_logits(folder, ids_BS)
    assert_same(our_logits(model, ids_BS), expected)
    for router in model.routers:
        object.__setattr__(router.config, "topk_method", "noaux_tc")
    assert (our_logits(model, ids_BS) - expected).abs().max() > 1e-3


def test_greedy_does_not_look_at_groups(tmp_path: Path, ids_BS: Tensor) -> None:
    folder = tmp_path / "theirs"
    of_type("deepseek_v2", n_group=8, topk_group=3, topk_method="greedy").save_pretrained(folder)
    assert_same(our_logits(imported(folder), ids_BS), their_logits(folder, ids_BS))


def test_a_bias_that_has_no_place_is_not_lost_in_silence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_type("deepseek_v2").save_pretrained(tmp_path / "theirs")
    assert command("import", tmp_path / "theirs", tmp_path / "ours") == 0
    path = tmp_path / "ours" / "checkpoint.json"
    described = json.loads(path.read_text())
    described.pop("sha256")
    change_tensors(tmp_path / "ours", lambda t: t["layers.1.mlp.router.expert_bias"].fill_(0.1))
    described["files"][WEIGHTS] = file_facts(tmp_path / "ours" / WEIGHTS)
    path.write_text(json.dumps(described))
    assert command("export", tmp_path / "ours", tmp_path / "back") == 64
    narration = capsys.readouterr().err
    assert "layers.1.mlp.router.expert_bias is not zero, and a deepseek_v2 has no such" in narration
    assert not (tmp_path / "back").exists()


REFUSED = [
    ("deepseek_v2", {"norm_topk_prob": True}, "norm_topk_prob=True is not supported"),
    ("deepseek_v2", {"topk_method": "noaux_tc"}, "only 'greedy' and 'group_limited_greedy' are"),
    ("deepseek_v2", {"topk_method": "group_limited_greedy"}, "n_group=None: it must be a whole"),
    ("deepseek_v2", {"scoring_func": "sigmoid"}, "scoring_func='sigmoid' is not supported"),
    ("deepseek_v2", {"mlp_bias": True}, "mlp_bias=True is not supported"),
    ("glm4_moe_lite", {"mlp_layer_types": ["sparse", "dense", "sparse"]}, "'dense' for some of"),
    ("glm4_moe_lite", {"mlp_layer_types": ["dense", "sparse"]}, "'sparse' for all others"),
    ("glm4_moe_lite", {"mlp_layer_types": 3}, "mlp_layer_types=3 is not supported"),
    ("glm4_moe_lite", {"first_k_dense_replace": 2}, "first_k_dense_replace=2 contradicts"),
    ("deepseek_v3", {"nobody": "x" * 2**20}, "it has more than 1048576 characters"),
    ("deepseek_v3", {"nobody": float("inf")}, "Out of range float values are not JSON compliant"),
    ("deepseek_v3", {"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 1}},
     "high_freq_factor is missing: it must be a number"),
    ("deepseek_v3", {"rope_parameters": LLAMA3 | {"low_freq_factor": 4.0}},
     "rope_scaling.low_freq_factor=4.0 is not below high_freq_factor=4.0"),
    ("deepseek_v3", {"rope_parameters": LLAMA3 | {"mscale_all_dim": 1.0}},
     "rope mscale_all_dim=1.0 is not supported with rope_type='llama3'"),
    ("glm4_moe_lite", {"scoring_func": "softmax"}, "scoring_func='softmax' is not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields", "message"), REFUSED)
def test_what_none_of_them_says_is_refused(
    name: str, fields: dict[str, Any], message: str, tmp_path: Path
) -> None:
    of_type(name).save_pretrained(tmp_path / "theirs")
    change_config(tmp_path / "theirs", **fields)
    with pytest.raises(HuggingFaceError, match=message.replace("[", r"\[")):
        load_pretrained(tmp_path / "theirs")


def test_what_is_left_out_is_as_in_transformers(tmp_path: Path, ids_BS: Tensor) -> None:
    """GLM's file need not say which layers are dense; the published one counts them as well."""
    of_type("glm4_moe_lite").save_pretrained(tmp_path / "theirs")
    expected = their_logits(tmp_path / "theirs", ids_BS)
    for narration in ({}, {"first_k_dense_replace": 1}):
        change_config(tmp_path / "theirs", mlp_layer_types=..., **narration)
        model, _ = load_pretrained(tmp_path / "theirs")
        assert_same(our_logits(model, ids_BS), expected)


@pytest.mark.parametrize("file", ["tiktoken.model", "qwen.tiktoken"])
def test_a_vocabulary_of_tiktoken_alone_is_refused_and_no_code_is_run(
    file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "theirs"
    of_type("deepseek_v3").save_pretrained(folder)
    (folder / file).write_text("IQ== 0\nIg== 1\n")
    settings = {"auto_map": {"AutoTokenizer": ["tokenization_x.X", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "tokenization_x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert command("import", folder, tmp_path / "ours") == 64
    narration = capsys.readouterr().err
    assert f"{file} is a tiktoken vocabulary without the pattern" in narration
    assert "TikTokenConverter" in narration
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]
    (folder / file).unlink()
    assert command("import", folder, tmp_path / "ours") == 0
