"""METER: numbers that no choice of k experts a token can give, and NaN."""

import random
from typing import Any

import pytest

from microscope_tui.diagnosis import Criteria, Severity, report
from tests.conftest import header, step
from tests.diagnosis.conftest import COLLAPSED, Counts, even, judge, loud, of, steps

DOUBLED = [2 * count for count in COLLAPSED]


@pytest.mark.parametrize(
    ("sick", "cause", "numbers"),
    [
        (lambda n: DOUBLED, "multiple", (8192, 4096)),
        (lambda n: [*even(n)[:7], 0], "sum", None),
        (lambda n: [512] * 8, "forced", (4096, 4096)),
        (lambda n: [*[512] * (n % 7), 513, 511, *[512] * (6 - n % 7)], None, None),  # two: chance
        (lambda n: [1024] * 4, "width", (4, 8)),
    ],
)
def test_counts_that_cannot_be_right_are_a_fault_of_the_meter_and_nothing_else(
    sick: Counts, cause: str | None, numbers: tuple[int, int] | None
) -> None:
    found = loud(judge([header(), *steps(1, 150, sick)]))
    assert [e.facts["cause"] for e in found] == ([cause] if cause else [])
    for episode in found:
        known = (episode.rule, episode.severity, episode.onset, episode.alarm)
        assert known == ("METER", Severity.ERROR, 1, 3)
        if numbers:
            assert (episode.facts["total"], episode.facts["expected"]) == numbers


@pytest.mark.parametrize("name", ["entropy", "mean_entropy", "z_loss", "max_logit"])
def test_a_reading_that_is_not_finite_is_a_fault_of_its_router(name: str) -> None:
    reading = lambda n: {name: [1.0, "Infinity" if n >= 200 else 1.0, 1.0]}  # noqa: E731
    (found,) = loud(judge([header(), *steps(1, 220, router=reading)]))
    assert (found.rule, found.router_index, found.onset) == ("METER", 1, 200)
    assert found.facts["reading"] == f"router {name.replace('_', ' ')}"


def test_an_entropy_that_vanishes_while_all_tokens_are_on_the_first_experts_was_nan() -> None:
    records = [header(), *steps(1, 220, lambda n: COLLAPSED if n >= 200 else even(n))]
    for record in records[1:200]:
        record["router"]["entropy"] = [1.9] * 3
    (found,) = loud(judge(records))
    assert (found.rule, found.router_index, found.onset) == ("METER", 1, 200)


def test_a_summary_that_contradicts_its_counts_is_a_fault() -> None:
    def sick(n: int) -> dict[str, Any]:
        return {"effective_experts": [7.9, 7.0 if n >= 100 else 7.95, 7.9]}

    (found,) = loud(judge([header(), *steps(1, 400, router=sick)]))
    assert (found.facts["cause"], found.router_index) == ("summary", 1)


def test_wrong_counts_that_only_some_lines_have_are_one_fault() -> None:
    records = [header(), *steps(1, 200, lambda n: DOUBLED)]
    for record in records[1:]:
        if record["step"] % 5:
            del record["tokens_per_expert"]
    found = of(judge(records), "METER")
    assert (found.active, found.onset) == (True, 5)


def test_pairs_that_chose_no_real_expert_are_counted_as_unrouted() -> None:
    def sick(n: int) -> list[int]:
        return [*even(n)[:7], 0]

    for missing, faulty in ((0, False), (1, True)):
        records = [header(), *steps(1, 100, sick)]
        for record in records[1:]:
            lost = 4096 - sum(record["tokens_per_expert"][1]) - missing
            record["router"]["unrouted"] = [0, lost, 0]
        assert ("METER" in {e.rule for e in judge(records).episodes}) == faulty
        for record in records[1:]:  # with few real choices, fewer than k experts are possible
            record["router"] |= {"effective_experts": [7.9, 1.5, 7.9], "unrouted": [0, lost, 0]}
            record.pop("tokens_per_expert")
        assert "METER" not in {e.rule for e in judge(records).episodes}


@pytest.mark.parametrize(
    ("counts", "fault"),
    [("exact", True), ("shares", True), ("none", True), ("top1", False), ("local_rank", False)],
)
@pytest.mark.parametrize("summaries", ["all", "effective experts alone"])
def test_what_is_impossible_depends_on_the_counts(counts: str, fault: bool, summaries: str) -> None:
    first_choices = [1790, 130, 40, 30, 20, 18, 10, 10]  # 1.8 of 8 effective, none above tokens
    records = [header(source={"counts": counts})]
    records += [step(n, [first_choices] * 3, 2048) for n in range(1, 160)]
    for record in records if counts in ("exact", "none") else ():
        record.pop("tokens_per_expert", None)
    for record in records[1:] if summaries != "all" else ():
        record["router"] = {"effective_experts": [1.8] * 3}
    rules = {e.rule for e in judge(records).episodes}
    assert ("METER" in rules, "COLLAPSE" in rules) == (fault, not fault)


