"""Looks at gradients: which experts and routers should have got one in a step, and did not.

A look reads whether gradients are exactly zero, before they are cleared; it adds to the sum of the
step over ranks, and rank 0 concludes. Nothing is concluded before an update has changed a
parameter, or where no weight has a gradient. Without labels it is unknown which tokens have a loss,
and an auxiliary loss alone, which reaches no expert of the last layers, may have made the
gradients: then a weight after the layer must have one, and none of the experts.
"""

from __future__ import annotations

import logging
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from microscope_tui.probe.counter import Calls
from microscope_tui.probe.forward_hooks import ForwardHooks
from microscope_tui.probe.ranks import Ranks
from microscope_tui.probe.sites import Site
from microscope_tui.probe.step_sums import Row, Values

_logger = logging.getLogger(__name__)
FIRST, EVERY = range(3, 6), 100
"""Logged steps with a look: the first ones that may follow an update, then every hundredth."""
ENOUGH_TOKENS, SAMPLE, _OTHERS = 50, 4096, 16
"""Tokens with loss of an expert; elements of a sample; other weights read in or after a layer."""
_ANY, _ROUTER = -1, -2
"""Instead of the number of an expert: all experts together, the router."""
_ADAPTER = re.compile(r"(lora|hada|lokr|vera)_\w+")
_HOLDERS = "main_grad", "ds_id", "_hp_mapping"
"""Attributes of a parameter whose gradient Megatron or DeepSpeed may keep elsewhere."""
Group = tuple[int, str]
Key = tuple[int, str, int]
"""Place of the router, path in its block without the number of the expert, and this number. Other
weights have no path, and the place is behind how many routers they come."""


class Part(NamedTuple):
    """A parameter, by its module, as wrappers replace it, and the tensors in it: several where it
    holds one for each expert; the matrices of an adapter are the same one."""

    module: nn.Module
    name: str
    keys: list[Key]

    @property
    def weight(self) -> Any:
        """The parameter if it is trained."""
        found = self.module._parameters.get(self.name)
        return found if found is not None and found.requires_grad else None

    @property
    def group(self) -> Group:
        """Tensors of one kind in one layer are sampled together, and all others."""
        place, kind, _ = self.keys[0]
        return (place, kind) if kind else (0, "")


def _plan(model: nn.Module, sites: Sequence[Site]) -> list[Part]:
    """What is looked at: routers and their experts, and the smallest of the other weights."""
    modules, found, layers = dict(model.named_modules()), dict[int, Part](), dict[str, int]()
    for place, site in enumerate(sites):
        numbered = re.match(r"(.*\.)?\d+(?=\.)", site.path)
        layers[numbered[0] if numbered else site.path] = place
        block = site.block or modules[site.path.rpartition(".")[0]]
        found = {id(part.weight): part for part in _parts_of(block, site, place)} | found
    others: defaultdict[int, list[tuple[int, int, Part]]] = defaultdict(list)
    after = 0
    for number, (path, weight) in enumerate(model.named_parameters()):
        home, _, name = path.rpartition(".")
        above = [path[: dot.start()] for dot in re.finditer(r"\.", path)]
        place = max((layers.get(one, -1) for one in above), default=-1)
        after = max(after, place + 1)
        if weight.requires_grad and id(weight) not in found:
            at = place if place >= 0 else after
            others[at].append((weight.numel(), number, Part(modules[home], name, [(at, "", _ANY)])))
    return [*found.values(), *(p for some in others.values() for *_, p in sorted(some)[:_OTHERS])]


