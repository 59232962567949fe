"""Which tokens of the batch a router sees, and which of them are real."""

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from microscope_tui.probe import attach, forward_hooks
from microscope_tui.probe.forward_hooks import Batch
from tests.probe.layers import (
    ADAPTER,
    PAIRS,
    ROUTERS,
    TOP_K,
    WIDTH,
    Block,
    Model,
    one_step,
    records,
    sums,
    tokens,
)


def padded(last: int) -> Tensor:
    """A mask of ``tokens()`` without the last ones of every sequence."""
    mask_BS = torch.ones_like(tokens())
    mask_BS[:, -last:] = 0
    return mask_BS


class Seeing(Model):
    """With experts for patches of images, which are no tokens of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = nn.ModuleList([Block()])

    def forward(self, input_ids: Tensor, attention_mask: Any = None, **more: Any) -> Tensor:
        self.visual[0](torch.ones(2, 5, WIDTH))
        return super().forward(input_ids)


def test_the_padding_of_the_text_is_not_that_of_the_patches(tmp_path: Path) -> None:
    model, ids_BS = Seeing(), tokens()
    with attach(model, tmp_path, routers={"visual.0.gate": ADAPTER} | ROUTERS) as probe:
        model(ids_BS, padded(3), labels=ids_BS)
        probe.step()
    assert sums(tmp_path) == [[2 * 5 * TOP_K, *[2 * 9 * TOP_K] * 2]]


class Silent(Model):
    """It keeps its loss, and returns nothing."""

    def forward(self, *inputs: Any, **more: Any) -> Any:
        self.loss = super().forward(*inputs, **more).square().mean()


def test_a_pass_that_returns_nothing_counts(tmp_path: Path) -> None:
    one_step(Silent(), tmp_path, tokens())
    assert sums(tmp_path) == [[PAIRS] * 2]


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_model_that_is_checkpointed_as_a_whole_is_counted_once(
    use_reentrant: bool, tmp_path: Path
) -> None:
    model, reaches = Model(), torch.ones(1, requires_grad=True)

    def run(ids_BS: Tensor, reaches: Tensor) -> Tensor:
        hidden: Tensor = model(ids_BS) * reaches
        return hidden

    with attach(model, tmp_path, routers=ROUTERS) as probe:
        checkpoint(run, tokens(), reaches, use_reentrant=use_reentrant).sum().backward()
        probe.step()
    assert sums(tmp_path) == [[PAIRS] * 2]


class TopKGate(nn.Module):
    """As DeepSpeed's, which is told which tokens are used."""

    def __init__(self) -> None:
        super().__init__()
        self.wg, self.k, self.drop_tokens = nn.Linear(WIDTH, 4, bias=False), 1, False

    def forward(self, x_TD: Tensor, used_T: Tensor | None = None) -> Any:
        chosen_TE1 = nn.functional.one_hot(self.wg(x_TD).argmax(-1), 4)[..., None]
        return 0.0, chosen_TE1.float(), chosen_TE1.bool(), None


TopKGate.__module__ = "deepspeed.moe.sharded_moe"


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(50, WIDTH), nn.ModuleList([TopKGate()])

    def forward(self, input_ids: Tensor, used: Tensor, attention_mask: Any = None) -> Tensor:
        x_TD = self.embed(input_ids).flatten(0, 1)
        combined: Tensor = self.layers[0](x_TD, used.flatten())[1]
        return combined


def test_what_a_router_knows_of_its_tokens_comes_before_the_mask_of_the_batch(
    tmp_path: Path,
) -> None:
    model = Gated()
    with attach(model, tmp_path) as probe:
        model(tokens(), padded(5), padded(2))
        probe.step()
    assert sums(tmp_path) == [[2 * 7]]
    assert records(tmp_path)[0]["tokens"] == 2 * 7


IDS = torch.zeros(2, 4, dtype=torch.long)
REAL = torch.tensor([[0, 1, 1, 1], [1, 1, 0, 0]]).bool()


def real(stack: str = "", **given: Any) -> list[int] | None:
    found = Batch({"input_ids": IDS} | given).real(stack)
    return None if found is None else found.int().tolist()


def expected(mask_BS: Tensor) -> list[int]:
    return mask_BS.flatten().int().tolist()


def test_a_mask_may_have_any_form_that_transformers_takes() -> None:
    seen_B1SS = REAL[:, None, :, None] & REAL[:, None, None, :]
    added_B1SS = torch.zeros(seen_B1SS.shape).masked_fill(~seen_B1SS, -1e9)
    for mask in (REAL, REAL.long(), 3 * REAL, seen_B1SS, added_B1SS, {"full": None, "own": REAL}):
        assert real(attention_mask=mask) == expected(REAL)
    for mask in (None, "flash", torch.ones(3), {"full": None}):
        assert real(attention_mask=mask) is None