def test_no_expert_has_more_pairs_than_there_are_tokens() -> None:
    rows = [[2100, 1500, 100, 96, 90, 80, 70, 60]] * 3
    found = loud(judge([header(), *(step(n, rows, 2048) for n in range(1, 60))]))
    assert {e.facts["cause"] for e in found} == {"load"}


@pytest.mark.parametrize(("ignore", "rule"), [((), "METER"), (("METER",), "COLLAPSE")])
def test_an_ignored_meter_mutes_nothing(ignore: tuple[str, ...], rule: str) -> None:
    records = [header(), *steps(1, 200, lambda n: DOUBLED)]
    criteria = Criteria(ignore=frozenset(ignore))
    assert {episode.rule for episode in loud(judge(records, criteria))} == {rule}


def test_equal_counts_of_a_method_that_makes_them_are_no_fault() -> None:
    equal = steps(1, 150, lambda n: [512] * 8)
    for method in ("sinkhorn", "base"):
        assert loud(judge([header(balance={"method": method}), *equal])) == []


@pytest.mark.parametrize(
    ("method", "row", "fault"),
    [
        ("expert_choice", [640] * 8, None),  # capacity 1.25
        ("expert_choice", [640] * 7 + [641], "unequal"),
        ("sinkhorn", [640] * 8, "sum"),
    ],
)
def test_only_where_experts_choose_do_their_equal_counts_replace_tokens_times_k(
    method: str, row: list[int], fault: str | None
) -> None:
    records = [step(n, [row] * 3, 2048) for n in range(1, 60)]
    found = loud(judge([header(balance={"method": method}), *records]))
    expected = {(Severity.ERROR, fault)} if fault else set()
    assert {(e.severity, e.facts["cause"]) for e in found} == expected


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (2, "1/2 of tokens × k (4,096)"),
        (4, "1/4 of"),
        (8, "1/8 of"),
        (3, "counts sum to 1,365, tokens × k is 4,096"),
    ],
)
def test_an_exact_part_of_the_sum_names_choices_and_ranks(part: int, words: str) -> None:
    def sick(n: int) -> list[int]:
        *row, _ = (count // part for count in even(n))
        return [*row, 4096 // part - sum(row)]

    ((_, advice),) = report(judge([header(), *steps(1, 60, sick)]))
    assert words in advice.why
    assert ("all top_k choices, of the first forward pass" in advice.next) == (part != 3)


def test_a_rank_without_counts_is_named_beside_a_wrong_sum() -> None:
    sick = lambda n: [*even(n)[:4], 0, 0, *even(n)[6:]]  # noqa: E731
    for ranks, named in ((4, True), (2, False), (8, False)):
        records = [header(expert_parallel_size=ranks), *steps(1, 60, sick)]
        ((_, advice),) = report(judge(records))
        assert ("; all experts of rank 2 have 0" in advice.why) == named


@pytest.mark.parametrize(
    ("every", "severity"), [(50, "warn"), (5, "warn"), (4, "warn"), (3, "error"), (1, "error")]
)
@pytest.mark.parametrize("layers", [1, 3])
def test_wrong_sums_are_a_warning_and_no_verdict_only_where_they_are_many(
    every: int, severity: str, layers: int
) -> None:
    records = [header(), *steps(1, 600)]
    for record in records[every::every]:
        *most, last = even(record["step"])
        rows = [[*most, last - 3]] * layers
        record |= step(record["step"], [*rows, *record["tokens_per_expert"][layers:]], 2048)
    found = loud(judge(records))
    assert {(e.rule, e.severity.label, e.active) for e in found} == {("METER", severity, True)}
    assert len(found) == layers


def test_wrong_sums_of_one_router_are_found_although_their_lines_have_a_period() -> None:
    records = [header(), *steps(1, 900)]
    for record in records[30::60]:  # between the checks of all routers
        record["tokens_per_expert"][2][0] -= 3
    (found,) = loud(judge(records))
    assert (found.rule, found.router_index) == ("METER", 2)


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_a_collapse_is_found_beside_a_few_wrong_lines(share: float) -> None:
    rng = random.Random(1)
    lying = {n for n in range(1, 600) if rng.random() < share}

    def sick(n: int) -> list[int]:
        row = COLLAPSED if n >= 300 else even(n)
        return [*even(n)[:7], 0] if n in lying else row  # they look even

    found = loud(judge([header(), *steps(1, 599, sick)]))
    assert {(e.rule, e.severity.label, e.active) for e in found} == {
        ("METER", "warn" if share < 0.3 else "error", True),
        *([("COLLAPSE", "crit", True)] if share < 0.3 else []),
    }
