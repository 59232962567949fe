"""``check --baseline``: what changed against another run."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Call, header, step

NARROW = [700, 700, 700, 700, 700, 596, 0, 0]
"""Two of eight experts get nothing: the data is narrow."""


@pytest.fixture
def narrow(write_log: Any) -> Any:
    """A run on narrow data; ``dying`` stops getting tokens at step 150."""

    def write(name: str, dying: int | None = None, **changes: Any) -> Path:
        def row(step: int) -> list[int]:
            counts = [*NARROW]
            counts[step % 4] += 30
            counts[(step + 1) % 4] -= 30
            if dying is not None and step >= 150:
                counts[0] += counts[dying]
                counts[dying] = 0
            return counts

        steps = [step(n, [row(n)] * 3, 2048) for n in range(1, 401)]
        end = {"kind": "event", "event": "end", "reason": "finished", "step": 400}
        return write_log([header(**changes), *steps, end], name=name)  # type: ignore[no-any-return]

    return write


def test_what_the_baseline_starved_too_is_not_a_finding(call: Call, narrow: Any) -> None:
    before, run = narrow("before"), narrow("tuned")
    assert call("check", run)[0] == 2
    code, out, _ = call("check", run, "--baseline", before)
    assert code == 0, out
    assert "note: against the baseline before, steps 201 to 400" in out
    assert "judged as finetune, the header has pretrain; --profile chooses another" in out
    code, out, _ = call("check", run, "--baseline", before, "--profile", "pretrain")
    assert code == 2
    assert "judged as pretrain (--profile)" in out


def test_an_expert_that_died_since_is_the_one_that_is_named(call: Call, narrow: Any) -> None:
    before, run = narrow("before"), narrow("tuned", dying=1)
    code, out, _ = call("check", run, "--baseline", before.parent)
    assert code == 1, out
    assert "WARN DEAD" in out
    assert "1 of 8 experts (1) received no tokens" in out


def test_a_baseline_of_another_model_is_a_usage_error_with_both_shapes(
    call: Call, narrow: Any, scenario: Any
) -> None:
    run = narrow("tuned")
    other = scenario("healthy", routers=2, num_experts=16, steps=30)
    for more in ([], ["--follow"], ["--all"]):
        code, out, err = call("check", run, "--baseline", other, *more)
        assert (code, out) == (64, "")
        assert "the baseline has 2 routers of 16 experts, top-2" in err
        assert "the run has 3 routers of 8 experts, top-2" in err


def test_a_useless_baseline_is_a_usage_error(call: Call, write_log: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("just a text\n")
    headless = write_log([header()], name="headless")
    newer = write_log([{"kind": "run", "format_version": 9}], name="newer")
    for path, why in (
        (tmp_path / "missing", "no such file or folder"),
        (tmp_path / "empty", "contains no run"),
        (tmp_path / "text", "is not a run log"),
        (headless, "holds no step with tokens_per_expert"),
        (newer, "format_version is 9"),
    ):
        code, out, err = call("check", headless, "--baseline", path)
        assert (code, out) == (64, "")
        assert why in err
        assert err.startswith("moe-microscope: --baseline ")
        assert ("name a run that logs them" in err) == (path == headless)
        assert ("name another run" in err) == (path == newer)
