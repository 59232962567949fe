"""What the trainer passes to ``probe.step`` may be wrong, and costs that number alone."""

import logging
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from microscope_tui.probe import attach
from microscope_tui.probe.losses import Share, Shares, number_of
from tests.probe.layers import ADAPTER, PAIRS, ROUTERS, TOP_K, Model, records, sums, tokens, watched


def lines_of(folder: Path, *steps: dict[str, Any]) -> list[dict[str, Any]]:
    with watched(folder) as (model, probe):
        for given in steps:
            model(tokens())
            probe.step(**given)
    assert sums(folder) == [[PAIRS, PAIRS]] * len(steps)
    return records(folder)


@pytest.mark.parametrize(
    ("given", "kept", "warnings"),
    [
        ({"loss": "high"}, {"loss": None}, 1),
        ({"loss": {"total": 1.0}}, {"loss": None}, 1),
        ({"loss": torch.tensor(1j)}, {"loss": None}, 1),
        ({"loss": torch.tensor([1.0, 3.0])}, {"loss": 2.0}, 0),
        ({"loss": "0.5"}, {"loss": None}, 1),
        ({"loss": True}, {"loss": None}, 1),
        ({"losses": {"mtp": "high", "aux": 1.5}}, {"losses": {"aux": 1.5}}, 1),
        ({"losses": {"mtp": torch.ones(2)}}, {"losses": {}}, 1),
        ({"grad_norm": object()}, {"grad_norm": None}, 1),
        ({"grad_norm": torch.tensor([[0.5]])}, {"grad_norm": 0.5}, 0),
        ({"grad_norm": None, "loss": None}, {"grad_norm": None, "loss": None}, 0),
    ],
)
def test_a_number_of_a_wrong_type_is_left_out_and_the_line_stays(
    given: Any, kept: Any, warnings: int, tmp_path: Path, caplog: Any
) -> None:
    first, second, third = lines_of(tmp_path, given, given, {"loss": 0.5})
    for line in (first, second):
        assert {name: line.get(name) for name in kept} == kept
    assert third["loss"] == 0.5, "it still counts"
    warned = [one for one in caplog.messages if "left out" in one]
    assert len(warned) == warnings, "once in two steps"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ([0.5, 0.25], [0.5, 0.25]),
        (torch.tensor([0.5, 0.25]), [0.5, 0.25]),
        ([None, 0.25], [None, 0.25]),
        ([0.5], None),
        ([0.5, 0.5, 0.5], None),
        (["a", "b"], None),
        (0.5, None),
        (mock.Mock(tolist=mock.Mock(side_effect=RuntimeError("gone"))), None),
    ],
)
def test_router_readings_of_another_length_are_left_out_and_the_line_stays(
    value: Any, kept: Any, tmp_path: Path, caplog: Any
) -> None:
    step = {"router": {"disagreement": value}}
    for line in lines_of(tmp_path, step, step):
        assert line["router"].get("disagreement") == kept
    warned = [one for one in caplog.messages if "router['disagreement']" in one]
    assert len(warned) == int(kept is None)


def test_a_tensor_that_the_trainer_changes_is_logged_as_it_was() -> None:
    given = torch.tensor([2.0])
    kept = number_of(given)
    given += 1
    assert float(kept) == 2.0


def share(term: float, group: int = 2, order: float = 1.0) -> Any:
    return mock.patch(
        "microscope_tui.probe.losses.number_of",
        return_value=Share(torch.tensor(term, dtype=torch.float64), group, order),
    )


def summed(terms: list[float | None], group: int, order: float) -> dict[Any, float]:
    """What is read of the sum over ranks, each with its term or without one."""
    ranks = []
    for term in terms:
        ranks.append(Shares())
        if term is not None:
            with share(term, group, order):
                assert ranks[-1].take(("grad_norm",), None) is None
    for rank in ranks:
        rank.agree([one.places() for one in ranks])
    total = sum((rank.vector(rank.own, torch.device("cpu")) for rank in ranks), torch.zeros(2))
    assert [rank.size for rank in ranks] == [2] * len(ranks)
    return ranks[0].read(total.tolist())


