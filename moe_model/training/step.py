"""The parts of one optimizer step: losses (also on held-out text), gradients, optimizer, precision.

Every loss here is a *share*: summed over the micro-batches of a step and over all ranks it is the
mean over the whole step. So a step is identical however it is split.

AdamW: betas 0.9 and 0.95, weight decay 0.1, gradients clipped at norm 1 (DeepSeek-V3, section 4.2),
unless the options differ. The routers' bias is a buffer, not a parameter, so the optimizer never
sees it.
"""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from operator import itemgetter

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from moe_model import Experts, LanguageModel
from moe_model.balance import balance_loss, router_z_loss, sequence_balance_loss
from moe_model.model import ModelOutput
from moe_model.router import Router
from moe_model.training.batches import Batch, StepBatches
from moe_model.training.options import Options
from moe_model.training.parallel import all_experts
from moe_model.training.world import ALONE, World

MTP_HIGH_SHARE = 10 / 14.8
"""DeepSeek-V3 lowers the weight of multi-token prediction to a third after 10 of 14.8 trillion
tokens (section 4.2)."""


def weights_at(step: int, options: Options) -> dict[str, float]:
    """The terms added to the loss in 1-based ``step``: weights by name, without those that are 0.

    Balance losses add up over the routers; each is 1 where the load is balanced.
    """
    mtp = options.mtp_weight / (3 if step > options.steps * MTP_HIGH_SHARE else 1)
    weights = {
        "mtp": mtp,
        "seq_aux": options.seq_aux_weight,
        "aux": options.aux_weight,
        "z_loss": options.z_loss_weight,
    }
    return {name: weight for name, weight in weights.items() if weight}


def loss_shares(
    output: ModelOutput, names: Iterable[str], step_batches: StepBatches, num_passes: int,
    counts_LE: Tensor | None = None,
) -> list[Tensor]:  # fmt: skip
    """The share of the next-token loss, then of each loss in ``names``.

    Added up over all passes and ranks they are the losses of the step.

    Args:
        names: Keys of :func:`weights_at`. A balance loss comes as a vector, one per router.
        step_batches: All micro-batches of the step, with the number of targets in it.
        num_passes: Forward passes in the step, over all ranks.
        counts_LE: Tokens per expert for :func:`~moe_model.balance.balance_loss`; ``None`` for those
            of this pass.
    """
    num_targets = step_batches.num_targets
    first, *ahead = [
        total / max(1, number) for total, number in zip(output.losses, num_targets, strict=False)
    ]
    routings = output.routings
    shares: dict[str, Callable[[], Tensor]] = {
        "mtp": lambda: torch.stack(ahead).mean(),  # DeepSeek-V3, eq. 25
        "seq_aux": lambda: sequence_balance_loss(routings, len(output.hidden_BSD)) / num_passes,
        "aux": lambda: balance_loss(routings, counts_LE) / num_passes,
        "z_loss": lambda: router_z_loss(routings) / num_passes,
    }
    return [first, *(shares[name]() for name in names)]


def gradient_squares(model: LanguageModel, world: World, loss_scale: float) -> Tensor:
    """This rank's part of the squared gradient norm of every router, and last of all: ``(L + 1,)``,
    fp64, without ``loss_scale``. Every rank contributes what it holds, divided by the number of
    ranks that hold it too."""
    gradients = {p: p.grad for p in model.parameters() if p.grad is not None}
    norms_N = torch.stack(torch._foreach_norm([*map(local_part, gradients.values())]))
    squares_N = (norms_N.double() / loss_scale).square()
    copies = [_copies(gradient, world) for gradient in gradients.values()]
    parts = torch._foreach_div(squares_N.unbind(), copies)
    squares = dict(zip(gradients, parts, strict=True))
    total = torch.stack(parts).sum()
    return torch.stack([*(squares[router.weight] for router in model.routers), total])


