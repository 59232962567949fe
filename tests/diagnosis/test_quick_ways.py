"""What is computed for all routers at once, or only estimated, agrees with the exact way."""

import math
import random
from typing import Any

from hypothesis import given, strategies as st

from microscope_tui import measures
from microscope_tui.diagnosis import StepView
from microscope_tui.diagnosis.rules.oscillation import most_beyond, spreads
from microscope_tui.runlog import RouterInfo, RouterSummary, StepRecord, Values

NUMBERS = st.one_of(
    st.floats(0.5, 9.0),
    st.none(),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, 1.0, 2.0, 3.9, 8.0]),
)
SIZES = st.sampled_from([(8, 2), (8, 2), (8, 1), (64, 8), (4, 4), (0, 2), (8, 0)])


def same(found: Values, expected: Values) -> bool:
    wanted = [math.nan if value is None else value for value in expected]
    return list(map(repr, found)) == list(map(repr, wanted))


@given(st.lists(st.tuples(SIZES, NUMBERS, NUMBERS), min_size=1, max_size=5))
def test_the_index_of_all_routers_is_that_of_each(routers: Any) -> None:
    infos = tuple(RouterInfo("L", 1, *size) for size, _, _ in routers)
    effective, loads = [value for _, value, _ in routers], [load for _, _, load in routers]
    router = RouterSummary(effective_experts=effective, max_load=loads)
    view = StepView(StepRecord(1, router=router), infos, lambda index: None)
    plain = [measures.collapse_index(v, *size) for size, v, _ in routers]
    known = [load if load is not None and math.isfinite(load) else None for load in loads]
    pairs = zip(routers, known, strict=True)
    excused = [measures.balance_of_summary(v, load, *size) for (size, v, _), load in pairs]
    assert same(view.plain_index.values, plain)
    assert same(view.collapse_index.values, excused)


@given(st.integers(0, 10**6), st.floats(0.0, 0.5), st.floats(1e-4, 0.3))
def test_no_expert_that_varies_more_is_overlooked(seed: int, noise: float, limit: float) -> None:
    rng = random.Random(seed)
    rows = [[round(512 * (1 + noise * rng.uniform(-1, 1))) for _ in range(8)] for _ in range(16)]
    for row in rows:
        row[0] += 8 * 512 - sum(row)
    varied = sum(variance > limit for variance, _ in spreads(rows))
    assert varied <= most_beyond(rows, list(map(sum, rows)), limit) <= varied + 1
    assert most_beyond([*rows, [1] * 8], [*map(sum, rows), 8], limit) == 8
