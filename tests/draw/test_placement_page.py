"""The page of placements: every rank with its load and its experts, the verdict, ageing."""

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from microscope_tui.diagnosis import Severity
from microscope_tui.draw.glyphs import Glyphs
from microscope_tui.draw.heat import Heat
from microscope_tui.draw.spans import line_width, plain
from microscope_tui.extensions.placement.study import Request, Study, study
from microscope_tui.extensions.placement.text import placement_lines, repair_first
from microscope_tui.watch.cluster import rank_loads
from tests.extensions.placement.simulated import counts_of, drawn, popularity

RNG = np.random.default_rng(0)
UNEVEN = drawn(RNG, popularity(RNG, 3, 16), 80)


def placed(loads: np.ndarray = UNEVEN, ranks: int = 4, every: int = 1) -> Study:
    return study(counts_of(loads, every), Request(ranks=ranks))


def page(found: Study, columns: int = 160, rows: int = 40) -> list[Any]:
    router = found.counts.layers[1].router
    return placement_lines(found, router, (columns, rows), Heat(colour=False, glyphs=Glyphs.ASCII))


def test_every_rank_has_its_load_and_its_experts_the_busiest_first() -> None:
    found = placed()
    assert plain(page(found)[1]).startswith("  pays")
    for start, way in ((0, found.today), (80, found.chosen)):
        held, loads, shown = way.placements[1], found.loads[1], []
        ranks = rank_loads(loads, held)
        for line in page(found):
            row = re.match(r" +(\d+) +(\d\.\d\d) +#* +(.*)", plain(line)[start : start + 80])
            if row is not None:
                rank, experts = int(row[1]), [int(number) for number in re.findall(r"\d+", row[3])]
                assert experts == sorted(held[rank], key=lambda expert: -loads[expert])
                assert float(row[2]) == pytest.approx(ranks[rank] / np.mean(ranks), abs=0.006)
                shown.append(ranks[rank])
        assert shown == sorted(ranks, reverse=True)


def test_a_collapse_is_repaired_before_experts_are_placed() -> None:
    found = placed()
    router = found.counts.layers[1].router
    sick = "COLLAPSE in L2"
    lines = placement_lines(found, router, (160, 40), Heat(), sick)
    assert plain(lines[1]).startswith(f"  repair first: {sick}; its loads will change")


@pytest.mark.parametrize(
    ("rule", "severity", "said"),
    [
        ("COLLAPSE", Severity.WARN, "COLLAPSE in L1, L2"),
        ("DROPS", Severity.CRITICAL, "DROPS in L1, L2"),
        ("DEAD", Severity.WARN, ""),
    ],
)
def test_a_collapse_or_what_is_critical_is_repaired_first(
    rule: str, severity: Severity, said: str
) -> None:
    def found(rule: str, severity: Severity, *layers: str) -> Any:
        return SimpleNamespace(rule=rule, severity=severity, layers=layers), None

    mild = found("OVERLOAD", Severity.WARN, "L9")
    assert repair_first([mild, found(rule, severity, "L1", "L2", "L3")]) == said
    assert repair_first([found("DIVERGED", Severity.CRITICAL)]) == "DIVERGED in the run"


def test_what_limits_the_counts_is_said() -> None:
    found = study(counts_of(UNEVEN, counts="shares"), Request(ranks=4))
    assert plain(page(found)[3]).startswith("  note: the counts are shares")


@pytest.mark.parametrize("columns", [40, 60, 80, 121, 200])
def test_nothing_is_wider_than_the_screen_and_ranks_without_room_are_counted(columns: int) -> None:
    for ranks, text in ((2, ""), (16, "10 less busy ranks are not shown")):
        lines = page(placed(ranks=ranks), columns, 15)
        assert max(map(line_width, lines)) <= columns
        assert len(lines) <= 15
        assert plain(lines[-4]).strip().startswith(text)


def test_ageing_is_below_the_ranks_with_the_steps_to_a_refit() -> None:
    found = placed(np.concatenate([drawn(RNG, popularity(RNG, 3, 16), 40) for _ in range(8)]))
    lags, won, due = (plain(line) for line in page(found)[-3:])
    assert lags.split()[-len(found.ageing) :] == [f"{aged.lag:,}" for aged in found.ageing]
    assert won.split()[-1] == f"{found.ageing[-1].won:z.0%}"
    assert f"about {found.interval:,.0f} steps" in due
    assert "Ageing is not measured" in plain(page(placed(every=5000))[-1])
