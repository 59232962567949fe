"""Claims that every rank of a world must find true: steps, sums, faults. ``worlds.py`` starts them.

``shards.py`` and ``losing_ranks.py`` have those about checkpoints, and about ranks that end.
"""

import math
import os
import time
import warnings
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.tensor import DTensor

from microscope_tui.probe import RoutingCounter
from moe_model import LanguageModel, ModelConfig, UsageError
from moe_model.balance import update_expert_bias
from moe_model.router import Routing
from moe_model.training.options import Options
from moe_model.training.parallel import parallelize, synchronised, whole_weights
from moe_model.training.step import clip_gradients, gradient_squares, make_optimizer
from moe_model.training.world import World, agree
from tests.training.test_host_reads import HostReads

Claim = Callable[[World, Path], None]
CPU = torch.device("cpu")
SEQUENCES, LENGTH = 24, 10
KINDS: tuple[Any, ...] = ("ddp", "fsdp")


def make_model(*, tied: bool = False, small: bool = False) -> LanguageModel:
    """A few thousand parameters. Two and three ranks share 29 tokens unequally; of 4 experts, the
    last of three ranks gets none."""
    config = ModelConfig(
        vocab_size=29, hidden_size=16, num_hidden_layers=2 if small else 3, first_k_dense_replace=1,
        intermediate_size=24, moe_intermediate_size=8, n_routed_experts=4, n_shared_experts=1,
        num_experts_per_tok=2, num_attention_heads=2, kv_lora_rank=8, qk_nope_head_dim=4,
        qk_rope_head_dim=4, v_head_dim=4, max_position_embeddings=32, tie_word_embeddings=tied,
        num_nextn_predict_layers=0 if small else 1,
    )  # fmt: skip
    model = LanguageModel(config)
    model.init_weights(torch.Generator().manual_seed(0))
    return model.train()


def all_sequences() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 29, (SEQUENCES, LENGTH + 2), generator=generator)


def loss_of(
    forward: Callable[..., Any],
    ids_BN: Tensor,
    counter: RoutingCounter | None = None,
    *,
    ahead: bool = True,
) -> Tensor:
    """This part's share of the mean over all sequences; its routings are counted."""
    output = forward(ids_BN[:, :LENGTH], next_ids=ids_BN[:, 1:-1] if ahead else None)
    if counter is not None:
        counter.add(output.routings)
    next_ids, after = ids_BN[:, 1:-1].flatten(), ids_BN[:, 2:].flatten()
    total = F.cross_entropy(output.logits_BSV.flatten(0, 1), next_ids, reduction="sum")
    for logits_BSV in output.ahead_logits:
        total = total + 0.3 * F.cross_entropy(logits_BSV.flatten(0, 1), after, reduction="sum")
    return total / (SEQUENCES * LENGTH)