@pytest.mark.parametrize(
    ("terms", "group", "order", "expected"),
    [
        ([6.0, 2.0], 2, 1.0, 4.0),
        ([6.0, 2.0, 6.0, 2.0], 2, 1.0, 4.0),  # two replicas
        ([18.0, 32.0], 2, 2.0, 5.0),  # norms 3 and 4
        ([None, None, 6.0, 2.0], 2, 1.0, 4.0),  # as of the last stage of a pipeline
        ([6.0, None], 2, 1.0, None),
        ([6.0, 2.0, 6.0, None], 2, 1.0, None),
    ],
)
def test_replicas_count_once_and_an_absent_share_leaves_the_number_out(
    terms: list[float | None], group: int, order: float, expected: float | None
) -> None:
    found = summed(terms, group, order)
    assert found.get(("grad_norm",)) == (None if expected is None else pytest.approx(expected))


def test_a_number_is_left_out_if_later_a_rank_of_each_group_lacks_it() -> None:
    ranks = [Shares() for _ in range(4)]
    for rank in ranks:
        with share(1.0):
            rank.take(("grad_norm",), None)
    for rank in ranks:
        rank.agree([one.places() for one in ranks])
    for rank in ranks[::2]:
        rank.own = {}
    total = sum((rank.vector(rank.own, torch.device("cpu")) for rank in ranks), torch.zeros(2))
    assert total.tolist() == [2.0, 2.0]
    assert ranks[0].read(total.tolist()) == {}


def test_a_number_that_is_split_otherwise_later_is_not_summed() -> None:
    own = Shares()
    with share(1.0, group=2):
        own.take(("grad_norm",), None)
    own.agree([own.places()])
    assert own.strangers(own.own) == []
    own.own = {}
    with share(1.0, group=4):
        own.take(("grad_norm",), None)
    assert own.strangers(own.own) == [("grad_norm",)]
    assert own.vector(own.own, torch.device("cpu")).tolist() == [0.0, 0.0]


class Ahead(Model):
    """Its last layer is for multi-token prediction: it has no input for the first tokens."""

    ahead = 1

    def __init__(self) -> None:
        super().__init__()
        self.mtp = nn.ModuleList([self.layers.pop(2)])

    def forward(self, input_ids: Tensor, attention_mask: Any = None, **more: Any) -> Tensor:
        x_BSD = self.embed(input_ids)
        for layer in self.layers:
            x_BSD = layer(x_BSD)
        nearer_BSD = self.embed(input_ids)[:, self.ahead :]
        return self.mtp[0](x_BSD[:, : -self.ahead] + nearer_BSD)


WITH_MTP = {"layers.1.gate": ADAPTER, "mtp.0.gate": ADAPTER}


@pytest.fixture(name="masks")
def _masks() -> Tensor:
    mask_BS = torch.ones(2, 12)
    mask_BS[1, 7:] = 0
    return mask_BS


@pytest.mark.parametrize("ahead", [1, 3])
@pytest.mark.parametrize("saliency", [False, True])
def test_a_layer_that_predicts_tokens_ahead_counts_its_own_real_tokens(
    ahead: int, saliency: bool, masks: Tensor, tmp_path: Path
) -> None:
    model = Ahead()
    model.ahead = ahead
    with attach(model, tmp_path, routers=WITH_MTP, saliency=saliency) as probe:
        for _ in range(2):
            model(tokens(), masks)
            model(tokens(), masks)
            probe.step()
    real = 12 + 7
    assert sums(tmp_path) == [[4 * real, 4 * (real - 2 * ahead)]] * 2
    assert [line["router"]["tokens"] for line in records(tmp_path)] == [
        [2 * real, 2 * (real - 2 * ahead)]
    ] * 2


def test_a_layer_that_sees_half_of_the_tokens_still_ends_the_count(
    masks: Tensor, tmp_path: Path, caplog: Any
) -> None:
    model = Ahead()
    model.ahead = 5
    with attach(model, tmp_path, routers=WITH_MTP) as probe, caplog.at_level(logging.WARNING):
        model(tokens(), masks)
        probe.step()
    assert "it is not known which these are" in caplog.text


def test_a_layer_that_takes_its_tokens_in_pieces_is_not_taken_for_one_that_looks_ahead(
    tmp_path: Path,
) -> None:
    class InPieces(Model):
        def forward(self, input_ids: Tensor, attention_mask: Any = None, **more: Any) -> Tensor:
            x_BSD = self.embed(input_ids)
            for layer in self.layers:
                x_BSD = torch.cat([layer(x_BSD[:, :10]), layer(x_BSD[:, 10:])], dim=1)
            return x_BSD

    mask_BS = torch.ones(1, 12)
    mask_BS[0, 9:] = 0
    model = InPieces()
    with attach(model, tmp_path, routers=ROUTERS) as probe:
        model(tokens(1), mask_BS)
        probe.step()
    assert sums(tmp_path) == [[9 * TOP_K, 9 * TOP_K]]
