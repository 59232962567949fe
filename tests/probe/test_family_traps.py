"""Families of transformers whose routing cannot be read in the usual way; one claim each."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.families.oracle import count
from benchmarks.families.tiny import build
from benchmarks.families.trial import LENGTHS, SEQUENCE, WAYS, attempt, batch
from tests.probe.layers import one_step, records

EXPERTS = 8


def logged(model: Any, kind: Any, inputs: dict[str, Tensor], folder: Path) -> tuple[Any, list[Any]]:
    """The line of one step, and what every router (by the end of its class) was given and returned,
    in forward order."""
    calls: list[Any] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        calls.append((module, args[0].detach(), [part.detach().clone() for part in output]))

    for module in model.modules():
        if type(module).__name__.endswith(kind):
            module.register_forward_hook(keep)
    return one_step(model, folder, **inputs), calls


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
    line = attempt("longcat_flash", WAYS["left"], tmp_path).line
    elsewhere = line["router"]["unrouted"]
    assert 0 < sum(elsewhere) < 2 * len(elsewhere) * line["tokens"]
    # Before transformers 5.25 the experts get ids that one of them alone cannot be run with.
    assert {len(row) for row in line["mean_output_norm"]} <= {0, 8}
    assert all(len(row) == 8 for row in line["mean_weight"])


def test_hash_routed_layers_of_deepseek_v4_have_no_entropy(tmp_path: Path) -> None:
    entropy = attempt("deepseek_v4", WAYS["left"], tmp_path).line["router"]["entropy"]
    assert [value is None for value in entropy] == [True, True, True, False]


def test_the_canvas_of_diffusion_gemma_is_not_a_part_of_the_prompt(tmp_path: Path) -> None:
    outcome = attempt("diffusion_gemma", WAYS["left"], tmp_path)
    assert outcome.problems() == []
    assert (outcome.tokens["enc.0"], outcome.tokens["dec.0"]) == (21, 24)


def test_a_fresh_hash_table_of_deepseek_v4_is_logged_as_it_routes(tmp_path: Path) -> None:
    model = build("deepseek_v4")
    for name, table in model.named_buffers():
        if name.endswith("tid2eid"):
            table.zero_()
    line = one_step(model, tmp_path, **batch("deepseek_v4", model, "left", 0)[0])
    # Expert 0 twice for every token: a fault of the model, and shown.
    assert line["tokens_per_expert"][0] == [2 * line["tokens"]] + [0] * 7


def test_labels_alone_tell_which_decoder_tokens_are_real(tmp_path: Path) -> None:
    model = build("switch_transformers")
    inputs, _ = batch("switch_transformers", model, "right", 0)
    labels = inputs["input_ids"].where(inputs["attention_mask"].bool(), -100)
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    line = one_step(model, tmp_path, **given, labels=labels)
    encoder, decoder = line["router"]["tokens"][0], line["router"]["tokens"][-1]
    # A start token before every sequence, and its last token where there was padding.
    assert (encoder, decoder) == (21, 10 + 8 + 5)


@pytest.mark.parametrize("images", [True, False])
def test_text_and_image_experts_of_ernie_see_their_own_tokens(images: bool, tmp_path: Path) -> None:
    model = build("ernie4_5_vl_moe")
    inputs, real = batch("ernie4_5_vl_moe", model, "left", 0)
    types_BS = torch.zeros_like(inputs["input_ids"])
    types_BS[0, 2:6] = int(images)  # real tokens of an image; the padding counts for neither
    types = {"moe_mm_token_type_ids": types_BS}
    chosen: dict[str, list[list[int]]] = {}
    for path, module in model.named_modules():
        if type(module).__name__ == "Ernie4_5_VLMoeMoeTopKRouter":

            def keep(module: Any, args: Any, output: Any, path: str = path) -> None:
                depth = path.split(".layers.")[1].partition(".")[0]
                chosen[f"L{depth}.{'vis' if 'vision_moe' in path else 'text'}"] = output[2].tolist()

            module.register_forward_hook(keep)
        if images and type(module).__name__ == "Ernie4_5_VLMoeMoeBlock":
            module.register_forward_pre_hook(
                lambda module, args, kwargs: (args[:1], kwargs | types), with_kwargs=True
            )
    line = one_step(model, tmp_path, **inputs)
    assert "incomplete" not in line
    (run,) = records(tmp_path, "run")
    is_vision = types_BS.flatten().bool().tolist()
    for name, row in zip(run["model"]["layer_names"], line["tokens_per_expert"], strict=True):
        if name.endswith(".vis") and not images:
            assert (name in chosen, sum(row)) == (False, 0)  # it is not called
            continue
        pairs = zip(real[""], is_vision, strict=True)
        mine = [is_real for is_real, vision in pairs if vision == name.endswith(".vis")]
        assert row == count(chosen[name], mine, 8)[0]


@pytest.mark.parametrize("family", ["gemma4", "diffusion_gemma"])
def test_probabilities_are_not_softmaxed_again(family: str, tmp_path: Path) -> None:
    model = build(family)
    inputs, real = batch(family, model, "right", 0)
    line, calls = logged(model, "TextRouter", inputs, tmp_path)
    p_TE = calls[0][2][0].double()[torch.tensor(real[""])]
    entropy = -(p_TE * p_TE.log()).sum(-1).mean()
    assert line["router"]["entropy"][0] == pytest.approx(float(entropy), rel=1e-4)
    assert "z_loss" not in line["router"]


def test_rejected_groups_that_win_in_axk2_are_counted(tmp_path: Path) -> None:
    model = build("axk2")
    for name, bias in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            bias.sub_(5.0)  # all choice scores negative: zero, that of the rejected, wins
    inputs, _ = batch("axk2", model, "right", 0)
    line, calls = logged(model, "AXK2TopkRouter", inputs, tmp_path)
    real_T = inputs["attention_mask"].flatten().bool()
    expected = torch.bincount(calls[0][2][2][real_T].flatten(), minlength=8).tolist()
    assert line["tokens_per_expert"][0] == expected


@pytest.mark.parametrize(
    ("family", "kind"),
    [("mixtral", "softmax"), ("deepseek_v3", "sigmoid"), ("deepseek_v4", "sqrtsoftplus")],
)
def test_entropy_follows_the_score_function(family: str, kind: str, tmp_path: Path) -> None:
    model = build(family)
    inputs, real = batch(family, model, "left", 0)
    line, calls = logged(model, ("TopKRouter", "TopkRouter"), inputs, tmp_path)
    scores = {
        "softmax": lambda x: x.softmax(-1),
        "sigmoid": torch.sigmoid,
        "sqrtsoftplus": lambda x: torch.nn.functional.softplus(x).sqrt(),
    }[kind]
    x_TE = calls[-1][2][0].double()[torch.tensor(real[""])]
    p_TE = scores(x_TE) / scores(x_TE).sum(-1, keepdim=True)
    router = line["router"]
    expected = -(p_TE * p_TE.log()).sum(-1).mean()
    assert router["entropy"][-1] == pytest.approx(float(expected), rel=1e-4)
    mean_E = p_TE.mean(0)
    assert router["mean_entropy"][-1] == pytest.approx(float(-(mean_E * mean_E.log()).sum()), 1e-4)
    assert router["z_loss"][-1] == pytest.approx(float(x_TE.logsumexp(-1).square().mean()), 1e-4)
    assert router["max_logit"][-1] == pytest.approx(float(x_TE.abs().max()), rel=1e-4)


@pytest.mark.parametrize("capacity", [1, 2])
def test_switch_counts_demand_and_reports_what_it_dropped(capacity: int, tmp_path: Path) -> None:
    model = build("switch_transformers", expert_capacity=capacity)
    inputs, _ = batch("switch_transformers", model, "right", 0)
    line, calls = logged(model, "SwitchTransformersTop1Router", inputs, tmp_path)
    for row, (_, _, (_, _, logits_BSE)) in enumerate(calls):
        demand, dropped = [0] * EXPERTS, 0
        for sequence, length in zip(logits_BSE.double().argmax(-1).tolist(), LENGTHS, strict=True):
            for place in range(length):  # every sequence fills the experts anew
                expert = sequence[place]
                demand[expert] += 1
                dropped += sequence[:place].count(expert) >= capacity
        assert line["tokens_per_expert"][row] == demand
        assert line["router"]["drop_rate"][row] == pytest.approx(dropped / sum(LENGTHS), rel=1e-4)
        assert dropped > 0


def test_nllb_counts_both_choices_and_reports_what_the_capacity_dropped(tmp_path: Path) -> None:
    capacity = 4
    model = build("nllb_moe", expert_capacity=capacity)
    inputs, _ = batch("nllb_moe", model, "right", 0)
    inputs = {name: inputs[name] for name in ("input_ids", "decoder_input_ids")}
    line, calls = logged(model, "NllbMoeTop2Router", inputs, tmp_path)
    for row, (router, hidden_TD, (_, _, noisy_TE)) in enumerate(calls):
        clean = hidden_TD.double() @ router.classifier.weight.detach().double().T
        firsts = clean.argmax(-1).tolist()
        seconds = []
        for first, scores in zip(firsts, noisy_TE.tolist(), strict=True):
            scores[first] = float("-inf")
            seconds.append(scores.index(max(scores)))
        # First choices come first; second ones queue behind all of them.
        dropped = sum(firsts[:t].count(e) >= capacity for t, e in enumerate(firsts))
        dropped += sum(
            firsts.count(e) + seconds[:t].count(e) >= capacity for t, e in enumerate(seconds)
        )
        chosen = [*firsts, *seconds]
        assert line["tokens_per_expert"][row] == [chosen.count(e) for e in range(EXPERTS)]
        pairs = 2 * SEQUENCE * len(LENGTHS)
        assert line["router"]["drop_rate"][row] == pytest.approx(dropped / pairs, rel=1e-4)
        assert dropped > 0