def test_of_a_mask_that_is_longer_only_the_end_is_of_these_tokens() -> None:
    earlier = torch.cat([REAL, REAL], dim=1)
    assert real(attention_mask=earlier) == expected(REAL)
    assert real("dec", decoder_input_ids=IDS, decoder_attention_mask=earlier) == expected(REAL)
    alone = Batch({"hidden": IDS, "attention_mask": REAL})  # whose tokens are not known
    assert expected(alone.real("")) == expected(REAL)  # type: ignore[arg-type]


def test_the_routers_of_a_pass_share_what_its_masks_show() -> None:
    batch = Batch({"input_ids": IDS, "attention_mask": REAL, "labels": IDS})
    assert batch.real("") is batch.real("")
    assert batch.loss("") is batch.loss("")


def test_packed_sequences_show_where_the_last_one_ends() -> None:
    for name in ("cu_seq_lens_q", "cu_seqlens", "cu_seqlens_q", "cu_seq_lens"):
        assert real(**{name: torch.tensor([0, 3, 6])}) == [1] * 6 + [0] * 2
    assert real(cu_seqlens=torch.tensor([])) is None
    assert real(cu_seqlens=[0, 3, 6]) is None
    without = Batch({"cu_seqlens": torch.tensor([0, 3])})
    assert without.real("") is None
    assert real(attention_mask=REAL, cu_seqlens=torch.tensor([0, 3])) == expected(REAL)


def test_positions_of_zero_at_the_end_are_padding_unless_one_stands_alone() -> None:
    positions = torch.tensor([[0, 1, 0, 0], [0, 1, 2, 0]])
    assert real(position_ids=positions) == [1, 1, 0, 0, 1, 1, 1, 1]
    assert real(position_ids=torch.zeros_like(positions)) == [1, 0, 0, 0] * 2
    assert real(position_ids=positions[:1]) is None
    assert real(position_ids=positions.tolist()) is None


def test_a_decoder_has_a_mask_of_its_own() -> None:
    labels = torch.where(REAL, 5, -100)
    given = {"attention_mask": ~REAL, "labels": labels}
    assert real("dec", **given, decoder_attention_mask=REAL) == expected(REAL)
    # Its inputs are the labels after a start token, if it has no others.
    assert real("dec", **given) == expected(torch.cat([torch.ones(2, 1), REAL[:, :-1]], dim=1))
    assert real("dec", **given, decoder_input_ids=IDS) is None
    assert real("dec", attention_mask=~REAL) is None
    assert real("enc", **given) == expected(~REAL)


def test_a_token_has_a_loss_where_its_own_label_and_the_next_one_show_one() -> None:
    labels = torch.where(REAL, 5, -100)

    def loss(stack: str = "", **given: Any) -> Any:
        found = Batch({"input_ids": IDS} | given).loss(stack)
        return None if found is None else found.int().tolist()

    assert loss(labels=labels) == [0, 1, 1, 0, 1, 0, 0, 0]
    assert loss("dec", labels=labels) == [0, 1, 1, 0, 1, 0, 0, 0]
    assert loss(shift_labels=labels) == expected(REAL)
    assert loss(labels=torch.full((2, 4), -100), shift_labels=labels) == expected(REAL)
    assert loss("vis", labels=labels) is None
    for unknown in (None, labels.tolist(), labels[:, :3]):
        assert loss(labels=unknown) is None


def test_the_tokens_of_a_batch_have_one_of_a_few_names() -> None:
    assert Batch({"input_ids": IDS}).rows("") == 8
    assert Batch({"tokens": torch.zeros(5)}).rows("") == 5  # without a dimension of sequences
    assert Batch({"x": torch.zeros(2, 3, WIDTH)}).rows("") == 6
    assert Batch({"input_ids": [[1, 2]], "x": torch.zeros(2, 3)}).rows("") == 6
    assert Batch({"x": torch.tensor(1.0)}).rows("") is None
    assert Batch({"input_ids": IDS, "decoder_input_ids": IDS[:, :3]}).rows("dec") == 6
    assert Batch({"input_ids": IDS}).rows("dec") is None


def test_a_layer_for_tokens_ahead_has_the_last_ones_of_every_sequence() -> None:
    batch = Batch({"input_ids": IDS})
    places = {rows: batch.places_ahead(rows) for rows in range(1, 10)}
    known = {rows: found.tolist() for rows, found in places.items() if found is not None}
    assert known == {6: [1, 2, 3, 5, 6, 7], 4: [2, 3, 6, 7], 2: [3, 7]}
    assert Batch({}).places_ahead(3) is None
    long = Batch({"input_ids": torch.zeros(1, 9)})
    assert [rows for rows in range(1, 10) if long.places_ahead(rows) is not None] == [6, 7, 8]


def test_without_pipelines_no_stage_runs_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled ranks ask for it, and may not have imported them."""
    monkeypatch.delitem(sys.modules, "torch.distributed.pipelining.stage", raising=False)
    assert not forward_hooks._in_stage()


def test_a_single_process_does_not_load_the_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That takes a second, and only a stage of a pipeline needs it."""
    loads = mock.Mock()
    monkeypatch.setattr(torch.compiler, "assume_constant_result", loads)
    one_step(Model(), tmp_path, tokens())
    assert not loads.called
