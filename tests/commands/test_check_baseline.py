"""``check --baseline``: what changed against another run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]
NARROW = [700, 700, 700, 700, 700, 596, 0, 0]
"""Two of eight experts get nothing: the data is narrow."""


@pytest.fixture
def narrow(write_log: Any, make_header: Any, make_step: Any) -> Any:
    """A run on narrow data; ``dying`` stops getting tokens at step 150."""

    def write(name: str, dying: int | None = None, **header: Any) -> Path:
        def row(step: int) -> list[int]:
            counts = [*NARROW]
            counts[step % 4] += 30
            counts[(step + 1) % 4] -= 30
            if dying is not None and step >= 150:
                counts[0] += counts[dying]
                counts[dying] = 0
            return counts

        steps = [make_step(n, [row(n)] * 3, 2048) for n in range(1, 501)]
        end = {"kind": "event", "event": "end", "reason": "finished", "step": 500}
        return write_log([make_header(**header), *steps, end], name=name)  # type: ignore[no-any-return]

    return write


def test_what_the_baseline_starved_too_is_no_finding(microscope: Run, narrow: Any) -> None:
    before, run = narrow("before"), narrow("tuned")
    alone = microscope("check", run)
    assert alone.returncode == 2
    done = microscope("check", run, "--baseline", before)
    assert done.returncode == 0, done.stdout
    assert "note: against the baseline before, steps 301 to 500" in done.stdout
    assert "judged as finetune, the header has pretrain; --profile chooses another" in done.stdout


def test_an_expert_that_died_since_is_the_one_that_is_named(microscope: Run, narrow: Any) -> None:
    before, run = narrow("before"), narrow("tuned", dying=1)
    done = microscope("check", run, "--baseline", before.parent)
    assert done.returncode == 1, done.stdout
    assert "WARN DEAD" in done.stdout
    assert "1 of 8 experts (1) received no tokens" in done.stdout


def test_a_profile_that_is_asked_for_stands(microscope: Run, narrow: Any) -> None:
    before, run = narrow("before"), narrow("tuned")
    done = microscope("check", run, "--baseline", before, "--profile", "pretrain")
    assert done.returncode == 2
    assert "judged as pretrain (--profile)" in done.stdout


def test_a_baseline_of_another_model_is_a_usage_error_with_both_shapes(
    microscope: Run, narrow: Any, scenario: Any
) -> None:
    run = narrow("tuned")
    other = scenario("healthy", routers=2, num_experts=16, steps=30)
    for more in ([], ["--follow"], ["--all"]):
        done = microscope("check", run, "--baseline", other, *more)
        assert (done.returncode, done.stdout) == (64, "")
        assert "the baseline has 2 routers of 16 experts, top-2" in done.stderr
        assert "the run has 3 routers of 8 experts, top-2" in done.stderr


def test_a_baseline_that_cannot_serve_is_a_usage_error(
    microscope: Run, narrow: Any, write_log: Any, make_header: Any, tmp_path: Path
) -> None:
    run = narrow("tuned")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("just a text\n")
    headless = write_log([make_header()], name="headless")
    for path, words in (
        (tmp_path / "missing", "no such file or folder"),
        (tmp_path / "empty", "contains no run"),
        (tmp_path / "text", "is not a run log"),
        (headless, "holds no step with tokens_per_expert"),
    ):
        done = microscope("check", run, "--baseline", path)
        assert (done.returncode, done.stdout) == (64, "")
        assert words in done.stderr
        assert done.stderr.startswith("moe-microscope: --baseline ")
        assert "Traceback" not in done.stderr