def _parts_of(block: nn.Module, site: Site, place: int) -> Iterator[Part]:
    """The trained parameters of a router and of its experts."""
    E, modules = site.num_experts, dict(block.named_modules())
    inner = next((path for path, module in modules.items() if module is site.router), "?")
    router = re.split(r"\.?\b(base_layer|modules_to_save)\b", inner)[0]
    single = {
        f"{path}.{name}.": (path, number)
        for path, module in modules.items()
        if isinstance(module, nn.ModuleList | nn.ModuleDict) and len(module) == E > 1
        for number, (name, _) in enumerate(module.named_children())
    }
    for path, weight in block.named_parameters():
        kind, (home, _, name) = _ADAPTER.sub("adapter", path), path.rpartition(".")
        starts = [path[: dot.end()] for dot in re.finditer(r"\.", path)]
        start = next((one for one in starts if one in single), "")
        is_stack = kind == path and weight.dim() > 1 and weight.shape[0] == E > 1
        is_router = path.startswith(f"{router}." if router else "")
        if not weight.requires_grad or "shared" in path:
            continue
        if start:
            keys = [(place, single[start][0] + kind[len(start) - 1 :], single[start][1])]
        elif is_stack and (weight.dim() > 2 or ("expert" in path and not is_router)):
            keys = [(place, kind, number) for number in range(E)]
        elif weight.dim() > 1 and (is_router or "expert" in path):
            # A bias of the router may have no gradient: it only selects.
            keys = [(place, re.sub(r"\d+", "", kind), _ROUTER if is_router else _ANY)]
        else:
            continue
        yield Part(modules[home], name, keys)


