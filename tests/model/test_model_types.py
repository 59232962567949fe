"""Every model type, imported, computes what transformers does, and goes back as the same type.

The oracle is transformers' own class of each, through disk.
"""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks.transformers_peer import their_name
from moe_model import WEIGHTS, LanguageModel, read_checkpoint
from moe_model.attention import LatentCache
from moe_model.decoder import Decoder
from moe_model.store import file_facts
from tests.model.published import (
    LLAMA3,
    TOLERANCE,
    YARN,
    assert_same,
    change_config,
    change_tensors,
    command,
    of_type,
    our_logits,
    tensors,
    their_logits,
)

BEST = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2}
PAIRS = {"n_group": 4, "topk_group": 2}
LOW_RANK, BIASES = {"q_lora_rank": 20}, {"attention_bias": True}
V2_LITE_YARN = YARN | {"mscale": 0.707, "mscale_all_dim": 0.707, "factor": 40.0}
VARIANTS = [
    pytest.param((name, fields), id=f"{name}: {what}")
    for name, what, fields in (
        ("deepseek_v3", "full query", {}),
        ("deepseek_v3", "groups, yarn", {**LOW_RANK, **PAIRS, "rope_parameters": YARN}),
        ("deepseek_v3", "biases", {**LOW_RANK, **BIASES}),
        ("deepseek_v3", "biases, full query", BIASES),
        ("deepseek_v3", "Llama 3's positions", {"rope_parameters": LLAMA3}),
        ("deepseek_v3", "tied head", {"tie_word_embeddings": True}),
        ("deepseek_v3", "no shared experts", {"n_shared_experts": 0}),
        ("deepseek_v2", "Lite", {"rope_parameters": V2_LITE_YARN}),
        ("deepseek_v2", "groups", {**LOW_RANK, **BEST, "routed_scaling_factor": 16.0}),
        ("deepseek_v2", "groups of one", {**BEST, "n_group": 16, "topk_group": 5}),
        ("deepseek_v2", "greedy ignores groups", {"n_group": 8, "topk_group": 3}),
        ("deepseek_v2", "biases, yarn", {**LOW_RANK, **BIASES, **BEST, "rope_parameters": YARN}),
        ("deepseek_v2", "biases, full query", BIASES),
        ("glm4_moe_lite", "as published", LOW_RANK),
        ("glm4_moe_lite", "groups", {**PAIRS, "rope_parameters": YARN}),
        ("glm4_moe_lite", "biases", {**LOW_RANK, **BIASES}),
        ("glm4_moe_lite", "two dense", {"mlp_layer_types": ["dense", "dense", "sparse"]}),
    )
]
EMPTY = "ignore:Initializing zero-element tensors:UserWarning"
pytestmark = pytest.mark.filterwarnings(EMPTY)


class Case(NamedTuple):
    theirs: Any
    folder: Path
    """As published."""
    ours: Path
    """The checkpoint."""
    model: LanguageModel


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, fields = request.param
    folder = tmp_path_factory.mktemp("case") / "theirs"
    theirs = of_type(name, **fields, bos_token_id=5, eos_token_id=[7, 9], pad_token_id=3)
    theirs.save_pretrained(folder)
    change_config(folder, aux_loss_alpha=0.001, ep_size=1, use_cache=False,
                  auto_map={"AutoModel": "code.Model"}, _name_or_path="/home")  # fmt: skip
    ours = folder.parent / "ours"
    assert command("import", folder, ours) == 0
    return Case(theirs, folder, ours, read_checkpoint(ours).load_model())


def test_logits_read_at_once_and_in_parts_are_theirs(case: Case, ids_BS: Tensor) -> None:
    """In parts with a cache, and with the prepared weights that generate a text."""
    model = case.model
    assert_same(our_logits(model, ids_BS), their_logits(case.folder, ids_BS))
    past, cache = DynamicCache(config=case.theirs.config), LatentCache(model.config, 1, 24)
    decoder = Decoder(model, 24, weights=torch.float32)
    with torch.no_grad():
        for start, end in pairwise([0, 9, 10, 13, 22, 23, 24]):
            now = ids_BS[:1, start:end]
            expected = case.theirs(now, cache=past, use_cache=True).logits
            assert_same(model(now, cache=cache).logits_BSV, expected)
            assert_same(decoder.read(now[0].tolist())[0], expected[0])


def test_gradients_of_every_weight_are_theirs(case: Case, ids_BS: Tensor) -> None:
    theirs, targets = case.theirs, ids_BS.roll(-1, dims=1).flatten()
    case.model.zero_grad()
    F.cross_entropy(theirs(ids_BS, use_cache=False).logits.flatten(0, 1), targets).backward()
    F.cross_entropy(case.model(ids_BS).logits_BSV.flatten(0, 1), targets).backward()
    expected = {n: p.grad for n, p in theirs.named_parameters() if p.numel()}
    ours = {their_name(n): p.grad for n, p in case.model.named_parameters()}
    assert ours.keys() == expected.keys()
    for weight, gradient in expected.items():
        assert gradient.norm() > 0, weight
        torch.testing.assert_close(ours[weight], gradient, atol=TOLERANCE, rtol=1e-4)


def test_an_export_has_the_class_and_all_fields_of_the_import(
    case: Case, tmp_path: Path, ids_BS: Tensor
) -> None:
    back = tmp_path / "back"
    assert command("export", case.ours, back) == 0
    before, after = (json.loads((f / "config.json").read_text()) for f in (case.folder, back))
    dropped = {"auto_map", "_name_or_path", "transformers_version"}
    assert not dropped & after.keys()
    # Greedy has no groups, null there and 1 here; of multi-token prediction there are no layers.
    written_differently = {"rope_parameters", "n_group", "topk_group", "num_nextn_predict_layers"}
    same = before.keys() - dropped - written_differently
    assert {n: after[n] for n in same} == {n: before[n] for n in same}
    again, report = AutoModelForCausalLM.from_pretrained(back, output_loading_info=True)
    assert type(again) is type(case.theirs)
    assert not report["missing_keys"]
    kept, original = tensors(back), tensors(case.folder)
    assert {n: t.shape for n, t in kept.items()} == {n: t.shape for n, t in original.items()}
    assert_same(their_logits(back, ids_BS), their_logits(case.folder, ids_BS))
    # And back again, bit for bit.
    assert command("import", back, tmp_path / "ours again") == 0
    assert read_checkpoint(tmp_path / "ours again").config == case.model.config
    assert (case.ours / WEIGHTS).read_bytes() == (tmp_path / "ours again" / WEIGHTS).read_bytes()


def test_a_bias_that_has_no_place_is_not_lost_in_silence(tmp_path: Path, capsys: Any) -> None:
    of_type("deepseek_v2").save_pretrained(tmp_path / "theirs")
    assert command("import", tmp_path / "theirs", tmp_path / "ours") == 0
    path = tmp_path / "ours" / "checkpoint.json"
    described = json.loads(path.read_text())
    described.pop("sha256")
    change_tensors(tmp_path / "ours", lambda t: t["layers.1.mlp.router.expert_bias"].fill_(0.1))
    described["files"][WEIGHTS] = file_facts(tmp_path / "ours" / WEIGHTS)
    path.write_text(json.dumps(described))
    assert command("export", tmp_path / "ours", tmp_path / "back") == 64
    message = capsys.readouterr().err
    assert "layers.1.mlp.router.expert_bias is not zero, and a deepseek_v2 has no such" in message
    assert not (tmp_path / "back").exists()
