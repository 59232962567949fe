"""Two measures of one rule at once, and the numbers that an episode quotes."""

from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.diagnosis import Diagnosis, Episode, Severity, report
from tests.conftest import header, step
from tests.diagnosis.conftest import COLLAPSED, Record, about, even, judge, of, steps


def logits(dtype: str, z_loss: Callable[[int], float], max_logit: Callable[[int], float]) -> Any:
    """The episodes of LOGITS; both readings of the router in the middle take a course."""
    readings = lambda n: {"z_loss": [4.0, z_loss(n), 4.0], "max_logit": [20.0, max_logit(n), 20.0]}  # noqa: E731
    records = [header(config={"dtype": dtype}), *steps(1, 400, router=readings)]
    return [episode for episode in judge(records).episodes if episode.rule == "LOGITS"]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("logit", [55.0, 280.0])
def test_large_logits_hide_no_explosion_of_the_z_loss(dtype: str, logit: float) -> None:
    (found,) = logits(dtype, lambda n: 80 if n >= 300 else 4, lambda n: logit if n >= 300 else 20)
    assert (found.severity, found.value, found.onset) == (Severity.CRITICAL, 20.0, 300)


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", [(70.0, 1.0)]), ("fp32", [])])
def test_logits_beyond_bf16_are_reported_in_bf16_only(dtype: str, expected: list[Any]) -> None:
    found = logits(dtype, lambda n: 4.0, lambda n: 70.0 if n >= 300 else 20.0)
    assert [(episode.facts["logit"], episode.limit) for episode in found] == expected


def test_the_limit_is_the_one_that_the_value_is_compared_with() -> None:
    (found,) = logits(
        "bf16", lambda n: 20.0 if n >= 330 else 4.0, lambda n: 70.0 if 300 <= n < 330 else 20.0
    )
    assert (found.value, found.limit) == (pytest.approx(5.0), 3.0)
    assert "z" in found.facts


def spiking(norm: Callable[[int], Any]) -> Diagnosis:
    return judge([header(), *steps(1, 400, grad_norm=norm)])


def test_a_spike_that_reopens_an_episode_is_the_one_it_quotes() -> None:
    spikes = {200: 60.0, 280: 5000.0}
    found = of(spiking(lambda n: spikes.get(n, 1.0)), "GRADSPIKE")
    assert (found.onset, found.value, found.facts["norm"]) == (200, 5000.0, 5000.0)


def test_the_overflows_of_a_loss_scale_are_not_reported() -> None:
    overflows = lambda n: "Infinity" if n < 8 or n % 60 < 2 else 1.0  # noqa: E731
    half = header(config={"dtype": "fp16"})
    assert judge([half, *steps(1, 400, grad_norm=overflows)]).episodes == []
    assert {e.severity for e in spiking(overflows).episodes} == {Severity.INFO}


def test_an_overloaded_rank_and_an_overloaded_expert_are_not_compared_as_numbers() -> None:
    busy_rank = about([840, 830, 820, 810, 200, 200, 198, 198])
    busy_expert = about([2040, 100, 100, 100, 439, 439, 439, 439])

    def sick(n: int) -> list[int]:
        return even(n) if n < 220 else busy_rank(n) if n < 300 else busy_expert(n)

    found = of(judge([header(expert_parallel_size=2), *steps(1, 400, sick)]), "OVERLOAD")
    assert "cause" not in found.facts
    assert (found.value, found.limit) == (pytest.approx(3.98, abs=0.02), 3.5)


def warming_up(
    z_loss: Callable[[int], float], falls: int = 999, certain: int = 999, last: int = 130,
    first: int = 1, **changes: Callable[[int], Any]) -> list[Record]:  # fmt: skip
    """All routers take the course of ``z_loss``, fall onto two experts and become certain."""
    records = [header(balance={"method": "aux", "aux_weight": 0.01})]
    for n in range(first, last + 1):
        rows = [COLLAPSED if n >= falls else even(n, router) for router in range(3)]
        entropy = 0.02 if n >= certain else 1.8
        readings = {"z_loss": [z_loss(n)] * 3, "entropy": [entropy] * 3}
        own = {name: value(n) for name, value in changes.items()}
        records.append(step(n, rows, 2048, router=readings, **own))
    return records


def exploding(n: int) -> float:
    """As a Mixtral at a rate ten times too high: 45-fold within 20 steps."""
    return 4.5 * min(45.0, max(1.0, 1.22 ** (n - 8)))


def logits_of(records: list[Record]) -> list[Episode]:
    return [episode for episode in judge(records).episodes if episode.rule == "LOGITS"]


