"""The order of the data, checked against windows and targets counted by hand."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from moe_model.training.batches import IGNORED, StepBatches, TrainingBatches, held_out_batches
from moe_model.training.corpus import Tokens


def tokens_of(lengths: list[int], dtype: torch.dtype = torch.int64) -> Tokens:
    """Documents of these lengths; every token is its own place, so that places can be seen."""
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return Tokens(torch.arange(int(bounds[-1])).to(dtype), bounds[:-1])


def rows(step: StepBatches) -> Tensor:
    return torch.cat([batch.tokens_BN for batch in step.micro_batches])


def draw_all(
    tokens: list[Tokens], steps: int, size: int, accum: int, world: int, **more: Any
) -> Tensor:
    """What all ranks see, in the order of the sequences: ``(steps, sequences, N)``."""
    ranks = [
        TrainingBatches(
            tokens, batch_size=size, grad_accum=accum, world_size=world, rank=rank, **more
        )
        for rank in range(world)
    ]
    seen = []
    for _ in range(steps):
        drawn = [source.draw().micro_batches for source in ranks]
        seen.append(
            torch.cat([micro.tokens_BN for both in zip(*drawn, strict=True) for micro in both])
        )
    return torch.stack(seen)


@st.composite
def corpora(draw: Callable[..., Any]) -> tuple[Tokens, dict[str, int]]:
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=8))
    ahead = draw(st.integers(0, 3))
    longest = sum(lengths) - 1 - ahead
    if longest < 1:
        lengths.append(2 - longest)
        longest = sum(lengths) - 1 - ahead
    shape = {"seq_len": draw(st.integers(1, longest)), "ahead": ahead, "seed": draw(st.integers())}
    return tokens_of(lengths), shape


@given(corpora())
def test_an_epoch_takes_every_window_and_token_once(corpus: tuple[Tokens, dict[str, int]]) -> None:
    tokens, shape = corpus
    length = shape["seq_len"]
    windows = len(tokens) // length
    source = TrainingBatches([tokens], batch_size=windows, **shape)
    for epoch in range(3):
        assert source.drawn == epoch * windows
        inputs = rows(source.draw())[:, :length]
        assert len(inputs.unique()) == windows * length
        assert torch.equal(inputs, (inputs[:, :1] + torch.arange(length)) % len(tokens))
        assert len((inputs[:, 0] % length).unique()) <= 2  # one stride, cut once by the ring


def test_epochs_cut_at_other_places_in_another_order() -> None:
    source = TrainingBatches([tokens_of([1000])], batch_size=100, seq_len=10, seed=3)
    firsts = [rows(source.draw())[:, 0] for _ in range(20)]
    assert len({int(first[0]) % 10 for first in firsts}) > 5
    assert len({tuple((first // 10).tolist()) for first in firsts}) == 20


@given(corpora(), st.integers(0, 40))
def test_the_data_position_is_one_number(corpus: tuple[Tokens, dict[str, int]], drawn: int) -> None:
    tokens, shape = corpus
    one_by_one = TrainingBatches([tokens], batch_size=1, **shape)
    for _ in range(drawn):
        one_by_one.draw()
    resumed = TrainingBatches([tokens], batch_size=1, **shape)
    resumed.drawn = drawn
    assert torch.equal(rows(one_by_one.draw()), rows(resumed.draw()))
    assert one_by_one.drawn == resumed.drawn == drawn + 1


@pytest.mark.parametrize("length", [7, 96, 1000], ids=["short", "uneven", "long"])
def test_ranks_and_accumulation_only_share_out_the_same_sequences(length: int) -> None:
    # 10 to 1 windows an epoch, so that epochs end in the middle of a step.
    tokens = [tokens_of([400, 3, 597, 30]), tokens_of([1010])]
    shape = {"seq_len": length, "ahead": 1, "seed": 5, "weights": (3, 2)}
    alone = draw_all(tokens, 6, 8, 1, 1, **shape)
    for size, accum, world in ((4, 1, 2), (4, 2, 1), (2, 2, 2), (1, 2, 4), (1, 8, 1)):
        assert torch.equal(draw_all(tokens, 6, size, accum, world, **shape), alone)


@given(st.lists(st.integers(1, 6), min_size=2, max_size=4), st.integers(0, 30))
def test_a_round_has_the_weight_of_every_text_and_its_sequences_in_turn(
    weights: list[int], rounds: int
) -> None:
    texts = [tokens_of([50 + 7 * text]) for text in range(len(weights))]
    shape: dict[str, Any] = {"batch_size": 1, "seq_len": 5, "seed": 1}
    marked = [Tokens(t.ids + 1000 * place, t.starts) for place, t in enumerate(texts)]
    mixed = TrainingBatches(marked, weights=weights, drawn=rounds * sum(weights), **shape)
    found = torch.cat([rows(mixed.draw()) for _ in range(sum(weights))])[:, 0]
    assert (found // 1000).bincount().tolist() == weights
    alone = TrainingBatches(texts[:1], drawn=rounds * weights[0], **shape)
    expected = torch.cat([rows(alone.draw()) for _ in range(weights[0])])[:, 0]
    assert sorted(found[found < 1000].tolist()) == sorted(expected.tolist())


def test_the_order_depends_on_the_seed_alone_and_leaves_the_global_generator_alone() -> None:
    """Not on how far is predicted either."""

    def drawn(**more: int) -> Tensor:
        return rows(TrainingBatches([tokens_of([500])], batch_size=50, seq_len=10, **more).draw())

    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = drawn(seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(first, drawn(seed=0))
    assert torch.equal(first, drawn(seed=0, ahead=2)[:, : first.shape[1]])
    assert not torch.equal(first, drawn(seed=1))


@given(corpora())
def test_a_target_is_the_token_ahead_unless_a_document_begins_on_the_way(corpus: Any) -> None:
    tokens, shape = corpus
    starts = set(tokens.starts.tolist())
    (batch,) = TrainingBatches([tokens], batch_size=2, **shape).draw().micro_batches
    for ahead in range(1, shape["ahead"] + 2):
        targets = batch.targets(ahead, shape["seq_len"])
        assert targets.shape == (2, shape["seq_len"])
        for row, target_S in zip(batch.tokens_BN.tolist(), targets.tolist(), strict=True):
            for place, target in enumerate(target_S):
                way = row[place + 1 : place + 1 + ahead]  # a token is its own place
                assert target == (IGNORED if starts & set(way) else way[-1])


@given(corpora(), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(0, 30))
@settings(max_examples=60)
def test_targets_of_the_whole_step_are_counted_without_the_other_ranks(
    corpus: tuple[Tokens, dict[str, int]], size: int, accum: int, world: int, drawn: int
) -> None:
    tokens, shape = corpus
    steps = []
    for rank in range(world):
        source = TrainingBatches(
            [tokens], batch_size=size, grad_accum=accum, rank=rank, world_size=world, **shape
        )
        source.drawn = drawn
        steps.append(source.draw())
    for ahead in range(1, shape["ahead"] + 2):
        batches = [batch for step in steps for batch in step.micro_batches]
        targets = [batch.targets(ahead, shape["seq_len"]) for batch in batches]
        real = sum(int((each != IGNORED).sum()) for each in targets)
        assert {step.num_targets[ahead - 1] for step in steps} == {real}
        assert all(len(step.num_targets) == shape["ahead"] + 1 for step in steps)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int32], ids=str)
def test_narrow_ids_give_the_same_batches(dtype: torch.dtype) -> None:
    ids = torch.tensor([65535, 40000, *range(58)])  # beyond the signed range of 16 bits
    shape = {"batch_size": 12, "seq_len": 5, "ahead": 1, "seed": 0}
    wide, narrow = (
        TrainingBatches([Tokens(each, torch.tensor([0]))], **shape).draw().micro_batches[0]
        for each in (ids, ids.to(dtype))
    )
    assert narrow.tokens_BN.dtype == torch.int64
    assert torch.equal(narrow.tokens_BN, wide.tokens_BN)
    assert set(wide.tokens_BN.flatten().tolist()) == set(ids.tolist())


def test_a_batch_moves_as_a_whole() -> None:
    (batch,) = held_out_batches(tokens_of([20]), 2, 8, 1)
    moved = batch.to(torch.device("meta"))
    assert {part.device.type for part in moved} == {"meta"}


def test_held_out_batches_are_spread_and_the_same_every_time() -> None:
    tokens = tokens_of([150, 251])
    batches = held_out_batches(tokens, batch_size=2, seq_len=10, most=6)
    again = held_out_batches(tokens, batch_size=2, seq_len=10, most=6)
    assert all(torch.equal(a.tokens_BN, b.tokens_BN) for a, b in zip(batches, again, strict=True))
    assert [batch.tokens_BN.shape for batch in batches] == [(2, 11)] * 3
    firsts = torch.cat([batch.tokens_BN[:, 0] for batch in batches])
    assert firsts.tolist() == [0, 66, 132, 198, 264, 330]
    assert [int(batch.starts_BN.sum()) for batch in batches] == [1, 0, 0]


@given(st.integers(1, 300), st.integers(1, 20), st.integers(1, 5), st.integers(1, 5))
def test_held_out_sequences_do_not_overlap(size: int, length: int, batch: int, most: int) -> None:
    tokens = tokens_of([size + length])
    batches = held_out_batches(tokens, batch, length, most)
    inputs = torch.cat([part.tokens_BN[:, :-1].flatten() for part in batches])
    assert len(inputs) == len(inputs.unique()) == min((size + length - 1) // length, most) * length