class Looks:
    """Looks at the gradients of one model."""

    def __init__(self, hooks: ForwardHooks, ranks: Ranks, trains: bool) -> None:
        """``trains``: the mode is ``train``; otherwise nothing is looked at."""
        self._hooks, self._ranks, self._trains, self._failed = hooks, ranks, trains, False
        self._E = max((site.num_experts for site in hooks.sites), default=0)
        self._parts: list[Part] = []
        self._numbers: dict[Key, int] = {}
        self._samples: dict[Group, Tensor] = {}
        self._kept: dict[Group, Tensor] = {}
        """Samples after the first step, then of the last look at a hundredth."""
        self._handles: list[Any] = []
        self._moves: Any = None
        self.size = self._width = 0
        """Numbers that a look adds to the sum of the step: of this step, and of a look."""
        self._logged = self._rated = self._empty = 0
        """Logged steps, those since the samples with a rate that is not zero, and empty looks."""

    def begin(self, on: bool) -> None:
        """Before a step that is logged if ``on``."""
        self.detach()
        number, self._moves, self._samples = self._logged + 1, None, {}
        is_look = on and (number in FIRST or number % EVERY == 0)
        self.size = self._width if is_look else 0
        if self.size or (self._width and not self._kept):
            self.attempt(self._prepare)

    def attempt(self, call: Callable[..., Any], *args: Any) -> Any:
        """What ``call`` returns; ``None`` from the first failure on. The counting continues."""
        try:
            with torch.no_grad():
                return None if self._failed else call(*args)
        except Exception as error:  # any failure: the training matters more
            self._failed = True
            _logger.warning("gradients are not looked at any more, training continues: %r", error)

    def count(self, rate: Any) -> None:
        """A step is logged, with this learning rate; every rank calls it, and at the first they
        agree on what is looked at."""
        self._logged += 1
        self._rated += isinstance(rate, int | float) and rate != 0
        if self._logged > 1 or not self._trains:
            return
        parts = self.attempt(_plan, self._hooks.model, self._hooks.sites) or []
        self._parts, keys = parts, dict.fromkeys(key for part in parts for key in part.keys)
        self._numbers = {key: number for number, key in enumerate(keys)}
        zero = any(hasattr(part.weight, "ds_id") for part in parts)
        marks = self._ranks.all_gather(0 if zero else zlib.crc32(repr([*keys]).encode()))
        if keys and not zero and len(set(marks)) == 1:
            tokens, groups = len(self._hooks.sites) * self._E, {part.group for part in parts}
            self._width = tokens + len(keys) + len(groups)
        if zero and self._ranks.rank == 0:
            _logger.warning("ZeRO-3 keeps gradients in partitions: STILL cannot read any")

    def detach(self) -> None:
        """Remove the hooks of a look."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def read(self) -> None:
        """Read the gradients, before they are cleared."""
        if self.size and self._moves is None:
            self._moves = self.attempt(self._read)

    def _prepare(self) -> None:
        self._caught: dict[int, Tensor] = {}
        weights: defaultdict[Group, list[Tensor]] = defaultdict(list)
        for number, part in enumerate(self._parts):
            weight, some = part.weight, weights[part.group]
            if (held := part.module._parameters.get(part.name)) is not None:
                some.append(_local(held))  # also while it is frozen: the sizes stay
            hooks = getattr(weight, "_post_accumulate_grad_hooks", None)
            if self.size and hooks and not hasattr(weight, "to_local"):
                # An optimizer that steps inside the backward pass clears the gradient.
                self._handles.append(weight.register_hook(self._catch(number)))
        self._samples = {group: _sample_of(some) for group, some in weights.items()}
        self._kept = self._kept or self._samples

    def _catch(self, number: int) -> Callable[[Tensor], None]:
        def catch(grad: Tensor) -> None:
            moves = _largest([_local(grad)], len(self._parts[number].keys) > 1)[0] != 0
            self._caught[number] = moves | self._caught.get(number, torch.zeros_like(moves))

        return lambda grad: self.attempt(catch, grad)

    def _read(self) -> Tensor:
        """1 for every tensor with a gradient that is not zero; NaN where that is not known."""
        groups: defaultdict[Any, list[tuple[list[int], Tensor]]] = defaultdict(list)
        moves: list[tuple[list[int], Tensor]] = []
        blind: list[int] = []
        for number, part in enumerate(self._parts):
            weight, at = part.weight, [self._numbers[key] for key in part.keys]
            if number in self._caught:
                moves.append((at, self._caught[number]))
            elif weight is None or _is_elsewhere(weight):
                blind += at
            elif weight.grad is not None:
                grad = _local(weight.grad)
                at = at[_first_row(weight.grad) :][: len(grad)] if len(at) > 1 else at
                if grad.numel():
                    groups[grad.device, grad.dtype, len(part.keys) > 1].append((at, grad))
        for (*_, is_stack), some in groups.items():
            largest = torch.cat(_largest([grad for _, grad in some], is_stack))
            moves.append(([number for at, _ in some for number in at], largest != 0))
        device = moves[0][1].device if moves else torch.device("cpu")
        moves.append((blind, torch.full((len(blind),), math.nan, device=device)))
        at_M = torch.tensor([n for at, _ in moves for n in at], dtype=torch.long, device=device)
        found_N = torch.zeros(len(self._numbers), dtype=torch.float64, device=device)
        return found_N.index_add_(0, at_M, torch.cat([flags.to(found_N) for _, flags in moves]))

    def vector(self, calls: Calls, counts: bool, device: torch.device) -> Tensor:
        """What this rank adds, always ``size`` numbers: the tokens with loss of every expert if its
        tokens count, what ``_read`` returns, how many sampled elements of every group changed."""
        found = None if self._moves is None else self.attempt(self._vector, calls, counts, device)
        unknown = torch.full((self.size,), math.nan, dtype=torch.float64, device=device)
        return found if found is not None and found.shape == unknown.shape else unknown

    def _vector(self, calls: Calls, counts: bool, device: torch.device) -> Tensor:
        S, E = len(self._hooks.sites), self._E
        tokens_SE = torch.zeros(S, E, dtype=torch.float64, device=device)
        for tally in calls.tallies if counts else ():
            for at, (place, _) in enumerate(tally.keys):
                with_loss_E = tally.with_loss_LE2[at, : tally.num_experts]
                tokens_SE[place, : tally.num_experts] += with_loss_E.to(device)
        pairs = [(self._kept[group].to(new.device), new) for group, new in self._samples.items()]
        changed = torch.stack([(old != new).sum().to(tokens_SE) for old, new in pairs])
        if self._logged % EVERY == 0:
            self._kept = self._samples
        return torch.cat([tokens_SE.flatten(), self._moves.to(device), changed])

    def found(
        self, numbers: Sequence[float], rows: Sequence[Row], counts: Sequence[Sequence[int]]
    ) -> dict[str, Values]:
        """The summaries of the look, from the sum of all vectors and the pairs of every row."""
        if not self.size:
            return {}
        S, E, N = len(self._hooks.sites), self._E, len(self._numbers)
        moving, changed = numbers[S * E : S * E + N], numbers[S * E + N :]
        self._empty += not any(moving)
        if self._logged == FIRST[-1] and self._empty == len(FIRST):
            _logger.warning(
                "all gradients of logged steps %d to %d are zero or absent; if they are cleared "
                "before probe.step, call it earlier",
                *(FIRST[0], FIRST[-1]),
            )
        is_hundredth = self._logged % EVERY == 0
        compares = is_hundredth and self._rated >= EVERY // 2
        self._rated = 0 if is_hundredth else self._rated
        if not (any(changed) or compares) or not any(n > 0 for n in moving):
            return {}
        samples = zip(changed, self._samples.items(), strict=True)
        equal = {group for n, (group, sample) in samples if not n and len(sample) >= SAMPLE}
        moves = dict(zip(self._numbers, moving, strict=True))
        after = [at for (at, _, n), one in moves.items() if one > 0 and n != _ROUTER]
        found: list[tuple[float | None, ...]] = []
        layers: defaultdict[int, dict[Key, bool]] = defaultdict(dict)
        for key, one in moves.items():
            if key[1] and not math.isnan(one):
                layers[key[0]][key] = one > 0
        for row in rows:
            tokens = numbers[row.place * E : (row.place + 1) * E]
            unknown, own = math.isnan(tokens[0]), layers[row.place]
            if unknown:
                passes = [n for n, one in zip(counts, rows, strict=True) if one.place == row.place]
                tokens = [sum(column) for column in zip(*passes, strict=True)]
            enough = [n >= ENOUGH_TOKENS for n in tokens]
            looked = [key for key in own if (enough[key[2]] if key[2] >= 0 else any(enough))]
            still = sum(not own[key] for key in looked)
            some = any(moved for (*_, n), moved in own.items() if n != _ROUTER)
            if not looked or (unknown and still and (some or max(after, default=0) <= row.place)):
                found.append((None, None, None))
                continue
            same = sum((place, kind) in equal for place, kind, _ in looked) if compares else None
            found.append((len(looked), still, same))
        names = "looked_tensors", "still_tensors", "unchanged_tensors"
        lists = dict(zip(names, map(list, zip(*found, strict=True)), strict=True))
        return {name: one for name, one in lists.items() if any(v is not None for v in one)}


def _local(tensor: Any) -> Tensor:
    """This rank's part of a DTensor; of a sparse tensor the values."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local._values() if local.is_sparse else local.detach()


