"""A placement is worth what it is on steps that it was not fitted to."""

import math

import numpy as np
import pytest
from msgspec.structs import replace

from microscope_tui.extensions.placement.published import published
from microscope_tui.extensions.placement.study import Request, Study, study
from microscope_tui.watch.cluster import BadCluster, Cluster, contiguous, rank_loads
from tests.extensions.placement.simulated import balancedness, counts_of, drawn, popularity

FOUR = Request(ranks=4)


def test_the_gain_on_stationary_loads_is_that_of_fresh_counts() -> None:
    for seed, replicas in ((0, 0), (1, 4), (2, 16)):
        rng = np.random.default_rng(seed)
        shares = popularity(rng, 3, 32)
        found = study(counts_of(drawn(rng, shares, 120)), Request(ranks=4, replicas=replicas))
        fresh = drawn(rng, shares, 400)
        for way in (found.today, found.published, found.chosen):
            truth = balancedness(fresh, way.placements)
            assert way.held_out == pytest.approx(truth, rel=0.01)
        assert found.reason == ""
        assert found.interval == math.inf


def test_scores_are_those_of_the_formula() -> None:
    loads = drawn(rng := np.random.default_rng(3), popularity(rng, 2, 12), 40, 500)
    found = study(counts_of(loads), Request(ranks=4, replicas=4))
    for way in (found.today, found.published, found.chosen):
        assert way.fitted == pytest.approx(balancedness(loads[:20], way.placements))
        assert way.held_out == pytest.approx(balancedness(loads[20:], way.placements))
    gain = found.chosen.held_out - found.today.held_out
    assert found.gain.mean == pytest.approx(gain)


def test_the_curve_of_ageing_shows_how_long_planted_loads_stay() -> None:
    rng, stay = np.random.default_rng(4), 500
    parts = [drawn(rng, popularity(rng, 12, 16), stay) for _ in range(5)]
    found = study(counts_of(np.concatenate(parts)), FOUR)
    gains = {aged.lag: aged.gain for aged in found.ageing}

    def gain(fitted: np.ndarray, scored: np.ndarray) -> float:
        cluster, today = Cluster(experts=16, ranks=4), [contiguous(16, 4)] * 12
        placed = [published(totals.tolist(), cluster) for totals in fitted.sum(0)]
        return balancedness(scored, placed) - balancedness(scored, today)

    fresh = np.mean([gain(part, part) for part in parts])
    stale = np.mean([gain(parts[at], parts[at + 2]) for at in range(3)])
    assert gains[1] == pytest.approx(fresh, rel=0.25)  # windows across a change fit less well
    assert gains[100] == pytest.approx(gains[1] * (1 - 100 / stay), abs=0.04)
    assert gains[1000] == pytest.approx(stale, abs=0.02)
    assert found.interval is not None
    assert 10 < found.interval < 150
    assert study(counts_of(parts[0]), FOUR).interval == math.inf


@pytest.mark.parametrize(("first", "last"), [(1.0, 0.15), (0.3, 1.0)])
def test_loads_that_get_more_or_less_even_do_not_age_a_placement(first: float, last: float) -> None:
    skew = np.linspace(first, last, 2_000)[:, None, None]
    shares = skew * popularity(rng := np.random.default_rng(9), 2, 32) + (1 - skew) / 32
    found = study(counts_of(rng.poisson(20_000 * shares).astype(float)), FOUR)
    gains = [aged.gain for aged in found.ageing]
    assert abs(gains[-1] / gains[0] - 1) > 0.1
    assert found.interval == math.inf


def test_lags_are_steps_even_where_few_steps_are_counted() -> None:
    loads = drawn(rng := np.random.default_rng(5), popularity(rng, 1, 8), 60)
    found = study(counts_of(loads, every=20), FOUR)
    assert [aged.lag for aged in found.ageing] == [30, 100, 300, 1000]
    assert found.fit == (20, 600, 30)
    assert found.score == (620, 1200, 30)


