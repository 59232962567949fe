"""Families of transformers whose routing cannot be read in the usual way; one claim each."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.families.oracle import count
from benchmarks.families.tiny import LAYERS, build
from benchmarks.families.trial import Outcome, Way, attempt, batch
from microscope_tui.probe import attach


def trained(family: str, folder: Path, **changes: Any) -> Outcome:
    outcome = attempt(family, Way(padding="left"), folder, **changes)
    assert outcome.problems() == []
    return outcome


def one_step(model: nn.Module, folder: Path, **inputs: Any) -> dict[str, Any]:
    with attach(model, folder) as probe:
        model(**inputs)
        probe.step()
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[1])


def test_a_skipped_layer_of_zaya_is_unrouted_and_no_pair_of_expert_0(tmp_path: Path) -> None:
    model = build("zaya")
    with torch.no_grad():
        for name, bias in model.named_buffers():
            if name.endswith("balancing_biases"):
                bias.zero_()
                bias[-1] = 10.0 if ".layers.1." in name else -10.0
    inputs, real = batch("zaya", model, "right", 0)
    line = one_step(model, tmp_path, **inputs)
    assert line["router"]["unrouted"] == [0, sum(real[""]), 0, 0]
    assert sum(line["tokens_per_expert"][1]) == 0


def test_identity_experts_of_longcat_are_unrouted(tmp_path: Path) -> None:
    outcome = trained("longcat_flash", tmp_path)
    elsewhere = outcome.line["router"]["unrouted"]
    assert 0 < sum(elsewhere) < 2 * len(elsewhere) * outcome.line["tokens"]
    assert outcome.run["model"]["num_experts"] == 8


def test_experts_that_cannot_be_asked_alone_cost_the_norms_only(tmp_path: Path) -> None:
    line = trained("longcat_flash", tmp_path).line
    assert line["mean_output_norm"] == [[]] * len(line["tokens_per_expert"])
    assert all(len(row) == 8 for row in line["mean_weight"])


def test_hash_routed_layers_of_deepseek_v4_keep_their_place(tmp_path: Path) -> None:
    outcome = trained("deepseek_v4", tmp_path)
    assert outcome.run["model"]["layers"] == [0, 1, 2, 3]  # router_logits has fewer
    entropy = outcome.line["router"]["entropy"]
    assert 0 < [value is None for value in entropy].count(True) < LAYERS


def test_a_fresh_hash_table_of_deepseek_v4_is_logged_as_it_routes(tmp_path: Path) -> None:
    model = build("deepseek_v4")
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):
            table.zero_()
    line = one_step(model, tmp_path, **batch("deepseek_v4", model, "left", 0)[0])
    # Expert 0 twice for every token: a fault of the model, and shown.
    assert line["tokens_per_expert"][0] == [2 * line["tokens"]] + [0] * 7


def test_both_routers_of_a_layer_of_jetmoe_are_kept_apart_attention_first(tmp_path: Path) -> None:
    outcome = trained("jetmoe", tmp_path)
    names = outcome.run["model"]["layer_names"]
    assert names[:2] == ["L0.attn", "L0"] or names[0].endswith(".attn")
    assert len(names) == 2 * LAYERS
    assert outcome.run["model"]["layers"] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_looped_layer_has_a_row_for_every_pass(tmp_path: Path) -> None:
    outcome = trained("inkling2_loop", tmp_path)
    names = outcome.run["model"]["layer_names"]
    assert {"L1#1", "L1#2", "L2#1", "L2#2"} <= set(names)
    rows = dict(zip(names, outcome.line["tokens_per_expert"], strict=True))
    assert rows["L1#1"] != rows["L1#2"]


def test_llama4_is_counted_though_its_experts_see_every_token(tmp_path: Path) -> None:
    outcome = trained("llama4", tmp_path, num_experts_per_tok=2)
    assert outcome.run["model"]["score_function"] == "sigmoid"


def test_product_keys_of_doge_name_experts_by_pairs(tmp_path: Path) -> None:
    outcome = trained("doge", tmp_path)
    assert outcome.run["model"]["num_experts"] == 16


def test_encoder_and_decoder_are_kept_apart(tmp_path: Path) -> None:
    outcome = trained("switch_transformers", tmp_path)
    names = outcome.run["model"]["layer_names"]
    assert [name.partition(".")[0] for name in names] == ["enc", "enc", "dec", "dec"]


def test_labels_alone_tell_which_decoder_tokens_are_real(tmp_path: Path) -> None:
    model = build("switch_transformers")
    inputs, _ = batch("switch_transformers", model, "right", 0)
    labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    line = one_step(model, tmp_path, **given, labels=labels)
    encoder, decoder = line["router"]["tokens"][0], line["router"]["tokens"][-1]
    # A start token before every sequence, and its last token where there was padding.
    assert (encoder, decoder) == (21, 10 + 8 + 5)


def test_the_canvas_of_diffusion_gemma_is_no_part_of_the_prompt(tmp_path: Path) -> None:
    outcome = trained("diffusion_gemma", tmp_path)
    assert outcome.tokens["enc.0"] == 21
    assert outcome.tokens["dec.0"] == 24


def test_text_and_vision_experts_of_ernie_see_their_own_tokens(tmp_path: Path) -> None:
    model = build("ernie4_5_vl_moe")
    inputs, real = batch("ernie4_5_vl_moe", model, "left", 0)
    types_BS = torch.zeros_like(inputs["input_ids"])
    types_BS[0, 2:6] = 1  # real tokens of an image; the padding counts for neither
    chosen: dict[str, list[list[int]]] = {}
    for path, module in model.named_modules():
        if type(module).__name__ == "Ernie4_5_VLMoeMoeTopKRouter":

            def keep(module: Any, args: Any, output: Any, path: str = path) -> None:
                chosen[path] = output[2].tolist()

            module.register_forward_hook(keep)
        if type(module).__name__ == "Ernie4_5_VLMoeMoeBlock":
            module.register_forward_pre_hook(_with_types(types_BS), with_kwargs=True)
    line = one_step(model, tmp_path, **inputs)
    run = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    names = run["model"]["layer_names"]
    rows = dict(zip(names, line["tokens_per_expert"], strict=True))
    is_vision = types_BS.flatten().bool().tolist()
    for path, ids in chosen.items():
        vision = "vision_moe" in path
        depth = path.split(".layers.")[1].partition(".")[0]
        mine = [r for r, v in zip(real[""], is_vision, strict=True) if v == vision]
        assert rows[f"L{depth}.{'vis' if vision else 'text'}"] == count(ids, mine, 8)[0]
    assert len(chosen) == len(names)


def _with_types(types_BS: Tensor) -> Any:
    def change(module: Any, args: Any, kwargs: Any) -> Any:
        return args[:1], kwargs | {"moe_mm_token_type_ids": types_BS}

    return change


def test_a_vision_router_that_is_never_called_has_seen_no_token(tmp_path: Path) -> None:
    model = build("ernie4_5_vl_moe")
    inputs, _ = batch("ernie4_5_vl_moe", model, "left", 0)
    line = one_step(model, tmp_path, **inputs)
    assert "incomplete" not in line
    assert 0 in line["router"]["tokens"]
    assert [sum(row) == 0 for row in line["tokens_per_expert"]].count(True) >= 1


@pytest.mark.parametrize("family", ["gemma4", "diffusion_gemma"])
def test_probabilities_are_not_softmaxed_again(family: str, tmp_path: Path) -> None:
    model = build(family)
    inputs, real = batch(family, model, "right", 0)
    seen: list[Tensor] = []
    router = next(m for m in model.modules() if type(m).__name__.endswith("TextRouter"))
    router.register_forward_hook(lambda module, args, output: seen.append(output[0].detach()))
    line = one_step(model, tmp_path, **inputs)
    p_TE = seen[0].double()[torch.tensor(real[""])]
    entropy = -(p_TE * p_TE.log()).sum(-1).mean()
    assert line["router"]["entropy"][0] == pytest.approx(float(entropy), rel=1e-4)
    assert "z_loss" not in line["router"]


def test_sampled_choices_of_phimoe_are_counted_as_chosen(tmp_path: Path) -> None:
    trained("phimoe", tmp_path)


def test_rejected_groups_that_win_in_axk2_are_counted(tmp_path: Path) -> None:
    model = build("axk2")
    for name, bias in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            bias.sub_(5.0)  # all choice scores negative: zero, that of the rejected, wins
    inputs, _ = batch("axk2", model, "right", 0)
    chosen: list[Tensor] = []
    router = next(m for m in model.modules() if type(m).__name__ == "AXK2TopkRouter")
    router.register_forward_hook(lambda module, args, output: chosen.append(output[2].detach()))
    line = one_step(model, tmp_path, **inputs)
    real_T = inputs["attention_mask"].flatten().bool()
    expected = torch.bincount(chosen[0][real_T].flatten(), minlength=8).tolist()
    assert line["tokens_per_expert"][0] == expected


@pytest.mark.parametrize("family", ["afmoe", "laguna", "ernie4_5_moe", "lfm2_moe", "zaya"])
def test_the_selection_bias_is_found_wherever_it_lies(family: str, tmp_path: Path) -> None:
    outcome = trained(family, tmp_path)
    assert all(len(row) == 8 for row in outcome.line["expert_bias"])
    assert any(any(row) for row in outcome.line["expert_bias"])


def test_a_learned_router_bias_is_no_selection_bias(tmp_path: Path) -> None:
    assert trained("gpt_oss", tmp_path).line["expert_bias"] == []


@pytest.mark.parametrize(
    ("family", "kind"),
    [("mixtral", "softmax"), ("deepseek_v3", "sigmoid"), ("deepseek_v4", "sqrtsoftplus")],
)
def test_entropy_follows_the_score_function_of_the_family(
    family: str, kind: str, tmp_path: Path
) -> None:
    model = build(family)
    inputs, real = batch(family, model, "left", 0)
    logits: list[Tensor] = []
    for module in model.modules():
        if type(module).__name__.endswith(("TopKRouter", "TopkRouter")):
            module.register_forward_hook(lambda m, args, output: logits.append(output[0].detach()))
    line = one_step(model, tmp_path, **inputs)
    scores = {
        "softmax": lambda x: x.softmax(-1),
        "sigmoid": torch.sigmoid,
        "sqrtsoftplus": lambda x: nn.functional.softplus(x).sqrt(),
    }[kind]
    x_TE = logits[-1].double()[torch.tensor(real[""])]
    p_TE = scores(x_TE) / scores(x_TE).sum(-1, keepdim=True)
    router = line["router"]
    expected = -(p_TE * p_TE.log()).sum(-1).mean()
    assert router["entropy"][-1] == pytest.approx(float(expected), rel=1e-4)
    mean_E = p_TE.mean(0)
    assert router["mean_entropy"][-1] == pytest.approx(float(-(mean_E * mean_E.log()).sum()), 1e-4)
    assert router["z_loss"][-1] == pytest.approx(float(x_TE.logsumexp(-1).square().mean()), 1e-4)
    assert router["max_logit"][-1] == pytest.approx(float(x_TE.abs().max()), rel=1e-4)
