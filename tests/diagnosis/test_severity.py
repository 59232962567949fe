"""Severity never falls as things get worse, and what starves in turn is found."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from microscope_tui import measures
from microscope_tui.diagnosis import Diagnosis, Severity, report, restore, save
from microscope_tui.runlog import RouterInfo, RouterSummary, RunRecord, StepRecord
from microscope_tui.scenarios import draw_counts
from microscope_tui.scenarios.popularity import inclusion_shares
from tests.diagnosis.conftest import loud, of

Weights = Callable[[int], Sequence[float]]
"""``weights(step)``: how popular each expert is."""
SHAPES = st.sampled_from([(8, 2), (16, 4), (32, 2), (64, 8), (256, 2)])
SPREADS = st.sampled_from([0.1, 0.6, 1.2])
FORMS = ("halves", "sine", "wave", "thirds")


def run(
    weights: Weights,
    top_k: int,
    steps: Iterable[int] = range(1, 161),
    each: int = 100,
    known: Diagnosis | None = None,
    **header: Any,
) -> Diagnosis:
    """The judgement of one router; ``each`` expert can expect so many assignments in a step."""
    experts = len(weights(1))
    routers = (RouterInfo("L1", 1, experts, top_k),)
    judged = known or Diagnosis(RunRecord(run="r", routers=routers, **header))
    tokens = each * experts // top_k
    for n in steps:
        row = draw_counts(weights(n), tokens, top_k, random.Random(n))
        router = RouterSummary(**measures.summarise([row]))
        record = StepRecord(step=n, loss=2.0, tokens=tokens, grad_norm=1.0, router=router)
        judged.observe(record, lambda index, row=row: list(row))  # type: ignore[misc]
    return judged


def severity(judged: Diagnosis) -> int:
    return max((int(e.severity) for e in judged.episodes), default=0)


def popular(experts: int, spread: float) -> list[float]:
    rng = random.Random(experts)
    return [math.exp(rng.gauss(0, spread)) for _ in range(experts)]


def with_hot(shape: tuple[int, int], spread: float, hot: int, share: float) -> Weights:
    """So many experts are chosen by this share of the tokens; the others share the rest."""
    experts, top_k = shape
    rest = inclusion_shares(popular(experts, spread)[hot:], max(1e-9, top_k - hot * share))  # type: ignore[arg-type]
    return lambda n: [*[share] * hot, *rest]


@settings(max_examples=10)
@given(SHAPES, SPREADS, st.data())
def test_more_hot_experts_or_hotter_ones_never_look_better(
    shape: tuple[int, int], spread: float, data: st.DataObject
) -> None:
    number = sorted(data.draw(st.lists(st.integers(1, shape[1]), min_size=2, max_size=2)))
    shares = st.sampled_from([0.3, 0.5, 0.7, 0.85, 0.94, 0.96, 0.99, 1.0])
    share = sorted(data.draw(st.lists(shares, min_size=2, max_size=2)))
    pairs = zip(number, share, strict=True)
    better, worse = (run(with_hot(shape, spread, *pair), shape[1]) for pair in pairs)
    natural = int(spread > 0.1)  # an expert that is hot by itself may no longer be
    assert severity(better) <= max(natural, severity(worse))


@pytest.mark.parametrize("share", [0.94, 0.99])
def test_a_hot_expert_is_excused_only_beside_experts_that_are_even(share: float) -> None:
    # Of the seven others c is 0.36, of all eight it is below 0.35.
    narrow = [share, *(x * (2 - share) for x in (0.5, 0.38, 0.05, 0.03, 0.02, 0.01, 0.01))]
    found = of(run(lambda n: narrow, 2), "COLLAPSE")
    assert (found.severity, found.active) == (Severity.WARN, True)
    even = run(with_hot((256, 2), 0.1, 1, share), 2)
    assert [e.rule for e in even.episodes] == ["HOT_EXPERT"]


@settings(max_examples=6)
@given(SHAPES, SPREADS, st.data())
def test_fewer_experts_that_share_all_tokens_never_look_better(
    shape: tuple[int, int], spread: float, data: st.DataObject
) -> None:
    experts, top_k = shape
    idle = st.integers(0, experts - top_k)
    row = popular(experts, spread)
    better, worse = (
        run(lambda n, dead=dead: [*[0.0] * dead, *row[dead:]], top_k, range(1, 321))  # type: ignore[misc]
        for dead in sorted(data.draw(st.lists(idle, min_size=2, max_size=2)))
    )
    assert severity(better) <= severity(worse)


def swinging(form: str, period: int, amplitude: float, experts: int = 8) -> Weights:
    def load(n: int, e: int) -> float:
        phase = n % period / period
        if form == "halves":
            up = 1.0 if (phase < 0.5) == (e % 2 == 0) else -1.0
        elif form == "thirds":
            up = -1.0 if int(3 * phase) == e % 3 else 0.5
        else:
            up = math.sin(2 * math.pi * (phase + (e / experts if form == "wave" else e % 2 / 2)))
        return max(0.0, 1.0 + amplitude * up)

    return lambda n: [load(n, e) for e in range(experts)]


@settings(max_examples=8)
@given(st.sampled_from(FORMS), st.integers(2, 200), st.integers(1, 8), st.data())
def test_a_larger_swing_never_looks_better(
    form: str, period: int, tenths: int, data: st.DataObject
) -> None:
    sizes = tenths, data.draw(st.integers(tenths + 2, 10))  # near a limit chance decides
    better, worse = (run(swinging(form, period, size / 10), 2, range(1, 661)) for size in sizes)
    assert min(2, severity(better)) <= severity(worse)


def test_an_expert_that_becomes_hot_beside_even_ones_does_not_erode_the_balance() -> None:
    rising: Weights = lambda n: with_hot((8, 2), 0.3, 1, min(0.98, 0.25 + n / 400))(n)  # noqa: E731
    diagnosis = run(rising, 2, range(1, 451))
    assert [e.rule for e in diagnosis.episodes] == ["HOT_EXPERT"]


def test_the_hot_experts_are_counted() -> None:
    diagnosis = run(with_hot((64, 8), 0.1, 3, 0.97), 8)
    ((_, advice),) = report(diagnosis)
    assert advice.why.startswith("experts 0, 1, 2 are each chosen by up to ")


@pytest.mark.parametrize(("each", "period"), [(100, 80), (12, 80), (100, 100)])
def test_experts_that_are_idle_in_turn_starve_over_the_history(each: int, period: int) -> None:
    idle = swinging("halves", period, 1.0)
    found = of(run(idle, 2, range(1, 700), each), "STARVED")
    assert (found.severity, found.active, 601 <= found.alarm <= 610) == (Severity.WARN, True, True)
    assert loud(run(idle, 2, range(1, 700), each, profile="finetune")) == []
    sparse = run(idle, 2, range(7, 1500, 14), each)  # 49 lines are too few
    assert 780 <= of(sparse, "STARVED").alarm <= 850
    even = run(lambda n: idle(n) if n < 700 else [1.0] * 8, 2, range(1, 1500), each)
    assert not of(even, "STARVED").active


def test_what_starves_in_turn_says_so_and_survives_a_restart() -> None:
    idle = swinging("halves", 80, 1.0)
    before = run(idle, 2, range(1, 640))
    found = of(before, "STARVED")
    ((_, advice),) = report(before)
    assert "50% of the experts" in advice.why
    assert "they starve in turn" in advice.why
    assert (advice.cause, "raise" in advice.next.lower()) == ("", False)
    again = run(idle, 2, range(610, 760), known=restore(save(before), before.run))
    assert of(again, "STARVED") == of(run(idle, 2, range(610, 760), known=before), "STARVED")
    assert (of(again, "STARVED").active, found.onset) == (True, 101)
    assert loud(run(idle, 2, range(590, 640), known=restore(save(before), before.run))) == []


@pytest.mark.parametrize("each", [3, 6, 12, 50])
def test_small_batches_and_a_quarter_that_rests_do_not_starve(each: int) -> None:
    row = popular(64, 0.4)
    resting: Weights = lambda n: [w * (e % 4 != n // 35 % 4) for e, w in enumerate(row)]  # noqa: E731
    for weights in (resting, lambda n: row):
        assert loud(run(weights, 8, range(1, 900), each)) == []
