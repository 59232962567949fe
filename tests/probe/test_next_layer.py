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


def oracle(model: Path, score: str, groups: int) -> list[list[list[int]]]:
    """Pairs of each expert found in the best k and in the best 2k, of every layer but the first."""
    subject = load(str(model), device="cpu")
    routers: list[Any] = [site.scores.module for site in find_sites(subject.model, None)]  # type: ignore[union-attr]
    inputs: dict[Any, list[torch.Tensor]] = {router: [] for router in routers}
    for router in routers:
        router.register_forward_pre_hook(
            lambda router, args: inputs[router].extend(args[0].reshape(-1, args[0].shape[-1]))
        )
    ids, _ = subject.pieces.encode(text(TOKENS))
    with torch.no_grad():
        for start in [*range(0, len(ids), WINDOW)] * 2:
            subject.forward(torch.tensor([ids[start : start + WINDOW]]), None)
    found = []
    for before, router in pairwise(routers):
        hits = [[0] * len(router.weight) for _ in range(2)]
        for x_D, own_D in zip(inputs[before], inputs[router], strict=True):
            guess = ranked(router, x_D, score, groups)
            for expert in ranked(router, own_D, score, groups)[:2]:
                hits[0][expert] += expert in guess[:2]
                hits[1][expert] += expert in guess[:4]
        found.append(hits)
    return found


def probed(model: Path, folder: Path, **options: Any) -> Routing:
    """Two texts in batches of three windows, of which the fourth is shorter: with padding."""
    words = [folder / "a.txt", folder / "b.txt"]
    for file in words:
        file.write_text(text(TOKENS))
    how = {"window": WINDOW, "batch_size": 3, "output": folder / "out"} | options
    assert probe(model, *words, **how) == 0
    return Routing(folder / "out" / "routing.bin")


@pytest.mark.parametrize("name", MODELS)
def test_what_is_found_a_layer_ahead_is_what_plain_torch_finds(name: str, tmp_path: Path) -> None:
    make, score, groups = MODELS[name]
    model = make(tmp_path / "model")
    with probed(model, tmp_path, next_layer=True) as routing:
        assert routing.tables.next_layer[0] is None
        assert routing.tables.next_layer[1:] == oracle(model, score, groups)


def shares(routing: Routing, layer: int) -> Any:
    return json.loads(slices_json(routing, layer))


def test_a_collapsed_layer_is_found_completely_and_so_by_its_most_popular_experts(
    tmp_path: Path,
) -> None:
    model = own(tmp_path / "model", collapsed=3)
    with probed(model, tmp_path, next_layer=True) as routing:
        depths = routing.shape.layers
        found = shares(routing, depths.index(3))
        other = shares(routing, depths.index(4))
    assert found["next_layer"] == {"top_k": 1, "top_2k": 1, "popular": 1, "chance": 0.25}
    assert [row["ahead"] for row in found["experts"]] == [1, 1] + [None] * 6
    assert 0 < other["next_layer"]["top_k"] < other["next_layer"]["top_2k"] < 1


def test_a_router_that_chooses_by_another_rule_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with probed(family("kolibri1", tmp_path / "model"), tmp_path, next_layer=True) as routing:
        assert routing.tables.next_layer == [None] * 4
    warning = "--next-layer leaves out L1, L2, L3: how they choose is not known"
    assert warning in caplog.messages


def test_nothing_is_measured_without_the_option(tmp_path: Path) -> None:
    with probed(own(tmp_path / "model"), tmp_path) as routing:
        assert routing.tables.next_layer == []
        assert shares(routing, 1)["next_layer"] is None
