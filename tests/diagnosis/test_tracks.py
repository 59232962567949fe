"""Hysteresis on its own: evidence in, one alarm out, dated to the first of it."""

from hypothesis import given, strategies as st

from microscope_tui.diagnosis import Severity
from microscope_tui.diagnosis.rules.base import Track

WARN, CRITICAL = Severity.WARN, Severity.CRITICAL


def feed(over: str, enter: int = 10, leave: int = 20) -> Track:
    """``C`` critical, ``w`` warning, ``.`` clear, ``-`` inside the limit but not clear."""
    evidence = Track(enter, 9 * enter // 10, leave)
    for step, char in enumerate(over, start=1):
        severity = {"C": CRITICAL, "w": WARN}.get(char)
        evidence.observe(step, severity, char == ".")
    return evidence


def test_the_onset_is_the_first_step_of_the_evidence() -> None:
    assert feed("." * 30 + "C" * 10).since == 31
    assert feed("C...CC").since == 5  # not of single steps before it
    assert feed("." * 20 + "w.........." + "C" * 10).since == 32


def test_a_mixture_of_warnings_and_criticals_is_a_warning() -> None:
    assert feed("wwwwwCCCCC").severity is WARN
    assert feed("wCCCCCCCCC").severity is CRITICAL


def test_recovery_needs_a_long_clear_stretch_and_is_dated_to_its_start() -> None:
    assert feed("C" * 10 + "." * 19).cleared_at is None
    assert feed("C" * 10 + "." * 20).cleared_at == 11
    assert feed("C" * 10 + "." * 10 + "-" + "." * 10).cleared_at is None


@given(st.text(alphabet="Cw.-", max_size=60))
def test_the_counters_agree_with_the_window(text: str) -> None:
    evidence = feed(text)
    window = text[-10:]
    over = sum(char in "Cw" for char in window)
    assert (evidence.pending is not None) == (evidence.since is not None)
    assert evidence.over == over
    assert (evidence.severity is not None) == (over >= 9)
    assert (evidence.since or 0) <= len(text)
