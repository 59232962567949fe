"""``probe --next-layer``: against the same computed with plain torch, token by token."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from microscope_tui.probe import find_sites, load
from microscope_tui.report import slices_json
from microscope_tui.routing import Routing
from tests.probe.folders import family, own, probe, text

WINDOW, TOKENS = 16, 53


def biased(folder: Path) -> Path:
    """The same DeepSeek-V3 with selection biases that are not zero."""
    torch.manual_seed(1)
    tensors = load_file(folder / "model.safetensors")
    for key, tensor in tensors.items():
        if key.endswith("e_score_correction_bias"):
            tensor.copy_(0.1 * torch.randn(tensor.shape))
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


MODELS: dict[str, tuple[Callable[[Path], Path], str, int]] = {
    "own, in groups": (
        lambda at: own(at, bias=0.1, n_routed_experts=16, n_group=4, topk_group=2), "sigmoid", 4,
    ),
    "deepseek_v3, in groups": (lambda at: biased(family("deepseek_v3", at)), "sigmoid", 2),
    "mixtral": (lambda at: family("mixtral", at), "softmax", 1),
}  # fmt: skip


def ranked(router: Any, x_D: torch.Tensor, score: str, groups: int) -> list[int]:
    """All experts that the router may choose, the best first; half of the groups are kept."""
    logits_E = router.weight.detach().float() @ x_D.float()
    choice_E = getattr(logits_E, score)(*([-1] if score == "softmax" else []))
    for name in ("expert_bias", "e_score_correction_bias"):
        choice_E = choice_E + getattr(router, name, 0.0)
    values = choice_E.tolist()
    size = len(values) // groups
    members = [range(first, first + size) for first in range(0, len(values), size)]
    members.sort(key=lambda group: -sum(sorted(values[e] for e in group)[-2:]))
    kept = [e for group in members[: max(1, groups // 2)] for e in group]
    return sorted(kept, key=lambda e: -values[e])


def oracle(model: Path, score: str, groups: int) -> list[tuple[float, float]]:
    """Shares of the pairs found in the best k and in the best 2k, of every layer but the first."""
    subject = load(str(model), device="cpu")
    routers: list[Any] = [site.scores.module for site in find_sites(subject.model, None)]  # type: ignore[union-attr]
    inputs: dict[Any, list[torch.Tensor]] = {router: [] for router in routers}
    for router in routers:
        router.register_forward_pre_hook(
            lambda router, args: inputs[router].extend(args[0].reshape(-1, args[0].shape[-1]))
        )
    ids, _ = subject.pieces.encode(text(TOKENS))
    with torch.no_grad():
        for start in range(0, len(ids), WINDOW):
            subject.forward(torch.tensor([ids[start : start + WINDOW]]), None)
    found = []
    for before, router in pairwise(routers):
        own = [ranked(router, x_D, score, groups)[:2] for x_D in inputs[router]]
        ahead = [ranked(router, x_D, score, groups)[:4] for x_D in inputs[before]]
        both = [*zip(own, ahead, strict=True)]
        hits = [sum(e in best[:n] for pair, best in both for e in pair) for n in (2, 4)]
        found.append((hits[0] / len(own) / 2, hits[1] / len(own) / 2))
    return found


def probed(model: Path, folder: Path) -> Routing:
    words = folder / "a.txt"
    words.write_text(text(TOKENS))
    how = {"window": WINDOW, "output": folder / "out", "next_layer": True}
    assert probe(model, words, **how) == 0
    return Routing(folder / "out" / "routing.bin")


@pytest.mark.parametrize("name", MODELS)
def test_what_is_found_a_layer_ahead_is_what_plain_torch_finds(name: str, tmp_path: Path) -> None:
    make, score, groups = MODELS[name]
    model = make(tmp_path / "model")
    with probed(model, tmp_path) as routing:
        assert routing.tables.next_layer == [None, *oracle(model, score, groups)]


def test_a_collapsed_layer_is_found_completely_and_so_by_its_most_popular_experts(
    tmp_path: Path,
) -> None:
    with probed(own(tmp_path / "model", collapsed=3), tmp_path) as routing:
        at = routing.shape.layers.index(3)
        found, other = (json.loads(slices_json(routing, one))["next_layer"] for one in (at, at + 1))
    assert found == {"top_k": 1, "top_2k": 1, "popular": 1, "chance": 0.25}
    assert 0 < other["top_k"] < other["top_2k"] < 1


def test_a_router_that_chooses_by_another_rule_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with probed(family("kolibri1", tmp_path / "model"), tmp_path) as routing:
        assert routing.tables.next_layer == [None] * 4
    assert "--next-layer leaves out 3 routers: their rule is not known" in caplog.messages
