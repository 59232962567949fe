"""The benchmark that asks whether a mixture pays measures what it reports."""

import math
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.learning import __main__ as learning, facts, sources, text
from benchmarks.learning.training import build
from moe_model.training.corpus import Document

SMALL = {"hidden_size": 16, "batch_size": 16, "steps": 3, "facts": 24, "exposures": 2}


@pytest.mark.parametrize("name", ["facts", "sources", "text"])
def test_a_finished_run_is_kept_and_not_run_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    question = {"facts": facts, "sources": sources, "text": text}[name]
    monkeypatch.setattr(text, "_files", lambda: [Document("a", "line\n" * 2000)])
    recipe = question.PLAN[0][0] | SMALL
    monkeypatch.setattr(question, "PLAN", [(recipe, ("dense", "8"), [0])])
    results = tmp_path / "results.jsonl"
    monkeypatch.setattr(sys, "argv", ["learning", name, f"--results={results}"])
    learning.main()
    first = capsys.readouterr().out
    kept = results.read_text()
    assert len(kept.splitlines()) == 2
    learning.main()
    assert results.read_text() == kept
    assert first.endswith(capsys.readouterr().out)


def test_all_models_are_equal_outside_of_the_feed_forwards_and_of_equal_active_size() -> None:
    recipe = facts.PLAN[0][0]
    dense, control, mixture = (build(recipe, experts, seed=1) for experts in (0, 2, 16))
    weights, others = dict(dense.named_parameters()), dict(mixture.named_parameters())
    shared = [name for name in weights if ".mlp." not in name]
    assert all(torch.equal(weights[name], others[name]) for name in shared)
    active = sum(w.numel() for name, w in control.named_parameters() if "router" not in name)
    assert active == sum(weight.numel() for weight in weights.values())


def test_few_facts_are_stored_to_the_last_bit() -> None:
    recipe = facts.PLAN[0][0] | {"facts": 16, "batch_size": 16, "steps": 40, "exposures": 40}
    assert 19.5 < facts.measure(recipe, 4, 0)["bits/fact"] < 20


def test_a_source_follows_its_own_table_after_its_marker() -> None:
    repeating = torch.eye(4).expand(4, 4, 4, 4)
    tables = torch.stack([repeating, repeating.roll(1, -1)])  # x, x, x and x, x + 1, x + 2
    ids_BS, _ = next(sources.sequences(tables, 6, 9, torch.Generator().manual_seed(0)))
    assert ids_BS[:, 0].tolist() == [4, 5, 4, 5, 4, 5]
    assert ((ids_BS[:, 4:] - ids_BS[:, 3:-1]) % 4 == ids_BS[:, :1] - 4).all()


def test_mutual_information_by_hand() -> None:
    assert sources.mutual_information(torch.tensor([[5, 0], [0, 5]])) == pytest.approx(math.log(2))
    assert sources.mutual_information(torch.tensor([[1, 2], [2, 4]])) == pytest.approx(0)
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert sources.mutual_information(torch.tensor([[3, 1], [1, 3]])) == pytest.approx(by_hand)


def test_a_difference_is_claimed_from_three_standard_errors_on() -> None:
    assert learning.paired({0: 1.0, 1: 2.0}, {0: 0.0, 1: 0.0}) == "**+1.5000 ± 0.5000**"
    assert learning.paired({0: 1.0, 1: 2.1, 2: 9.0}, {0: 0.0, 1: 0.0}) == "+1.5500 ± 0.5500"