@pytest.mark.parametrize(("least", "alarm"), [(999.0, 28), (18.0, 29)], ids=["all", "some"])
def test_an_explosion_in_the_warm_up_explains_a_collapse_of_all(least: float, alarm: int) -> None:
    records = warming_up(exploding, falls=12, certain=28)
    for record in records[1:]:
        record["router"]["z_loss"][2] = min(least, record["router"]["z_loss"][2])
    diagnosis = judge(records)
    found = {e.router_index: e for e in diagnosis.episodes if e.rule == "LOGITS"}
    # 1.5 times the first lines from step 11 on; 10 times from 20 on, for nine lines.
    assert {(e.severity, e.onset) for e in found.values()} == {(Severity.CRITICAL, 11)}
    assert [found[index].alarm for index in range(3)] == [28, 28, alarm]
    advised = {finding.rule: (finding, advice) for finding, advice in report(diagnosis)}
    collapse, advice = advised["COLLAPSE"]
    assert (len(collapse.layers), advice.cause[:26]) == (3, "learning rate too high, th")
    assert "Lower the learning rate" in advice.next
    assert "aux_weight" not in advice.next
    words = "45.0 times that of the first lines (202 against 4.5), and c is 0.00"
    assert words in advised["LOGITS"][1].why


@pytest.mark.parametrize(
    ("signs", "named"),
    [
        ({"certain": 20}, "the token entropy is 1.0% of its maximum"),
        ({"grad_norm": lambda n: 1.0 if n < 20 else 11.0}, "the gradient norm is 11 times what it"),
    ],
)
def test_large_logits_are_a_divergence_with_any_other_sign_of_it(signs: Any, named: str) -> None:
    (found, *_) = logits_of(warming_up(exploding, **signs))
    assert (found.severity, found.onset, found.alarm) == (Severity.CRITICAL, 11, 28)
    assert named in str(found.facts["sign"])


@pytest.mark.parametrize(
    "records",
    [
        warming_up(lambda n: min(130.0, exploding(n))),
        warming_up(lambda n: 4.5 * min(9.9, 1 + n / 9), falls=5, last=70),
        warming_up(lambda n: min(9.0, 0.01 * 1.3**n), falls=5, last=70),  # from zero
        warming_up(exploding, falls=5, first=101, last=170),  # the log begins too late
        # Grown healthily: a collapse long after it is another trouble.
        warming_up(lambda n: 4.5 * min(16.0, 1 + n / 4), falls=260, last=340),
    ],
)
def test_the_growth_of_logits_alone_is_no_divergence(records: list[Record]) -> None:
    assert logits_of(records) == []


@pytest.mark.parametrize(("by", "most", "warns"), [(1.2, 31, 1), (1.2, 30, 0), (1.007, 31, 1)])
def test_a_z_loss_that_grew_thirty_fold_in_one_layer_is_a_warning_of_its_own(
    by: float, most: float, warns: int
) -> None:
    grows = lambda n: {"z_loss": [1.5, 1.5 * min(most, max(1.0, by ** (n - 9))), 1.5]}  # noqa: E731
    found = report(judge([header(), *steps(1, 600, router=grows)]))
    assert [(f.layers, f.severity) for f, _ in found] == [(("L2",), Severity.WARN)] * warns
    assert all("that of the first lines" in advice.why for _, advice in found)


def test_a_z_loss_three_times_as_high_in_one_layer_alone_is_not_a_divergence() -> None:
    def advised(layers: int) -> Any:
        high = lambda n: {"z_loss": [14.0 if n >= 250 and i < layers else 4.0 for i in range(3)]}  # noqa: E731
        ((_, advice),) = report(judge([header(), *steps(1, 300, router=high)]))
        return advice

    alone = advised(1)
    assert (alone.cause, "go back" in alone.next) == ("", False)
    assert alone.next.startswith("Nothing while loss and grad_norm stay flat; if they rise, lower")
    assert advised(2).cause == "learning rate too high, the run diverges"


def test_an_explosion_in_the_warm_up_lasts_while_its_signs_do_and_survives_a_resume() -> None:
    settles = lambda n: 1.0 if n > 200 else exploding(n)  # noqa: E731
    long = warming_up(exploding, falls=12, last=400)
    assert all(episode.active for episode in logits_of(long))
    assert [e.recovered_at for e in logits_of(warming_up(settles, falls=12, last=300))] == [201] * 3
    again = [*long[:31], header(resumed_at_step=20), *long[20:61]]
    assert [(e.onset, e.severity) for e in logits_of(again)] == [(11, Severity.CRITICAL)] * 3
