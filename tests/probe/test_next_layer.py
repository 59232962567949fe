"""``probe --next-layer``: against the same computed with plain torch, token by token."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from microscope_tui.extensions.anatomy.as_json import slices_json
from microscope_tui.extensions.anatomy.checkpoints import load
from microscope_tui.extensions.anatomy.routing_file import Routing
from microscope_tui.probe import find_sites
from tests.probe.folders import family, own, probe, text

WINDOW, TOKENS = 16, 53
GROUPED = {"n_routed_experts": 16, "n_group": 4, "topk_group": 2}
MODELS: dict[str, tuple[Callable[[Path], Path], int]] = {
    "own": (lambda at: own(at, bias=0.1, **GROUPED), 4),
    "deepseek_v3": (lambda at: family("deepseek_v3", at), 2),
    "mixtral": (lambda at: family("mixtral", at), 1),
}
"""How it is made, and its groups of experts; the first two have biases."""


def ranked(router: Any, x_D: torch.Tensor, groups: int) -> list[int]:
    """All experts that the router may choose, the best first; half of the groups are kept."""
    choice_E = (router.weight.detach().float() @ x_D.float()).sigmoid()  # in the order of a softmax
    for name in ("expert_bias", "e_score_correction_bias"):
        choice_E = choice_E + getattr(router, name, 0.0)
    values = choice_E.tolist()
    size = len(values) // groups
    members = [range(first, first + size) for first in range(0, len(values), size)]
    members.sort(key=lambda group: -sum(sorted(values[e] for e in group)[-2:]))
    kept = [e for group in members[: max(1, groups // 2)] for e in group]
    return sorted(kept, key=lambda e: -values[e])


def oracle(model: Path, groups: int) -> list[tuple[float, float]]:
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
        calls = zip(inputs[router], inputs[before], strict=True)
        both = [[ranked(router, x_D, groups) for x_D in call] for call in calls]
        pairs = [(expert, ahead) for own, ahead in both for expert in own[:2]]
        hits = (sum(e in best[:n] for e, best in pairs) / len(pairs) for n in (2, 4))
        found.append((next(hits), next(hits)))
    return found


def ahead(model: Path, folder: Path) -> tuple[Any, dict[int, Any]]:
    words = folder / "a.txt"
    words.write_text(text(TOKENS))
    how = {"window": WINDOW, "batch_size": 4, "next_layer": True}
    assert probe(model, words, output=folder / "out", **how) == 0
    with Routing(folder / "out" / "routing.bin") as routing:
        pages = [json.loads(slices_json(routing, at)) for at in range(len(routing.shape.layers))]
        return routing.tables.next_layer, {page["depth"]: page["next_layer"] for page in pages}


@pytest.mark.parametrize("name", MODELS)
def test_what_is_found_a_layer_ahead_is_what_plain_torch_finds(name: str, tmp_path: Path) -> None:
    model = MODELS[name][0](tmp_path / "model")
    assert ahead(model, tmp_path)[0] == [None, *oracle(model, MODELS[name][1])]


def test_a_collapsed_layer_is_found_whole_and_so_by_its_popular_experts(tmp_path: Path) -> None:
    _, found = ahead(own(tmp_path / "model", collapsed=3), tmp_path)
    assert found[3] == {"top_k": 1, "top_2k": 1, "popular": 1, "chance": 0.25}
    assert 0 < found[4]["top_k"] < found[4]["top_2k"] < 1


def test_a_router_that_chooses_by_another_rule_is_left_out_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert ahead(family("kolibri1", tmp_path / "model"), tmp_path)[0] == [None] * 4
    assert "--next-layer leaves out 3 routers: their rule is not known" in caplog.messages
