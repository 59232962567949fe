"""Routers of transformers with a capacity: demand and drops against a count token by token."""

from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from benchmarks.families.tiny import build
from benchmarks.families.trial import LENGTHS, SEQUENCE, batch
from microscope_tui.probe import attach
from tests.probe.layers import records

EXPERTS = 8


def logged(model: Any, kind: str, inputs: dict[str, Tensor], folder: Path) -> tuple[Any, list[Any]]:
    """The line of one step, and what every router was given and returned, in forward order."""
    calls: list[Any] = []

    def keep(module: Any, args: Any, output: Any) -> None:
        calls.append((module, args[0].detach(), [part.detach().clone() for part in output]))

    for module in model.modules():
        if type(module).__name__ == kind:
            module.register_forward_hook(keep)
    with attach(model, folder) as probe:
        model(**inputs)
        probe.step()
    (line,) = records(folder)
    return line, calls


def counts_of(chosen: list[tuple[int, ...]]) -> list[int]:
    return [sum(e in ids for ids in chosen) for e in range(EXPERTS)]


@pytest.mark.parametrize("capacity", [1, 2])
def test_switch_counts_the_demand_and_reports_what_the_capacity_dropped(
    capacity: int, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("policy", ["all", "sampling"])
def test_nllb_counts_both_choices_and_reports_what_the_capacity_dropped(
    policy: str, tmp_path: Path
) -> None:
    capacity = 4
    model = build("nllb_moe", expert_capacity=capacity, second_expert_policy=policy)
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
        assert line["tokens_per_expert"][row] == counts_of(list(zip(firsts, seconds, strict=True)))
        pairs = 2 * SEQUENCE * len(LENGTHS)
        assert line["router"]["drop_rate"][row] == pytest.approx(dropped / pairs, rel=1e-4)
        assert dropped > 0
