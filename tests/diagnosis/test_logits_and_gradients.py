"""Two measures of one rule at once, and the numbers that an episode quotes."""

from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.diagnosis import Diagnosis, Severity
from tests.conftest import header
from tests.diagnosis.conftest import even, judge, of, steps


def logits(dtype: str, z_loss: Callable[[int], float], max_logit: Callable[[int], float]) -> Any:
    """The episodes of LOGITS; both readings of the router in the middle take a course."""
    readings = lambda n: {"z_loss": [4.0, z_loss(n), 4.0], "max_logit": [20.0, max_logit(n), 20.0]}  # noqa: E731
    records = [header(config={"dtype": dtype}), *steps(1, 400, router=readings)]
    return [episode for episode in judge(records).episodes if episode.rule == "LOGITS"]


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("logit", [55.0, 280.0])
def test_large_logits_hide_no_explosion_of_the_z_loss(dtype: str, logit: float) -> None:
    (found,) = logits(
        dtype, lambda n: 80.0 if n >= 300 else 4.0, lambda n: logit if n >= 300 else 20
    )
    assert (found.severity, found.value, found.onset) == (Severity.CRITICAL, 20.0, 300)


@pytest.mark.parametrize(("dtype", "expected"), [("bf16", [(70.0, 1.0)]), ("fp32", [])])
def test_logits_beyond_the_range_of_bf16_are_reported_in_bf16_only(
    dtype: str, expected: list[Any]
) -> None:
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
    assert spiking(lambda n: "Infinity" if n < 8 or n % 60 < 2 else 1.0).episodes == []


def test_an_overloaded_rank_and_an_overloaded_expert_are_not_compared_as_numbers() -> None:
    busy_rank = [840, 830, 820, 810, 200, 200, 198, 198]
    busy_expert = [2040, 100, 100, 100, 439, 439, 439, 439]

    def sick(n: int) -> list[int]:
        return even(n) if n < 220 else busy_rank if n < 300 else busy_expert

    found = of(judge([header(expert_parallel_size=2), *steps(1, 400, sick)]), "OVERLOAD")
    assert "cause" not in found.facts
    assert (found.value, found.limit) == (pytest.approx(3.98, abs=0.01), 3.5)