def train_step(
    model: LanguageModel, forward: Callable[..., Any], optimizer: Any, world: World
) -> tuple[dict[str, Tensor], float, list[list[int]]]:
    """One step in two micro-batches; gradients before clipping, whole, their norm, and counts."""
    counter = RoutingCounter(model.config, model.routers)
    ahead = all(parameter.requires_grad for parameter in model.mtp.parameters())
    own_AB = all_sequences().view(2, world.size, -1, LENGTH + 2)[:, world.rank]
    for place, ids_BN in enumerate(own_AB):
        with synchronised(forward, last=place == 1):
            loss_of(forward, ids_BN, counter, ahead=ahead).backward()
    gradients = {
        name: whole(parameter.grad).clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    norm = counter.all_reduce(world, gradient_squares(model, world, 1.0))[-1].sqrt()
    clip_gradients(model, norm * 10, 1.0, Options().clip)
    optimizer.step()
    optimizer.zero_grad()
    update_expert_bias(model.routers, counter.counts, 0.01)
    return gradients, norm.item(), counter.counts.tolist()


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``; gathering a DTensor is a collective."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def step_is_that_of_one_process(kind: Any, *more: str) -> Claim:
    """Two micro-batches, multi-token prediction: plain sums over ranks."""

    def claim(world: World, folder: Path) -> None:
        alone, model = (make_model(tied="tied" in more) for _ in range(2))
        for each in (alone, model):
            if "frozen" in more:
                each.freeze_ahead()  # ranks must not wait for gradients that never come
        torch.use_deterministic_algorithms("deterministic" in more)
        name: Any = "muon" if "muon" in more else "adamw"
        expected, expected_norm, expected_counts = train_step(
            alone, alone, make_optimizer(alone, Options(lr=1e-2, optimizer=name)), World()
        )
        if world.rank:
            model.norm.weight.data.fill_(7.0)  # the weights of rank 0 are what counts
        model.recompute = "recompute" in more
        forward = parallelize(model, kind, world, 2 if "experts" in more else 1)
        for layer in (*model.layers, *model.mtp) if "compiled" in more else ():
            layer.compile(backend="eager")
        with warnings.catch_warnings():
            if "compiled" in more:
                warnings.simplefilter("ignore")  # what the compiler says about itself
            optimizer = make_optimizer(model, Options(lr=1e-2, optimizer=name))
            found, norm, counts = train_step(model, forward, optimizer, world)
        torch.use_deterministic_algorithms(False)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert norm == pytest.approx(expected_norm, rel=1e-6)
        assert expected_norm > 0.1  # so that clipping has something to do
        assert counts == expected_counts
        for name, tensor in alone.state_dict().items():
            here = whole(model.state_dict()[name])
            # Adam divides by the gradient's own size, so weights are less exact.
            exact = "expert_bias" in name or ("frozen" in more and name.startswith("mtp."))
            torch.testing.assert_close(here, tensor, atol=0 if exact else 1e-4, rtol=0)
            of_first = here.clone()
            dist.broadcast(of_first, src=0)
            assert torch.equal(here, of_first), f"{name} differs from rank 0's"

    return claim


def ranks_do_not_talk_before_the_last_micro_batch(world: World, folder: Path) -> None:
    model = make_model()
    forward = parallelize(model, "ddp", world)
    with synchronised(forward, last=False):
        loss_of(forward, all_sequences()[world.rank :: world.size]).backward()
    gradient = model.norm.weight.grad
    of_first = gradient.clone()
    dist.broadcast(of_first, src=0)
    assert torch.equal(gradient, of_first) == (world.rank == 0)

    model = make_model()
    forward = parallelize(model, "fsdp", world)
    with synchronised(forward, last=False):
        loss_of(forward, all_sequences()[world.rank :: world.size]).backward()
    assert model.norm.weight.grad is None  # not reduced yet


def a_pass_leaves_biases_and_parameters_alone_and_rank_0_gets_the_whole_weights(
    world: World, folder: Path
) -> None:
    """A bias that differs between ranks, which it never should, is not synchronised."""
    for kind, experts in product(KINDS, (1, 2)):
        model = make_model()
        forward = parallelize(model, kind, world, experts)
        parameters = dict(model.named_parameters())
        for router in model.routers:
            router.expert_bias.fill_(float(world.rank))
        with synchronised(forward, last=True):
            loss_of(forward, all_sequences()[:2]).backward()
        model.eval()
        with torch.no_grad():
            loss_of(forward, all_sequences()[:2])
        assert all(parameters[name] is p for name, p in model.named_parameters())
        for router in model.routers:
            assert router.expert_bias.tolist() == [world.rank] * 4
            assert router.expert_bias.dtype == torch.float32
        kept = whole_weights(model, world)
        expected = make_model().state_dict() if world.is_main else {}
        assert kept.keys() == expected.keys()
        assert all(torch.equal(kept[n], expected[n]) for n in kept if "expert_bias" not in n)


def experts_of_all_ranks_are_those_of_one_process(tokens: list[int], *chosen: int) -> Claim:
    """``tokens`` of each rank, which choose from these experts; two micro-batches."""

    def claim(world: World, folder: Path) -> None:
        alone = make_model().layers[1].mlp.experts
        whole_model = make_model()
        parallelize(whole_model, "ddp", world, world.size)
        model = whole_model.layers[1].mlp.experts
        first, ends = sum(tokens[: world.rank]), sum(tokens)
        mine = slice(first, first + tokens[world.rank])
        for _ in range(2):
            generator = torch.Generator().manual_seed(0)
            x_TD = torch.randn(ends, 16, generator=generator).requires_grad_()
            order_TE = torch.rand(ends, len(chosen), generator=generator).argsort(dim=1)
            ids_TK = torch.tensor(chosen)[order_TE[:, :2]]
            weights_TK = torch.rand(ids_TK.shape, generator=generator).requires_grad_()
            own_x, own_weights = (t.detach()[mine].requires_grad_() for t in (x_TD, weights_TK))
            expected_TD = alone(x_TD, ids_TK, weights_TK)
            with HostReads() as reads:
                found_TD = model(own_x, ids_TK[mine], own_weights)
            assert reads.names[:1] == ["tolist"], "sizes of the exchange, once"
            assert len(reads.names) <= 2, "and once more if experts run in turn"
            expected_TD.square().sum().backward()
            found_TD.square().sum().backward()
            torch.testing.assert_close(found_TD, expected_TD[mine])
            torch.testing.assert_close(own_x.grad, x_TD.grad[mine])
            torch.testing.assert_close(own_weights.grad, weights_TK.grad[mine])
        for own, of_all in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(whole(own.grad), of_all.grad)
            unused = set(range(4)) - set(chosen)
            assert not whole(own.grad)[list(unused)].any()

    return claim


def a_loss_that_is_nan_on_one_rank_gives_all_the_same_norm(world: World, folder: Path) -> None:
    for kind in KINDS:
        model = make_model()
        forward = parallelize(model, kind, world, world.size)
        with synchronised(forward, last=True):
            loss = loss_of(forward, all_sequences()[world.rank :: world.size])
            (loss * (math.nan if world.rank == 1 else 1.0)).backward()
        square = gradient_squares(model, world, 1.0)
        world.sum(square)
        assert square[-1].isnan()


def one_sum_brings_all_counts_to_all_ranks(world: World, folder: Path) -> None:
    """Far beyond what fp32 tells apart; other numbers ride along, and a maximum is no sum."""
    model = make_model()
    routers = model.routers[:2]
    counter, together = (RoutingCounter(model.config, routers) for _ in range(2))
    for rank in range(world.size):
        together.add(_routings_of(rank))
    counter.add(_routings_of(world.rank))
    large = 2**52 // world.size
    counter._calls.tallies[0].counts_LE2[0, 0] += large
    together._calls.tallies[0].counts_LE2[0, 0] += large * world.size
    collectives, sum_before = [], World.sum
    World.sum = lambda self, tensor: (collectives.append(1), sum_before(self, tensor))[1]  # type: ignore[method-assign]
    extra = torch.tensor([0.5, float(world.rank == 1)], dtype=torch.float64)
    summed = counter.all_reduce(world, extra)
    World.sum = sum_before  # type: ignore[method-assign]
    assert len(collectives) == 1
    assert summed.tolist() == [world.size * 0.5, 1.0]
    together.all_reduce(World(), extra)
    assert torch.equal(counter.counts, together.counts)
    assert int(counter.counts.max()) > 2**51
    line, expected = (one.record(one.read(), [1.0] * 2) for one in (counter, together))
    assert line["tokens"] == expected["tokens"]
    for name, values in expected["router"].items():
        assert line["router"][name] == pytest.approx(values, rel=1e-5), name
    assert line["router"]["max_logit"] == expected["router"]["max_logit"]


def _routings_of(rank: int) -> list[Routing]:
    generator = torch.Generator().manual_seed(rank)
    found = []
    for _ in range(2):
        logits_TE = torch.randn(6, 4, generator=generator) * (1 + rank)
        scores_TE = logits_TE.sigmoid()
        weights_TK, ids_TK = scores_TE.topk(2)
        kept_TK = torch.rand(6, 2, generator=generator) > 0.3
        margin_T = torch.rand(6, generator=generator)
        found.append(Routing(logits_TE, scores_TE, ids_TK, weights_TK, margin_T, kept_TK))
    return found


def texts_and_votes_reach_all_ranks(world: World, folder: Path) -> None:
    assert world.broadcast_text("räume" if world.is_main else "not this") == "räume"
    assert world.broadcast_text("" if world.is_main else "not this") == ""
    assert world.any(world.rank == 1)
    assert not world.any(False)


def the_first_rank_enters_the_block_first_then_the_first_of_another_machine(
    world: World, folder: Path
) -> None:
    file = folder / "downloaded"
    local = {"LOCAL_RANK": str(max(0, world.rank - 1))}
    with patch.dict(os.environ, local), world.main_first():
        with file.open("a") as opened:
            opened.write(str(world.rank))
        time.sleep(0.05)
    assert file.read_text() == "012"


FULL = "[Errno 28] No space left on device"
QUIET_USAGE, QUIET_FAILURE = "SystemExit: 64", "SystemExit: 1"
FAULTS: dict[str, tuple[dict[int, Exception], list[str]]] = {
    "no fault": ({}, ["well"] * 3),
    "usage errors of all ranks": (
        {rank: UsageError("--steps 0") for rank in range(3)},
        ["UsageError: --steps 0", QUIET_USAGE, QUIET_USAGE],
    ),
    "a usage error of a later rank": (
        {2: UsageError("--steps 0")},
        ["UsageError: rank 2 of 3: --steps 0", QUIET_USAGE, QUIET_USAGE],
    ),
    "the same usage error of two later ranks": (
        {rank: UsageError("--lr 0") for rank in (1, 2)},
        ["UsageError: rank 1 of 3: --lr 0", QUIET_USAGE, QUIET_USAGE],
    ),
    "two different usage errors": (
        {0: UsageError("--lr 0"), 2: UsageError("--steps 0")},
        ["UsageError: --lr 0", QUIET_USAGE, "UsageError: --steps 0"],
    ),
    "a path that is not UTF-8": (
        {1: UsageError(f"--data {os.fsdecode(b'caf' + bytes([233]))}")},
        [r"UsageError: rank 1 of 3: --data caf\\udce9", QUIET_USAGE, QUIET_USAGE],
    ),
    "a full disk of a later rank": (
        {1: OSError(28, "No space left on device")},
        [f"RankLostError: rank 1 of 3: {FULL}", f"OSError: {FULL}", QUIET_FAILURE],
    ),
    "a full disk of all ranks": (
        {rank: OSError(28, "No space left on device") for rank in range(3)},
        [f"OSError: {FULL}", QUIET_FAILURE, QUIET_FAILURE],
    ),
    "an error without words": (
        {1: KeyError()},
        ["RankLostError: rank 1 of 3: KeyError", "KeyError: ", QUIET_FAILURE],
    ),
}
"""Faults by the rank that finds them, and how each rank ends."""


def fault_ends_all_ranks(found_by: dict[int, Exception], expected: list[str]) -> Claim:
    """What the first rank cannot do the others do not try; after it all are still in step."""

    def claim(world: World, folder: Path) -> None:
        for block in (world.together, world.main_first):
            entered, ended = False, "well"
            try:
                with block():
                    entered = True
                    if world.rank in found_by:
                        raise found_by[world.rank]
            except (Exception, SystemExit) as error:
                ended = f"{type(error).__name__}: {ascii(str(error))[1:-1]}"
            assert world.any(world.rank == 1)
            if block == world.main_first and world.rank and 0 in found_by:
                usage = isinstance(found_by[0], UsageError)
                assert (entered, ended) == (False, QUIET_USAGE if usage else QUIET_FAILURE)
            else:
                assert (entered, ended) == (True, expected[world.rank]), ended

    return claim


def another_fact_ends_all_ranks_and_both_values_are_named(world: World, folder: Path) -> None:
    agree(world, {"--seed": "0"})
    other = {"--seed": "0", "--lr": "0.1" if world.rank == 1 else "0.001", "--run": "räume"}
    missing = {"--seed": "0"} if world.rank == 2 else {"--seed": "0", "--mtp": "True"}
    for facts, message in (
        (other, "rank 1 of 3: --lr is 0.1, on rank 0 it is 0.001: start all ranks with the same"),
        (missing, "rank 2 of 3: --mtp is not given, on rank 0 it is True: start all ranks"),
    ):
        with pytest.raises(UsageError if world.is_main else SystemExit) as caught:
            agree(world, facts)
        assert message in str(caught.value) if world.is_main else caught.value.code == 64


def steps_of(*ways: str) -> dict[str, Claim]:
    return {f"step: {way}": step_is_that_of_one_process(*way.split()) for way in ways}


def by_name(*claims: Claim) -> dict[str, Claim]:
    return {claim.__name__: claim for claim in claims}


shared = experts_of_all_ranks_are_those_of_one_process
CLAIMS: dict[int, dict[str, Claim]] = {
    2: {
        **steps_of("ddp recompute", "fsdp tied", "ddp frozen", "fsdp frozen"),
        **steps_of("ddp experts recompute", "fsdp experts tied", "ddp experts frozen"),
        **steps_of("ddp experts muon", "ddp experts deterministic"),
        **steps_of("ddp experts compiled", "fsdp experts compiled"),
        **by_name(
            ranks_do_not_talk_before_the_last_micro_batch,
            a_pass_leaves_biases_and_parameters_alone_and_rank_0_gets_the_whole_weights,
        ),
    },
    4: {
        **steps_of("ddp experts recompute", "fsdp experts"),
        **by_name(a_loss_that_is_nan_on_one_rank_gives_all_the_same_norm),
        "experts: all": shared([3, 5, 2, 4], 0, 1, 2, 3),
        "experts: a rank without tokens": shared([6, 0, 3, 2], 0, 1, 2, 3),
        "experts: all tokens to those of one rank": shared([3, 5, 2, 4], 0, 0),
        "experts: one unused": shared([3, 5, 2, 4], 0, 1, 3),
    },
    3: {
        **steps_of("ddp", "fsdp recompute"),
        **{f"fault: {name}": fault_ends_all_ranks(*fault) for name, fault in FAULTS.items()},
        **by_name(
            one_sum_brings_all_counts_to_all_ranks,
            texts_and_votes_reach_all_ranks,
            the_first_rank_enters_the_block_first_then_the_first_of_another_machine,
            another_fact_ends_all_ranks_and_both_values_are_named,
        ),
    },
}