def clip_gradients(model: nn.Module, norm: Tensor, loss_scale: float, most: float) -> None:
    """Scale all gradients to a norm of at most ``most`` (0: any), and by ``1 / loss_scale``;
    ``norm`` is theirs without it. torch's own function accepts gradients of one mesh only."""
    factor = ((most or math.inf) / (norm + 1e-6)).clamp(max=1.0) / loss_scale
    gradients = [local_part(p.grad) for p in model.parameters() if p.grad is not None]
    torch._foreach_mul_(gradients, factor)


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a DTensor; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _copies(tensor: Tensor, world: World) -> int:
    copies = world.size
    if isinstance(tensor, DTensor):
        for size, placement in zip(tensor.device_mesh.shape, tensor.placements, strict=True):
            if placement.is_shard():
                copies //= size
    return copies


class MuonAndAdamW(torch.optim.Optimizer):
    """torch's Muon and torch's AdamW as one optimizer: its groups and its state are theirs. And
    Muon for every matrix of ``experts``."""

    def __init__(
        self, muon: torch.optim.Muon, adamw: torch.optim.AdamW, experts: Sequence[Experts]
    ) -> None:
        self._stacks: dict[Tensor, int] = {}  # (E, M, N), and how many matrices share M
        for one in experts:
            self._stacks |= {one.gate_up_proj: 2, one.down_proj: 1}
        own = {**muon.defaults, "params": [*self._stacks]}
        super().__init__([*muon.param_groups, *adamw.param_groups, own], {})
        self._parts = (muon, adamw)
        muon.state = adamw.state = self.state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for part in self._parts:
            part.step()  # type: ignore[no-untyped-call]  # torch
        lr, decay, beta = (self.param_groups[-1][n] for n in ("lr", "weight_decay", "momentum"))
        for stack, many in self._stacks.items():
            if stack.grad is None:
                continue
            state = self.state[stack]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(stack)
            parts = (stack, stack.grad, state["momentum_buffer"])
            weight, gradient, momentum = map(local_part, parts)
            momentum.lerp_(gradient, 1 - beta)
            weight.mul_(1 - lr * decay)
            updates = gradient.lerp(momentum, beta).chunk(many, dim=1)
            for weight_EMN, update_EMN in zip(weight.chunk(many, dim=1), updates, strict=True):
                size = 0.2 * math.sqrt(max(update_EMN.shape[1:]))
                weight_EMN.sub_(orthogonal(update_EMN), alpha=lr * size)


def orthogonal(x_EMN: Tensor) -> Tensor:
    """About ``U Vᵀ`` of each matrix ``U S Vᵀ``: Newton–Schulz in bf16, as in torch's Muon."""
    if x_EMN.shape[1] > x_EMN.shape[2]:
        return orthogonal(x_EMN.mT).mT
    x = x_EMN.bfloat16()
    x /= x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(5):
        square = x @ x.mT
        square = torch.baddbmm(square, square, square, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, square, x, beta=3.4445)
    return x