def _first_row(grad: Any) -> int:
    """Of this rank's part of a DTensor."""
    if not hasattr(grad, "device_mesh"):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset as place_of

    return int(place_of(grad.shape, grad.device_mesh, grad.placements)[1][0])


def _is_elsewhere(weight: Any) -> bool:
    """The gradient may be kept elsewhere than in ``grad``, or hooks (FSDP2, LOMO) clear it."""
    hooks = weight._post_accumulate_grad_hooks
    clears = hasattr(weight, "to_local") if hooks else weight._backward_hooks
    held = any(getattr(weight, name, None) is not None for name in _HOLDERS)
    return held or (weight.grad is None and bool(clears))


def _largest(grads: Sequence[Tensor], is_stack: bool) -> list[Tensor]:
    """The largest absolute value of each, or of each row; does not wait for the device."""
    if is_stack:
        return [torch.linalg.vector_norm(one.flatten(1), torch.inf, dim=1) for one in grads]
    return [norm[None] for norm in torch._foreach_norm(list(grads), torch.inf)]


def _sample_of(weights: Sequence[Tensor]) -> Tensor:
    """At least ``SAMPLE`` elements if there are as many; an odd distance meets all columns."""
    share = 2 * SAMPLE // max(1, len(weights)) + 1
    pieces = [one.flatten()[:: max(1, one.numel() // share) | 1] for one in weights]
    return torch.cat([one.to(pieces[0].device) for one in pieces] or [torch.zeros(0)]).clone()
