"""Experts with almost no tokens: stray ones, rare ones of small batches, those of lost ranks."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from msgspec.structs import replace

from microscope_tui import measures
from microscope_tui.diagnosis import Criteria, Diagnosis, Severity, report
from microscope_tui.diagnosis.engine import pending
from microscope_tui.diagnosis.rules.dead import few_from_start
from microscope_tui.runlog import RouterInfo, RouterSummary, RunRecord, StepRecord
from tests.conftest import header
from tests.diagnosis.conftest import COLLAPSED, about, even, judge, loud, of, steps, without_expert

Weights = Callable[[int], Sequence[float]]
"""``weights(step)``: the load of every expert in the first layer, in fair shares."""


def drawn(mean: float, rng: random.Random) -> int:
    """A count with an overdispersion of two; below one a token that comes so often."""
    return max(0, round(rng.gauss(mean, (2 * mean) ** 0.5))) if mean > 1 else rng.random() < mean


def run(
    weights: Weights, last: int, fair: int, layers: int = 1, every: int = 1, **head: Any
) -> Diagnosis:
    experts = len(weights(1))
    routers = tuple(RouterInfo(f"L{n}", n, experts, 2) for n in range(layers))
    no_sums = Criteria(frozenset({"METER"}))  # of independent counts
    judged = Diagnosis(RunRecord(run="r", routers=routers, **head), no_sums)
    for n in range(1, last + 1, every):
        rng = random.Random(n)
        rows = [[int(drawn(w * fair, rng)) for w in weights(n)] for _ in routers]
        rows[1:2] = [[fair] * experts] if layers == 3 else rows[1:2]
        router = RouterSummary(**measures.summarise(rows))
        record = StepRecord(n, loss=2.0, tokens=fair * experts // 2, grad_norm=1.0, router=router)
        judged.observe(record, lambda layer, rows=rows: list(rows[layer]))  # type: ignore[misc]
    return judged


def silent(experts: int, gone: Sequence[int], onset: int, left: float = 0) -> Weights:
    """Even, but from the onset on these experts have little or nothing."""
    return lambda n: [left if n >= onset and e in gone else 1.0 for e in range(experts)]


def test_from_one_token_a_step_down_to_none_severity_never_falls_and_is_critical() -> None:
    worst, fair = [], 2048
    for rate in (2, 1, 0.5, 0.1, 0.05, 0):
        diagnosis = run(silent(16, range(4), 151, rate / fair), 420, fair)
        worst.append(max(e.severity for e in diagnosis.episodes))
        assert pending(diagnosis) == []
    assert worst == sorted(worst)
    assert set(worst[1:]) == {Severity.CRITICAL}


@pytest.mark.parametrize(("every", "dead"), [(40, True), (20, False)])
def test_a_window_with_a_stray_token_grows_to_1000_expected_ones(every: int, dead: bool) -> None:
    def stray(n: int) -> list[float]:
        return [1 / 40 if n > 150 and n % every == 0 else float(n <= 150), *[1.0] * 7]

    found = {e.rule for e in loud(run(stray, 500, 40))}
    assert ("DEAD" in found) == dead


def test_one_stray_token_neither_hides_nor_ends_dead_experts_and_none_came_back() -> None:
    def sick(n: int) -> list[int]:
        row = without_expert(even(n), 3) if n > 150 else even(n)
        return [*row[:2], row[2] - 1, 1, *row[4:]] if n > 150 and n % 60 == 0 else row

    ((finding, advice),) = report(judge([header(), *steps(1, 500, sick)]))
    assert (finding.onset, finding.active) == (151, True)
    assert "received only 6 of 176,128 expected tokens in 346 steps" in advice.why
    assert "by itself" not in advice.why


def test_evidence_of_dead_experts_mutes_starved_ones_for_200_steps_at_most() -> None:
    def sick(n: int) -> list[int]:  # each rests for 59 of 60 steps
        row = even(n)
        for expert in (1, 3, 5) if n > 150 else ():
            row = row if (n + 16 * expert) % 60 == 0 else without_expert(row, expert)
        return row

    assert of(judge([header(), *steps(1, 420, sick)]), "STARVED").alarm in range(200, 361)


def test_the_age_in_a_sentence_is_that_of_its_step() -> None:
    found = of(judge([header(), *steps(1, 600, lambda n: without_expert(even(n), 3))]), "DEAD")
    assert found.facts["steps"] == found.worst_at


@pytest.mark.parametrize("profile", ["finetune", "eval"])
def test_a_rare_expert_of_a_small_batch_is_not_dead_in_a_fine_tuning(profile: str) -> None:
    def rare(n: int, gone: int) -> list[float]:
        return [float(n < 300 or e >= gone) for e in range(60)] + [0.5 * (n % 150 == 5)]

    judged = run(lambda n: rare(n, 0), 600, 2, profile=profile)
    assert (loud(judged), judged.rules["DEAD"].tracks) == ([], {})
    for gone in (1, 4):
        found = of(run(lambda n, gone=gone: rare(n, gone), 600, 2, profile=profile), "DEAD")  # type: ignore[misc]
        assert (found.facts["experts"], found.severity) == (tuple(range(gone)), Severity.WARN)


@pytest.mark.parametrize(("gone", "severity"), [(1, Severity.INFO), (2, Severity.WARN)])
@pytest.mark.parametrize("profile", ["finetune", "eval"])
def test_less_than_one_percent_of_the_experts_is_information_in_a_fine_tuning(
    gone: int, severity: Severity, profile: str
) -> None:
    found = of(run(silent(128, range(gone), 60), 200, 20, profile=profile), "DEAD")
    assert found.severity is severity


@pytest.mark.parametrize(("layers", "severity"), [(2, "crit"), (3, "warn")])
def test_a_rank_lost_in_all_layers_is_critical_and_named(layers: int, severity: str) -> None:
    lost = run(silent(64, range(40, 48), 151), 400, 40, layers, expert_parallel_size=8)
    ((finding, advice),) = report(lost)
    assert finding.severity.label == severity
    assert "8 of 64 experts (40–47, rank 5) received no tokens" in advice.why
    data = "or the data that only these experts serve ended there" in advice.cause
    assert data == (severity == "crit")


def test_a_few_dead_since_the_first_step_beside_even_ones_call_for_no_rate() -> None:
    balance = {"method": "bias", "bias_update_rate": 0.001, "update": "sign"}
    ((_, advice),) = report(run(silent(64, (3, 9), 1), 300, 40, balance=balance))
    assert advice.next.startswith("Re-initialise only their router rows: the other experts are ")
    assert not [w for w in ("raise", "slow", "start again") if w in advice.next + advice.cause]
    ((_, later),) = report(run(silent(64, (3, 9), 120), 300, 40, balance=balance))
    assert "only their" not in later.next


def test_a_collapse_that_healed_does_not_starve_its_router() -> None:
    sick = lambda n: COLLAPSED if 200 <= n < 420 else even(n)  # noqa: E731
    found = loud(judge([header(), *steps(1, 900, sick)]))
    assert [(e.rule, e.active) for e in found] == [("COLLAPSE", False)]


def test_what_starves_in_turn_is_dated_to_its_first_step_and_ends_after_50_clean_ones() -> None:
    def sick(n: int) -> list[int]:  # half of the experts in turn
        in_turn = [1020 if e % 2 == n // 20 % 2 else 4 for e in range(8)]
        return in_turn if 151 <= n < 680 else even(n)

    found = of(judge([header(), *steps(1, 731, sick)]), "STARVED")
    assert (found.onset, found.recovered_at) == (151, 680)


@pytest.mark.parametrize(("every", "onset"), [(1, 205), (10, 211)])
@pytest.mark.parametrize("left", [0, 0.0002])
def test_dead_experts_are_dated_to_a_line_not_a_block(every: int, onset: int, left: float) -> None:
    found = of(run(silent(32, (3, 9), 205, left), 700, 500, every=every), "DEAD")
    assert found.onset == onset
    # With chance zeros before it, not before the block in which they died.
    found = of(run(silent(32, (3, 9), 205, left), 1200, 4, every=every), "DEAD")
    assert onset - 14 * every <= found.onset <= onset


def test_stray_tokens_are_of_as_many_steps_as_the_sentence_says() -> None:
    late = lambda n: [0.001 * (n < 400) + 0.0002, 0.0002, *[1.0] * 30]  # noqa: E731
    found = of(run(lambda n: late(n) if n > 160 else [1.0] * 32, 700, 500), "DEAD")
    facts = found.facts
    assert found.worst_at - found.onset + 1 == facts["steps"]


@pytest.mark.parametrize(("alive", "warns"), [(4, True), (10, False)])
def test_the_same_experts_starve_if_they_get_little_of_500_steps(alive: int, warns: bool) -> None:
    on_and_off = lambda n: [float(n % 60 < alive or n < 90)] * 16 + [1.0] * 48  # noqa: E731
    judged = run(on_and_off, 640, 200)
    assert [(e.rule, e.active) for e in loud(judged)] == [("STARVED", True)] * warns


@pytest.mark.parametrize(("share", "back"), [(0.02, ()), (1.0, (3, 401))])
def test_a_dead_expert_comes_back_with_a_tenth_of_its_share(share: float, back: Any) -> None:
    gone = silent(32, (3, 9), 150)
    blip = lambda n: [*gone(n)[:3], share, *gone(n)[4:]] if n in range(401, 409) else gone(n)  # noqa: E731
    now = of(run(blip, 440, 500), "DEAD").now
    assert now is not None
    assert now.facts["back"] == back


@pytest.mark.parametrize(("last", "onset", "active"), [(830, 110, True), (900, 110, False)])
def test_the_same_experts_that_starve_for_long_end_as_slowly_as_they_began(
    last: int, onset: int, active: bool
) -> None:
    tail = about([560, 540, 555, 565, 622, 624, 620, 10])
    sick = lambda n: tail(n) if 110 <= n < 750 else even(n)  # noqa: E731
    found = of(judge([header(), *steps(1, last, sick)]), "STARVED")
    assert (found.onset, found.active, "cause" in found.facts) == (onset, active, False)


@pytest.mark.parametrize(("rest", "few"), [(0.9, True), (0.89, False)])
def test_dead_experts_are_for_their_rows_only_beside_others_with_c_from_0_9_on(
    rest: float, few: bool
) -> None:
    judged = run(silent(64, (3, 9), 1), 300, 40)
    dead = of(judged, "DEAD")
    assert few_from_start(replace(dead, facts=dead.facts | {"rest": rest})) == few


@pytest.mark.parametrize(("few", "found"), [(1, []), (2, ["STARVED"])])
def test_a_tenth_of_the_experts_may_get_little_of_500_steps(few: int, found: list[str]) -> None:
    on_and_off = lambda n: [float(n % 60 > 55 or n < 90)] * few + [1.0] * (10 - few)  # noqa: E731
    assert [e.rule for e in loud(run(on_and_off, 640, 200))] == found


def test_a_number_of_dead_experts_alone_is_neither_a_finding_nor_a_failure() -> None:
    records = [header(), *steps(1, 400, lambda n: without_expert(even(n), 3))]
    for record in records[1:]:
        del record["tokens_per_expert"], record["router"]["starved_experts"]
    assert judge(records).episodes == []


def test_dead_experts_that_are_back_end_though_another_layer_keeps_its_own() -> None:
    records = [header(), *steps(1, 500, lambda n: without_expert(even(n), 3))]
    for record in records[1:]:
        if record["step"] < 350:
            rows = record["tokens_per_expert"]
            rows[0] = without_expert(rows[0], 3)
            record["router"] |= measures.summarise(rows)
    ended = {e.router_index: e.active for e in judge(records).episodes if e.rule == "DEAD"}
    assert ended == {0: False, 1: True}


def test_an_expert_that_always_starves_does_not_date_the_death_of_another() -> None:
    tail = lambda n: [1.0] * 9 + [0.05] + [float(n < 205)] + [1.0] * 21  # noqa: E731
    found = of(run(tail, 400, 500), "DEAD")
    assert (found.facts["experts"], 189 <= found.onset <= 205) == ((10,), True)


@pytest.mark.parametrize(("gone", "severity"), [(2, Severity.WARN), (3, Severity.CRITICAL)])
def test_more_than_a_fifth_of_the_experts_is_critical(gone: int, severity: Severity) -> None:
    assert of(run(silent(10, range(gone), 151), 420, 500), "DEAD").severity is severity


def test_two_of_ten_that_are_dead_from_the_start_are_few() -> None:
    assert few_from_start(of(run(silent(10, (3, 9), 1), 300, 200), "DEAD"))


def test_young_evidence_of_other_experts_makes_no_open_note_a_warning() -> None:
    first, then = silent(128, (0,), 60), silent(128, (1, 2), 401)
    judged = run(lambda n: first(n) if n <= 400 else then(n), 440, 20, profile="finetune")
    assert of(judged, "DEAD").severity is Severity.INFO


def test_a_layer_with_few_counted_lines_has_no_evidence_beside_one_with_many() -> None:
    routers = tuple(RouterInfo(f"L{n}", n, 16, 2) for n in range(2))
    judged = Diagnosis(RunRecord(run="r", routers=routers), Criteria(frozenset({"METER"})))
    for n in range(1, 401):
        rows = [[20 * (e != 3 or n < 151) for e in range(16)]] * 2
        counted = (0, 1) if n % 8 == 0 else (0,)  # 20 of the 56 tokens that a window needs
        router = RouterSummary(**measures.summarise(rows))
        record = StepRecord(n, loss=2.0, tokens=160.0, grad_norm=1.0, router=router)
        judged.observe(record, lambda i, rows=rows, at=counted: rows[i] if i in at else None)  # type: ignore[misc]
    assert [e.router_index for e in judged.episodes if e.rule == "DEAD"] == [0]