def make_optimizer(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """What ``--optimizer`` names.

    ``adamw`` is one fused AdamW in two groups: with and without decay. ``muon`` moves the matrices
    between embedding and head (of an expert gate, up and down) by their orthogonalised momentum
    (Jordan, 2024), scaled so that learning rate and decay are those of AdamW (Liu et al., 2025,
    section 2.2). Routers, embedding, head and norms keep AdamW.
    """
    matrices = []
    experts: list[Experts] = []
    if options.optimizer == "muon":
        named = model.named_modules()
        matrices = [m.weight for n, m in named if isinstance(m, nn.Linear) and n != "lm_head"]
        experts = all_experts(model)
    taken = {*matrices, *nn.ModuleList(experts).parameters()}
    others = [parameter for parameter in model.parameters() if parameter not in taken]
    # One fused kernel accepts plain tensors or DTensors, also of several meshes, but not both.
    apart = options.router_lr != 1
    routers = {m.weight for m in model.modules() if isinstance(m, Router) and apart}
    groups: dict[tuple[bool, bool, bool], list[nn.Parameter]] = {}
    for parameter in others:
        kind = (isinstance(parameter, DTensor), parameter.dim() < 2, parameter in routers)
        groups.setdefault(kind, []).append(parameter)
    settings = []
    for (_, is_vector, is_router), parameters in sorted(groups.items(), key=itemgetter(0)):
        group = {"params": parameters, "weight_decay": options.weight_decay, "factor": 1.0}
        if is_vector:
            group["weight_decay"] = 0.0
        if is_router:
            group["factor"] = options.router_lr
        settings.append(group)
    adamw = torch.optim.AdamW(settings, lr=options.lr, betas=(0.9, 0.95), fused=True)
    if not matrices:
        return adamw
    muon = torch.optim.Muon(
        matrices, lr=options.lr, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return MuonAndAdamW(muon, adamw, experts)


def default_warmup(steps: int) -> int:
    """A tenth of the steps, at least 1 and at most 100."""
    return max(1, min(100, steps // 10))


def learning_rate_at(step: int, options: Options) -> float:
    """Learning rate of 1-based ``step``: warm-up, then the schedule.

    A group with its own ``factor`` multiplies it, see :func:`set_learning_rate`.
    """
    steps, peak = options.steps, options.lr
    warmup = default_warmup(steps) if options.warmup is None else options.warmup
    if step <= warmup:
        return peak * step / warmup
    falls = options.lr_schedule == "wsd"
    start = max(warmup, steps - round(steps * options.decay)) if falls else warmup
    if step <= start or options.lr_schedule == "constant":
        return peak
    progress = (step - start) / max(1, steps - start)
    height = 1 - progress if falls else (1 + math.cos(math.pi * progress)) / 2
    return peak * (options.min_lr + (1 - options.min_lr) * height)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set it in every group, times the group's own ``factor`` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("factor", 1.0)


def mixed_precision(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Run matrix products in ``dtype``; weights, norms and losses stay fp32."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def seed_noise(routers: Sequence[Router], step: str, rows: range) -> None:
    """Let the next pass have the noise of the sequences ``rows`` of a step: nothing else is random
    in it, and no state of a generator is saved."""
    generators = [random.Random(f"{step}/{row}") for row in rows]
    for router in routers:
        router.noise_seeds = [generator.getrandbits(63) for generator in generators]


@torch.no_grad()
def evaluate(
    model: LanguageModel,
    batches: Sequence[Batch],
    dtype: torch.dtype,
    *,
    forward: Callable[..., ModelOutput] | None = None,
    world: World = ALONE,
    document_mask: bool = False,
) -> tuple[float, Tensor]:
    """Mean next-token cross-entropy in nats over all targets; the model keeps its mode.

    A collective. It also counts the tokens per expert of each sequence and router.

    Args:
        batches: All of them, on every rank; each rank evaluates its share, in the same number of
            forward passes: sharded ranks wait for each other.
        dtype: Number format of matrix products.
        forward: What to call instead of the model where it is spread over ranks.
        document_mask: Whether a token attends to its own document only.

    Returns:
        The loss, and the counts ``(N, L, E)`` of all N sequences, without multi-token prediction.
    """
    forward = forward or model
    was_training = model.training
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=world.device)
    rows = [len(batch.tokens_BN) for batch in batches]
    shape = sum(rows), len(model.config.moe_layers), model.config.n_routed_experts
    counts_NLE = torch.zeros(shape, dtype=torch.int64, device=world.device)
    for first in range(0, len(batches), world.size):
        place = first + world.rank
        batch = batches[min(place, len(batches) - 1)].to(world.device)
        length = batch.tokens_BN.shape[1] - 1
        starts_BS = batch.starts_BN[:, :length] if document_mask else None
        with mixed_precision(world.device, dtype):
            targets_BS = batch.targets(1, length)
            output = forward(batch.tokens_BN[:, :length], targets=[targets_BS], starts_BS=starts_BS)
        if place < len(batches):
            sums[0] += output.losses[0]
            sums[1] += (targets_BS >= 0).sum()
            first_row = sum(rows[:place])
            _count(output, counts_NLE[first_row : first_row + rows[place]])
    model.train(was_training)
    world.sum(sums)
    world.sum(counts_NLE)
    return (sums[0] / sums[1]).item(), counts_NLE


def _count(output: ModelOutput, counts_BLE: Tensor) -> None:
    for layer, routing in enumerate(output.routings):
        ids_BP = routing.expert_ids_TK.reshape(len(counts_BLE), -1)
        counts_BLE[:, layer].scatter_add_(1, ids_BP, torch.ones_like(ids_BP))
