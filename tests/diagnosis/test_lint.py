"""The pooled auxiliary loss: only where the writer is known to pool, and only if it stays so."""

from collections.abc import Callable
from typing import Any

import pytest

Make = Callable[..., Any]
POOLED = {"method": "aux", "aux_weight": 0.02, "output_router_logits": True}
PER_LAYER = {"method": "aux", "aux_weight": 0.02}


@pytest.mark.parametrize(
    ("balance", "length", "told"),
    [(POOLED, 200, True), (POOLED, 10, False), (PER_LAYER, 200, False)],
)
def test_an_auxiliary_loss_at_k_is_pooled_where_it_stays_there_and_the_writer_pools(
    judge: Make, steps: Make, make_header: Make, balance: Any, length: int, told: bool
) -> None:
    collapsed = [2048, 2048, 0, 0, 0, 0, 0, 0]
    aux = lambda n: {"aux": 2.0 if 200 <= n < 200 + length else 3.0}  # noqa: E731
    records = [make_header(balance=balance), *steps(1, 400, lambda n: collapsed, losses=aux)]
    causes = [e.facts["cause"] for e in judge(records).episodes if e.rule == "LINT"]
    assert causes == (["aux pooled"] if told else [])


def test_a_setting_is_told_although_the_first_steps_are_no_measurement(
    judge: Make, steps: Make, make_header: Make
) -> None:
    header = make_header(balance={"method": "none"})
    records = [header, *steps(1, 60, loss=lambda n: "NaN" if n < 5 else 2.0)]
    assert {e.rule for e in judge(records).episodes} == {"METER", "LINT"}