def test_of_two_placements_the_one_that_waits_less_in_the_fitted_steps_is_chosen() -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        loads = 1000 * rng.lognormal(0, 1.2, (60, 1, 8))  # their sum shows nothing of a step
        found = study(counts_of(loads), replace(FOUR, replicas=4))
        (best,), (known,) = found.chosen.placements, found.published.placements
        early = loads[:30, 0]
        waited = [sum(max(rank_loads(row, one)) for row in early) for one in (best, known)]
        assert waited[0] <= waited[1] * (1 + 1e-6)
        busiest = [max(rank_loads(early.sum(0), one)) for one in (best, known)]
        assert busiest[0] <= busiest[1] * (1 + 1e-6)


def test_even_counts_leave_every_expert_where_it_is() -> None:
    assert study(counts_of(np.full((40, 2, 8), 50.0)), FOUR).moves.copies == 0


def test_one_counted_step_is_placed_and_never_pays() -> None:
    found = study(counts_of(drawn(rng := np.random.default_rng(1), popularity(rng, 2, 8), 1)), FOUR)
    assert found.score == found.fit == (1, 1, 1)
    assert found.chosen.held_out > found.today.held_out
    assert "too few" in found.reason


def rotating(steps: int, hold: int) -> np.ndarray:
    """One hot expert that moves on every ``hold`` steps."""
    loads = np.full((steps, 2, 8), 100.0)
    for step in range(steps):
        loads[step, :, step // hold % 8] = 800
    return loads


@pytest.mark.parametrize("hold", [1, 7, 25])
def test_a_rotating_hot_spot_does_not_pay(hold: int) -> None:
    assert study(counts_of(rotating(401, hold)), FOUR).reason


def test_loads_that_change_after_the_fit_do_not_pay_although_they_fit_well() -> None:
    rng = np.random.default_rng(6)
    early, late = (drawn(rng, popularity(rng, 3, 16), 100) for _ in range(2))
    found = study(counts_of(np.concatenate([early, late])), FOUR)
    assert found.chosen.fitted > found.today.fitted + 0.1
    assert found.reason


def test_even_routing_does_not_pay() -> None:
    for seed in range(20):
        loads = drawn(np.random.default_rng(seed), np.full((2, 16), 1 / 16), 60, 2_000)
        assert study(counts_of(loads), FOUR).reason


def test_a_verdict_needs_enough_scored_steps() -> None:
    loads = drawn(rng := np.random.default_rng(7), popularity(rng, 2, 16), 10)
    assert "too few" in study(counts_of(loads), FOUR).reason


def uneven(**options: object) -> Study:
    loads = drawn(rng := np.random.default_rng(8), popularity(rng, 2, 16), 200)
    return study(counts_of(loads), replace(FOUR, **options))


def test_a_move_is_paid_back_by_the_time_that_it_saves() -> None:
    found = uneven(expert_bytes=25e9, step_time=2.0, expert_share=0.5)
    before, after = (1 + 0.5 * (way.ratio - 1) for way in (found.today, found.chosen))
    saved = 2.0 * (1 - after / before)
    assert found.moves.seconds == pytest.approx(found.moves.most)
    assert found.moves.break_even == pytest.approx(found.moves.most / saved)
    assert found.reason == ""
    slow = uneven(expert_bytes=25e12, step_time=2.0)
    assert "paid back" in slow.reason
    pairs = zip(found.today.placements, found.chosen.placements, strict=True)
    assert found.moves.copies == sum(
        len(set(new) - set(old))
        for before_, after_ in pairs
        for old, new in zip(before_, after_, strict=True)
    )


def test_senders_that_choose_the_nearest_copy_balance_worse() -> None:
    found = uneven(ranks=8, nodes=4, replicas=8)
    assert found.nearest < found.chosen.held_out - 0.005
    assert uneven().nearest == pytest.approx(uneven().chosen.held_out)


def test_a_layer_that_does_not_fit_the_ranks_is_named() -> None:
    with pytest.raises(BadCluster, match=r"L0: 16 experts and 0 extra copies .* --replicas 4"):
        uneven(ranks=5)
