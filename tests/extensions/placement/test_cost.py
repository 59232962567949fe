"""What uneven load costs on ranks, against the same formulas in numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from microscope_tui.draw.cost import layer_cost, model_cost
from microscope_tui.draw.spans import plain
from microscope_tui.watch import RunWatch, pin_at, recent_of
from microscope_tui.watch.cost import Cost, CostRequest, cost_of
from microscope_tui.watch.scan import KEPT
from tests.conftest import header, open_log, step

STEPS, LAYERS, EXPERTS, TOP_K = 6, 3, 8, 2
TOKENS = 4000
RNG = np.random.default_rng(0)
COUNTS = RNG.multinomial(TOKENS * TOP_K, RNG.dirichlet([3] * EXPERTS, LAYERS), size=(STEPS, LAYERS))
ON_4 = CostRequest(ranks=4)


def watched(write_log: Any, counts: Any = COUNTS, **head: Any) -> RunWatch:
    steps = [step(n, rows, TOKENS) for n, rows in enumerate(np.asarray(counts).tolist(), 1)]
    path: Path = write_log([header(**head), *steps])
    return open_log(path)


def found(watch: RunWatch, request: CostRequest = ON_4, at: int = 0) -> Cost:
    cost = cost_of(watch, pin_at(watch, at) if at else None, request)
    assert cost is not None
    return cost


def on(parts: int) -> tuple[Any, Any]:
    loads = COUNTS.reshape(STEPS, LAYERS, parts, -1).sum(-1)
    return loads.max(-1), loads.mean(-1)


def test_ratios_and_lost_shares_are_taken_in_every_step_and_then_averaged(write_log: Any) -> None:
    cost = found(watched(write_log), CostRequest(ranks=4, nodes=2, expert_share=0.4))
    worst, mean = on(4)
    assert (cost.first_step, cost.last_step, cost.steps) == (1, STEPS, STEPS)
    assert [one.ratio for one in cost.layers] == pytest.approx((worst / mean).mean(0))
    assert [one.lost_share for one in cost.layers] == pytest.approx((1 - mean / worst).mean(0))
    assert [one.busiest_pairs for one in cost.layers] == pytest.approx(worst.mean(0))
    assert [one.mean_pairs for one in cost.layers] == pytest.approx(mean.mean(0))
    ratio = worst.sum(1) / mean.sum(1)
    assert cost.model.ratio == pytest.approx(ratio.mean())
    assert cost.model.lost_share == pytest.approx((1 - 1 / ratio).mean())
    slow = 1 + 0.4 * (ratio - 1)
    assert (cost.slowdown, cost.lost_throughput) == pytest.approx(
        (slow.mean(), (1 - 1 / slow).mean())
    )
    busy, fair = on(2)
    assert cost.node_ratio == pytest.approx((busy.sum(1) / fair.sum(1)).mean())
    ranks = COUNTS.reshape(STEPS, LAYERS, 4, -1).sum(-1).argmax(-1)
    most = [np.bincount(ranks[:, at]).max() for at in range(LAYERS)]
    assert [(ranks[:, at] == one.busiest_rank).sum() for at, one in enumerate(cost.layers)] == most


def test_only_the_layers_that_are_asked_for_get_a_cost_of_their_own(write_log: Any) -> None:
    cost = cost_of(watched(write_log), None, ON_4, (1,))
    assert cost is not None
    assert [one is not None for one in cost.layers] == [False, True, False]


def test_decode_reads_as_many_experts_as_a_simulation_of_batches_does(write_log: Any) -> None:
    rows = [[3, 5, 2, 90, 200, 200, 250, 250]]
    model = {"layers": [1], "layer_names": ["L1"], "top_k": 1}
    cost = found(watched(write_log, [rows], model=model))
    drawn = RNG.choice(EXPERTS, (20_000, 64), p=np.array(rows[0]) / 1000)
    read = np.stack([(drawn == expert).any(1) for expert in range(EXPERTS)], 1)
    by_rank = read.mean(0).reshape(4, 2).sum(1)
    reads = cost.layers[0].decode
    assert (reads.tokens, reads.experts) == (64, 2)
    assert (reads.busiest, reads.mean) == pytest.approx((by_rank.max(), by_rank.mean()), abs=0.01)
    top1 = found(watched(write_log, source={"counts": "top1"})).layers
    assert top1[0].decode is None


def test_a_pinned_step_costs_what_it_did_and_a_long_run_what_its_end_does(write_log: Any) -> None:
    many = np.concatenate([COUNTS] * 10)
    watch = watched(write_log, many)
    worst, mean = (x[2].sum() for x in on(4))
    assert found(watch, at=3).model.ratio == pytest.approx(worst / mean)
    assert (found(watch).first_step, found(watch).last_step) == (61 - KEPT, 60)
    assert [entry.record.step for entry in recent_of(watch).entries] == list(range(53, 61))


def test_steps_that_a_restart_supersedes_cost_nothing(write_log: Any) -> None:
    rows = COUNTS.tolist()
    lines = [header(), *(step(n, rows[n], TOKENS) for n in range(1, 5))]
    watch = open_log(write_log([*lines, step(3, rows[5], TOKENS)]))
    kept = COUNTS[[1, 2, 5]].reshape(3, LAYERS, 4, -1).sum(-1)
    expected = (kept.max(-1).sum(1) / kept.mean(-1).sum(1)).mean()
    assert found(watch).model.ratio == pytest.approx(expected)
    assert [entry.record.step for entry in recent_of(watch).entries] == [1, 2, 3]
    without = open_log(write_log([*lines, {"kind": "step", "step": 2}]))
    assert [entry.record.step for entry in recent_of(without).entries] == [1]
    assert found(without).last_step == 1


def test_the_words_keep_training_decode_and_capacity_apart(write_log: Any) -> None:
    tokens = found(watched(write_log), CostRequest(ranks=4, expert_share=0.3))
    for columns in (40, 80, 200):
        lines = layer_cost(tokens, 0, columns, 2)
        assert [sum(len(span.text) for span in line) for line in lines] == [columns] * 2
    first, second = (plain(line) for line in lines)
    one = tokens.layers[0]
    assert first.startswith(f"  4 ranks  training and prefill lose {one.lost_share:.0%} of expert")
    assert f"busiest rank ({one.busiest_rank}) {one.ratio:.2f} x mean" in first
    assert second.strip().startswith("decode of 64 tokens: ranks read 2.0 of 2 experts")
    head, drops = header(model={"capacity_factor": 1.25}), {"drop_rate": [0.02, 0.0, 0.04]}
    steps = [step(n, rows, TOKENS, router=drops) for n, rows in enumerate(COUNTS.tolist(), 1)]
    cost = found(open_log(write_log([head, *steps])), CostRequest(ranks=4, expert_share=0.5))
    unknown = found(watched(write_log, model={"capacity_factor": 1.25}))
    assert "drop ? of the choices instead of waiting" in model_cost(unknown)
    assert (cost.regime, cost.slowdown, cost.model.lost_share) == ("capacity", None, None)
    assert cost.model.drop_rate == pytest.approx(0.02)
    text = plain(layer_cost(cost, 2, columns, 1)[0])
    assert "training and prefill drop 4.0% of the choices instead of waiting (model 2.0%)" in text
    assert "lose" not in text + model_cost(cost)


def test_shares_work_and_are_named(write_log: Any) -> None:
    exact = found(watched(write_log))
    cost = found(watched(write_log, COUNTS * 125, source={"counts": "shares"}))
    assert cost.model == exact.model
    assert "by shares" in model_cost(cost)


def test_one_rank_or_no_counts_cost_nothing(write_log: Any) -> None:
    watch = watched(write_log)
    assert cost_of(watch, None, CostRequest()) is None
    assert cost_of(watch, None, CostRequest(ranks=1)) is None
    assert found(watched(write_log, expert_parallel_size=4), CostRequest()).ranks == 4
    bare = open_log(write_log([header(), {"kind": "step", "step": 1, "loss": 2.0}]))
    assert cost_of(bare, None, ON_4) is None


def test_rows_that_cannot_be_counts_are_left_out(write_log: Any) -> None:
    fair, huge = [10] * 8, [2**50] + [0] * 7
    rows = [
        [[1] * 7, [0] * 8, fair],
        [["x"] * 8, None, fair],
        [huge, [-1] * 8, fair],
        [huge, [1.5] * 8, [1] * 9],
    ]
    lines = [dict(kind="step", step=n, tokens_per_expert=r) for n, r in enumerate(rows, 1)]
    cost = found(open_log(write_log([header(), *lines])))
    assert [one and one.ratio for one in cost.layers] == [4, None, 1]
    assert "4 ranks  no counts here of experts that" in plain(layer_cost(cost, 1, 80, 2)[0])
    odd = found(watched(write_log), CostRequest(ranks=3))
    assert (odd.model, {*odd.layers}) == (None, {None})
    assert model_cost(odd) == "3 ranks: no layer has counts of experts that divide by them"
    nodes = found(watched(write_log, expert_parallel_size=4), CostRequest(nodes=3))
    assert "they do not divide by 3 nodes" in model_cost(nodes)


def test_steps_are_kept_undecoded_although_their_summaries_are_computed(write_log: Any) -> None:
    rows = [{"kind": "step", "step": n, "tokens_per_expert": COUNTS[0].tolist()} for n in (1, 2)]
    kept = open_log(write_log([header(), *rows])).shown.counted
    assert [entry._matrices for entry in kept] == [None, None]
    assert kept[0].record.router.max_load
