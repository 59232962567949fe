"""LOGITS by two measures at once, GRADSPIKE without a number, and the numbers an episode quotes."""

from collections.abc import Callable
from typing import Any

import pytest

from microscope_tui.diagnosis import Criteria, Diagnosis, GradientLimits, Limits, Severity
from microscope_tui.report import findings_with_advice
from microscope_tui.runlog import RouterInfo, RunRecord, StepRecord
from tests.diagnosis.conftest import of

Make = Callable[..., Any]
BF16 = {"config": {"dtype": "bf16"}}


def router(z_loss: float, max_logit: float) -> dict[str, list[float]]:
    return {"z_loss": [4.0, z_loss, 4.0], "max_logit": [20.0, max_logit, 20.0]}


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_large_logits_hide_no_explosion_of_the_z_loss(
    judge: Make, steps: Make, make_header: Make, dtype: str
) -> None:
    def growing(n: int) -> dict[str, list[float]]:
        factor = min(200.0, 1.05 ** max(0, n - 400))
        return router(4.0 * factor, 20.0 * factor**0.5)

    header = make_header(config={"dtype": dtype})
    found = of(judge([header, *steps(1, 600, router=growing)]), "LOGITS")
    assert (found.severity, found.value) == (Severity.CRITICAL, pytest.approx(200.0))
    assert 400 < found.onset < 420


def test_logits_just_below_the_limit_of_bf16_hide_no_explosion_either(
    judge: Make, steps: Make, make_header: Make
) -> None:
    exploded = lambda n: router(80.0, 55.0) if n >= 400 else router(4.0, 20.0)  # noqa: E731
    found = of(judge([make_header(**BF16), *steps(1, 600, router=exploded)]), "LOGITS")
    assert (found.severity, found.onset) == (Severity.CRITICAL, 400)


def test_logits_beyond_bf16_are_told_while_the_z_loss_is_as_ever(
    judge: Make, steps: Make, make_header: Make
) -> None:
    large = lambda n: router(4.0, 70.0 if n >= 400 else 20.0)  # noqa: E731
    found = of(judge([make_header(**BF16), *steps(1, 600, router=large)]), "LOGITS")
    assert (found.severity, found.facts["logit"], found.limit) == (Severity.WARN, 70.0, 1.0)
    in_fp32 = judge([make_header(config={"dtype": "fp32"}), *steps(1, 600, router=large)])
    assert in_fp32.episodes == []


def test_the_limit_is_the_one_that_the_value_is_held_against(
    judge: Make, steps: Make, make_header: Make
) -> None:
    def turning(n: int) -> dict[str, list[float]]:
        return router(20.0 if n >= 440 else 4.0, 70.0 if 400 <= n < 440 else 20.0)

    found = of(judge([make_header(**BF16), *steps(1, 600, router=turning)]), "LOGITS")
    assert (found.value, found.limit) == (pytest.approx(5.0), 3.0)
    assert "z" in found.facts


def test_a_spike_that_reopens_an_episode_is_the_one_it_quotes(
    judge: Make, steps: Make, make_header: Make
) -> None:
    spikes = {400: 60.0, 480: 5000.0}
    records = [make_header(), *steps(1, 600, grad_norm=lambda n: spikes.get(n, 1.0))]
    found = of(judge(records), "GRADSPIKE")
    assert (found.onset, found.value, found.facts["norm"]) == (400, 5000.0, 5000.0)


@pytest.mark.parametrize("norm", ["NaN", "Infinity"])
def test_gradients_that_are_no_number_are_critical(
    judge: Make, steps: Make, make_header: Make, norm: str
) -> None:
    broken = steps(1, 400, grad_norm=lambda n: norm if n >= 300 else 1.0, loss=lambda n: 0.0)
    diagnosis = judge([make_header(), *broken])
    found = of(diagnosis, "GRADSPIKE")
    assert (found.severity, found.onset, found.alarm) == (Severity.CRITICAL, 300, 302)
    ((_, advice),) = findings_with_advice(diagnosis, diagnosis.episodes)
    assert "NaN or infinite in 10 of 10 steps" in advice.why


def test_a_gradient_that_is_no_number_in_every_third_step_is_a_warning(
    judge: Make, steps: Make, make_header: Make
) -> None:
    third = steps(1, 400, grad_norm=lambda n: "NaN" if n >= 200 and n % 3 == 0 else 1.0)
    found = of(judge([make_header(), *third]), "GRADSPIKE")
    assert (found.severity, found.active) == (Severity.WARN, True)


def test_the_overflows_of_a_loss_scale_are_nothing(
    judge: Make, steps: Make, make_header: Make
) -> None:
    searching = lambda n: "Infinity" if n < 8 or n % 60 < 2 else 1.0  # noqa: E731
    assert judge([make_header(), *steps(1, 400, grad_norm=searching)]).episodes == []


def test_how_soon_a_divergence_follows_a_spike_is_a_limit_of_one_s_own(
    write_log: Make, steps: Make, make_header: Make
) -> None:
    from microscope_tui.runlog import RunFile
    from microscope_tui.watch import RunWatch

    exploding = steps(
        1,
        500,
        grad_norm=lambda n: 60.0 if n == 400 else 1.0,
        router=lambda n: {"z_loss": [20.0 if n >= 420 else 4.0] * 3},
    )
    path = write_log([make_header(), *exploding])

    def severity(limits: Limits) -> Severity:
        watch = RunWatch(RunFile("run", path, 0.0), Criteria(limits=limits))
        watch.read_all()
        diagnosis: Diagnosis | None = watch.diagnosis
        assert diagnosis is not None
        return of(diagnosis, "GRADSPIKE").severity

    assert severity(Limits()) is Severity.CRITICAL
    assert severity(Limits((GradientLimits(followed=10),))) is Severity.WARN


def test_an_overloaded_rank_and_an_overloaded_expert_are_not_compared_as_numbers(
    judge: Make, steps: Make, make_header: Make, balanced: Make
) -> None:
    busy_rank = [840, 830, 820, 810, 200, 200, 198, 198]
    busy_expert = [2040, 100, 100, 100, 439, 439, 439, 439]

    def sick(n: int) -> list[int]:
        return balanced() if n < 220 else busy_rank if n < 300 else busy_expert

    records = [make_header(expert_parallel_size=2), *steps(1, 400, sick)]
    found = of(judge(records), "OVERLOAD")
    assert "cause" not in found.facts
    assert (found.value, found.limit) == (pytest.approx(3.98, abs=0.01), 3.5)


def test_an_infinite_norm_before_the_first_step_is_no_error() -> None:
    run = RunRecord("r", (RouterInfo("L1", 1, 8, 2),))
    diagnosis = Diagnosis(run)
    assert diagnosis.observe(StepRecord(0, grad_norm=float("inf")), lambda index: None) == []
