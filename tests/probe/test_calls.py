"""Calls of routers that are counted together, against the same calls counted one by one."""

import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.pipelining  # compiled code is not asked for the stage that runs it
from hypothesis import given, settings, strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from microscope_tui.probe import attach, forward_hooks as hooks
from microscope_tui.probe.counter import Call, Calls
from microscope_tui.probe.sites import Choice, Scores, Site
from tests.probe.layers import PAIRS, ROUTERS, TOP_K, Block, Model, sums, tokens, watched
from tests.probe.real_text import small_mixtral

KINDS = ("softmax", "sigmoid", "sqrtsoftplus", None)
Made = tuple[tuple[int, int], Choice, Tensor | None]


def site(place: int) -> Site:
    """Sites 0 to 3: two sizes, three kinds of scores, one with a selection bias."""
    module = nn.Module()
    if place == 1:
        module.e_score_correction_bias = torch.linspace(-1, 1, 5)
    scores = Scores(module, 0, KINDS[place])
    experts = 5 if place < 2 else 8
    return Site(
        str(place), module, lambda *_: Choice(torch.zeros(0)), True, experts, 2, scores=scores,
        router=module,
    )  # fmt: skip


SITES = [site(place) for place in range(4)]


@st.composite
def made(draw: st.DrawFn) -> Made:
    place = draw(st.integers(0, 3))
    E, T = SITES[place].num_experts, draw(st.sampled_from([1, 3]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**20)))
    ids_TK = torch.randint(-1, E + 1, (T, draw(st.integers(1, 2))), generator=generator)
    kept_TK = torch.rand(ids_TK.shape, generator=generator) > 0.3
    choice = Choice(
        ids_TK,
        logits_TE=torch.randn(T, E, generator=generator) if draw(st.booleans()) else None,
        kept_TK=kept_TK if draw(st.booleans()) else None,
    )
    real_T = torch.rand(T, generator=generator) > 0.3 if draw(st.booleans()) else None
    return (place, draw(st.integers(0, 1))), choice, real_T


def totals(made_calls: list[Made], *, one_by_one: bool) -> dict[Any, tuple[Tensor, float]]:
    """Everything that was summed and the largest logit, of every router and pass."""
    calls = Calls()
    for key, choice, real_T in made_calls:
        call = Call.of(SITES[key[0]], choice, choice.logits_TE)
        calls.add(call.placed(key, real_T, None))
        if one_by_one:
            calls.count()
    calls.count()
    found: dict[Any, tuple[Tensor, float]] = {}
    for key, flat_N, peak in calls.parts(8):
        before = found.get(key, (torch.zeros_like(flat_N), 0.0))
        found[key] = before[0] + flat_N, max(before[1], float(peak))
    return found


@settings(max_examples=60)
@given(st.lists(made(), max_size=12))
def test_calls_counted_together_sum_up_as_those_counted_one_by_one(made_calls: list[Made]) -> None:
    together, single = (totals(made_calls, one_by_one=each) for each in (False, True))
    assert together.keys() == single.keys()
    for key, (flat_N, peak) in together.items():
        for exact in (slice(8), slice(32, 36)):  # counts and tokens
            assert torch.equal(flat_N[exact], single[key][0][exact])
        torch.testing.assert_close(flat_N, single[key][0], rtol=1e-5, atol=1e-6)
        assert peak == single[key][1]


def test_a_call_keeps_what_the_model_chose_and_not_what_it_writes_there_later() -> None:
    ids_TK, kept_TK = torch.tensor([[0, 1], [2, 3]]), torch.ones(2, 2, dtype=torch.bool)
    logits_TE, bias_E = torch.randn(2, 5), SITES[1].module.e_score_correction_bias
    choice, calls = Choice(ids_TK, logits_TE=logits_TE, kept_TK=kept_TK), Calls()
    calls.add(Call.of(SITES[1], choice, logits_TE).placed((1, 0), None, None))
    expected = totals([((1, 0), choice, None)], one_by_one=True)[1, 0]
    for tensor in (ids_TK, kept_TK, logits_TE, bias_E):
        tensor.zero_()
    calls.count()
    torch.testing.assert_close(next(calls.parts(8))[1], expected[0])
    SITES[1].module.e_score_correction_bias.copy_(torch.linspace(-1, 1, 5))


@pytest.mark.parametrize("limit", [0, hooks.WAITING_BYTES])
def test_calls_that_are_too_large_to_wait_are_counted_before_the_step_ends(
    limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting: list[int] = []
    run = Block.forward

    def forward(block: Block, x_BSD: Tensor) -> Tensor:
        output = run(block, x_BSD)
        waiting.append(sum(len(one.seen) for one in probe.hooks._watched))
        return output

    monkeypatch.setattr(Block, "forward", forward)
    monkeypatch.setattr(hooks, "WAITING_BYTES", limit)
    for saliency in (False, True):
        model, folder = Model(), tmp_path / str(saliency)
        with attach(model, folder, routers=ROUTERS, saliency=saliency) as probe:
            model(tokens())
            model(tokens())  # a micro-batch waits for the next
            probe.step()
            assert not probe.hooks.problem
        assert sums(folder) == [[2 * PAIRS] * 2]
    assert waiting == ([1, 2] * 2 if limit else [0] * 4) + [0] * 4  # saliency never waits


def test_nothing_of_a_batch_is_kept_after_its_pass(tmp_path: Path) -> None:
    """The batch of a pipeline's stage is activations."""
    with watched(tmp_path) as (model, probe):
        batch = tokens()
        kept = weakref.ref(batch)
        model(batch)
        del batch
        assert kept() is None
        probe.step()
    assert sums(tmp_path) == [[PAIRS] * 2]


def test_a_compiled_model_is_counted_when_the_number_of_tokens_changes(tmp_path: Path) -> None:
    with watched(tmp_path) as (model, probe):
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        for length in (12, 16, 20):  # from the second on it is compiled for any length
            compiled(tokens(length=length)).sum().backward()
            probe.step()
    assert sums(tmp_path) == [[2 * length * TOP_K] * 2 for length in (12, 16, 20)]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch reads it, to compile
@pytest.mark.parametrize("checkpoints", ["none", "reentrant", "not reentrant"])
def test_layers_share_what_is_compiled_as_they_do_without_the_probe(
    checkpoints: str, tmp_path: Path, caplog: Any
) -> None:
    """Code of its own for each layer ends a training that is compiled with ``fullgraph``."""
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    with watched(tmp_path) as (model, probe):
        for block in [*model.layers][1:]:
            block.compile(backend=backend, fullgraph=True)
            if checkpoints != "none":
                again = partial(checkpoint, use_reentrant=checkpoints == "reentrant")
                block._compiled_call_impl = partial(again, block._compiled_call_impl)
        for step in range(3):
            for seed in range(2):
                model(tokens(seed=2 * step + seed)).sum().backward()
            probe.step()
    assert sums(tmp_path) == [[2 * PAIRS] * 2] * 3
    assert len(graphs) == (1 if checkpoints == "none" else 2)  # a backward pass counts nothing
    assert "routers run outside" not in caplog.text


def test_no_output_of_a_router_is_kept_outside_of_a_counted_pass(tmp_path: Path) -> None:
    """It would keep the graph that made it."""
    model, ids_BS = small_mixtral().train(), torch.arange(16).view(2, 8)
    with attach(model, tmp_path, every=2) as probe:
        for _ in range(2):  # the second one counts
            model(ids_BS)
            assert not any(one.scored for one in probe.hooks._watched)
            probe.step()
        assert not probe.hooks.problem
