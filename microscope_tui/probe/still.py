"""Looks at gradients: which experts and routers should have got one in a step, and did not.

A look reads whether each gradient is exactly zero, before it is cleared, in one pass over the
gradients of a device. What it finds is part of the step's sum over ranks; rank 0 concludes. Nothing
is concluded before an update has changed a parameter, or where no other weight has a gradient.

Where no labels show which tokens have a loss, an auxiliary loss alone may have made the gradients,
which reaches no expert of the last layers. Then a weight after the layer must have one, and only a
layer in which no expert has one is reported.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from microscope_tui.probe.counter import Calls
from microscope_tui.probe.ranks import Ranks
from microscope_tui.probe.sites import Site
from microscope_tui.probe.step_sums import Row, Values

_logger = logging.getLogger(__name__)
FIRST, EVERY = 5, 100
"""Looked-at are the logged steps from the second to this one, and then every hundredth."""
ENOUGH_TOKENS, SAMPLE, _OTHERS = 50, 4096, 16
"""Tokens with loss of an expert, elements of a sample, weights that are read between two layers."""
_ANY, _ROUTER = -1, -2
"""Instead of the number of an expert: all experts together, the router."""
_ADAPTER = re.compile(r"(lora|hada|lokr|vera)_\w+")
_HOLDERS = "main_grad", "ds_id", "ds_tensor", "_hp_mapping"
"""Attributes of a parameter whose gradient Megatron or DeepSpeed may keep elsewhere."""
Key = tuple[int, str, int]
"""Place of the router, path in its block without the number of the expert, and this number."""


class Part(NamedTuple):
    """A parameter, by its module: wrappers replace parameters."""

    module: nn.Module
    name: str
    keys: list[Key]
    """Of its tensors: several where it holds one for each expert; all matrices of an adapter have
    the same."""

    @property
    def weight(self) -> Any:
        """The parameter if it is trained."""
        found = self.module._parameters.get(self.name)
        return found if found is not None and found.requires_grad else None


class Plan:
    """What is looked at in a model."""

    def __init__(self, model: nn.Module, sites: Sequence[Site]) -> None:
        modules, found, of_block = dict(model.named_modules()), dict[int, Part](), dict[int, int]()
        for place, site in enumerate(sites):
            block = site.block or modules.get(site.path.rpartition(".")[0], model)
            of_block |= {id(weight): place for weight in block.parameters() if site.block}
            for own in _parts_of(block, site, place):
                found.setdefault(id(own.weight), own)
        self.holder = next(
            (n for n in _HOLDERS if any(hasattr(p, n) for p in model.parameters())), ""
        )
        others: defaultdict[int, list[tuple[int, Part]]] = defaultdict(list)
        after = 0
        for path, weight in model.named_parameters():
            part = found.get(id(weight))
            place = part.keys[0][0] if part else of_block.get(id(weight), -1)
            after = max(after, place + 1)
            if weight.requires_grad and part is None:
                home, _, name = path.rpartition(".")
                at = place if place >= 0 else after
                others[at].append((weight.numel(), Part(modules[home], name, [(at, "", _ANY)])))
        smallest = [sorted(o, key=lambda one: one[0])[:_OTHERS] for o in others.values()]
        self.parts = [*found.values(), *(part for _, part in chain(*smallest))]
        keys = dict.fromkeys(key for part in self.parts for key in part.keys)
        self.numbers = {key: number for number, key in enumerate(keys)}
        """Of every tensor; other weights have no path, and their place is behind how many routers
        they come."""
        kinds = dict.fromkeys((place if kind else 0, kind) for place, kind, _ in keys)
        self.groups = {group: number for number, group in enumerate(kinds)}
        """Tensors of one kind in one layer are sampled together."""


def _parts_of(block: nn.Module, site: Site, place: int) -> Iterator[Part]:
    """The trained parameters of a router and of its experts."""
    E, modules = site.num_experts, dict(block.named_modules())
    inner = next((path for path, module in modules.items() if module is site.router), None)
    router = None if inner is None else re.split(r"\.?\b(base_layer|modules_to_save)\b", inner)[0]
    lists = [
        (path, f"{path}.{name}.", number)
        for path, module in modules.items()
        if isinstance(module, nn.ModuleList | nn.ModuleDict) and len(module) == E > 1
        for number, (name, _) in enumerate(module.named_children())
    ]
    for path, weight in block.named_parameters():
        if not weight.requires_grad or "shared" in path:
            continue
        kind = _ADAPTER.sub("adapter", path)
        single = next((one for one in lists if path.startswith(one[1])), None)
        is_stack = kind == path and weight.dim() >= 2 and weight.shape[0] == E > 1
        if single is not None:
            keys = [(place, single[0] + kind[len(single[1]) - 1 :], single[2])]
        elif is_stack and weight.dim() > 2:
            keys = [(place, kind, number) for number in range(E)]
        elif weight.dim() < 2:  # a bias of the router may have no gradient: it only selects
            continue
        elif router is not None and path.startswith(f"{router}." if router else ""):
            keys = [(place, kind, _ROUTER)]
        elif is_stack and "expert" in path:
            keys = [(place, kind, number) for number in range(E)]
        elif "expert" in path:
            keys = [(place, re.sub(r"\d+", "", kind), _ANY)]
        else:
            continue
        home, _, name = path.rpartition(".")
        yield Part(modules[home], name, keys)


class Looks:
    """Looks at the gradients of one model; what fails ends the looks of the process."""

    def __init__(self, model: nn.Module, sites: Sequence[Site], ranks: Ranks, trains: bool) -> None:
        """``trains``: the mode is ``train``; otherwise nothing is looked at."""
        self._model, self._sites, self._ranks, self._trains = model, sites, ranks, trains
        self._E = max((site.num_experts for site in sites), default=0)
        self._plan: Plan | None = None
        self._kept: list[Tensor] | None = None
        """Samples at the start of the run, later at the last look but one of every hundred."""
        self._handles: list[Any] = []
        self._failed = self._agreed = self.due = False
        self.logged = self.rated = 0
        """Logged steps, and how many since the samples had a rate that is not zero."""

    @property
    def size(self) -> int:
        """Numbers that the look adds to the sum of the step; 0 without one."""
        if self._plan is None or not self.due:
            return 0
        kinds = 2 * len(self._plan.numbers) + 2 * len(self._plan.groups)
        return 1 + len(self._sites) * (self._E + 1) + kinds

    def begin(self, on: bool) -> None:
        """Before a step that is logged if ``on``."""
        self.detach()
        self._moving: Tensor | None = None
        self._caught: dict[int, Tensor] = {}
        self._samples: list[Tensor] = []
        number = self.logged + 1
        self.due = self._agreed and on and (number <= FIRST or number % EVERY == 0)
        if self._trains and (self.due or self._kept is None):
            self._attempt(self._prepare)

    def agree(self) -> None:
        """After the first logged step; every rank calls it."""
        if not self._trains:
            return
        self._plan = plan = self._attempt(Plan, self._model, self._sites)
        zero = plan is not None and plan.holder.startswith("ds_")
        names = "" if plan is None or zero else repr([*plan.numbers])
        marks = self._ranks.all_gather(zlib.crc32(names.encode()))
        self._agreed = bool(names) and len(set(marks)) == 1 and names != "[]"
        if zero and self._ranks.rank == 0:
            _logger.warning(
                "ZeRO-3 keeps gradients in partitions: it is not looked whether experts and "
                "routers get gradients (router.still_tensors)"
            )

    def detach(self) -> None:
        """Remove the hooks of a look."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def read(self) -> None:
        """Read the gradients, before they are cleared."""
        if self.size and self._moving is None:
            self._moving = self._attempt(self._read)

    def _attempt(self, call: Callable[..., Any], *args: Any) -> Any:
        try:
            with torch.no_grad():
                return None if self._failed else call(*args)
        except Exception as error:  # any failure: the training matters more
            self._failed = True
            _logger.warning("gradients are not looked at any more, training continues: %r", error)

    def _prepare(self) -> None:
        if self._plan is None:
            self._plan = Plan(self._model, self._sites)
        self._samples = self._sample(self._plan)
        if [one.shape for one in self._kept or ()] != [one.shape for one in self._samples]:
            self._kept, self.rated = self._samples, 0  # sharded or wrapped after attach
        for number, part in enumerate(self._plan.parts if self.due else ()):
            # An optimizer that steps inside the backward pass has cleared the gradient after it.
            if getattr(part.weight, "_post_accumulate_grad_hooks", None):
                self._handles.append(part.weight.register_hook(self._catch(number)))

    def _catch(self, number: int) -> Callable[[Tensor], None]:
        def hook(grad: Tensor) -> None:
            assert self._plan is not None
            is_stack = len(self._plan.parts[number].keys) > 1
            flags = self._attempt(lambda: _norms([grad], is_stack)[0] != 0)
            if flags is not None:
                self._caught[number] = flags | self._caught.get(number, torch.zeros_like(flags))

        return hook

    def _sample(self, plan: Plan) -> list[Tensor]:
        """Elements of every group of this rank's weights."""
        weights: list[list[Tensor]] = [[] for _ in plan.groups]
        for part in plan.parts:
            (place, kind, _), weight = part.keys[0], part.weight
            if weight is not None and not weight.is_meta and (local := _local(weight)).numel():
                weights[plan.groups[place if kind else 0, kind]].append(local)
        return [_sample_of(group) for group in weights]

    def _read(self) -> Tensor:
        """1 for every tensor with a gradient that is not zero; then 1 for every tensor of which
        this process cannot know it."""
        assert self._plan is not None
        groups: defaultdict[Any, list[tuple[Sequence[int], Tensor]]] = defaultdict(list)
        flags: list[tuple[Sequence[int], Tensor]] = []
        blind: list[int] = []
        for number, part in enumerate(self._plan.parts):
            weight, tensors = part.weight, [self._plan.numbers[key] for key in part.keys]
            grad = None if weight is None else weight.grad
            if number in self._caught:
                flags.append((tensors, self._caught[number]))
            elif weight is None or _is_elsewhere(weight):
                blind += tensors
            elif grad is not None:
                there = _rows_of(grad, tensors)
                blind += tensors if there is None else ()
                if there and (local := _local(grad)).numel():
                    groups[local.device, local.dtype, len(tensors) > 1].append((there, local))
        for (*_, is_stack), some in groups.items():
            there, grads = zip(*some, strict=True)
            flags.append(([*chain(*there)], torch.cat(_norms(grads, is_stack)) != 0))
        device = flags[0][1].device if flags else torch.device("cpu")
        found_2N = torch.zeros(2, len(self._plan.numbers), dtype=torch.float64, device=device)
        for at, moves in flags:
            found_2N[0].index_add_(0, torch.tensor(at, device=device), moves.to(found_2N))
        found_2N[1, blind] = 1.0
        return found_2N.flatten()

    def vector(self, calls: Calls, counts: bool, device: torch.device) -> Tensor:
        """What this rank adds to the look: whether it failed, and for every router whether tokens
        with loss are unknown, and how many each expert has; what ``_read`` returns; for every group
        the sampled elements that changed, and how many there are.

        Args:
            counts: The tokens of this rank count.
        """
        vector = self._attempt(self._vector, calls, counts, device) if self.size else None
        if vector is None:
            vector = torch.zeros(self.size, dtype=torch.float64, device=device)
            vector[:1] = 1.0
        return vector

    def _vector(self, calls: Calls, counts: bool, device: torch.device) -> Tensor | None:
        if self._moving is None or self._kept is None:
            return None
        tokens_SN = torch.zeros(len(self._sites), 1 + self._E, dtype=torch.float64, device=device)
        for tally in calls.tallies if counts else ():
            for at, (place, _) in enumerate(tally.keys):
                tokens_SN[place, 0] += not tally.labelled
                if tally.with_loss_LE2 is not None:
                    E = tally.num_experts
                    tokens_SN[place, 1 : E + 1] += tally.with_loss_LE2[at, :E].to(device)
        pairs = zip(self._kept, self._samples, strict=True)
        changed = [(old.to(new.device) != new).sum().double().to(device) for old, new in pairs]
        sizes = [len(one) / self._ranks.size for one in self._samples]
        if self.logged % EVERY == 0:
            self._kept = self._samples
        parts = [tokens_SN.new_zeros(1), tokens_SN.flatten(), self._moving.to(device)]
        return torch.cat([*parts, torch.stack(changed), tokens_SN.new_tensor(sizes)])

    def found(
        self, numbers: Sequence[float], rows: Sequence[Row], counts: Sequence[Sequence[int]]
    ) -> dict[str, Values]:
        """The summaries of the look, on rank 0.

        Args:
            numbers: Vectors, summed over ranks.
            counts: Tokens of every expert, with and without loss.
        """
        plan, names = self._plan, ("looked_tensors", "still_tensors", "unchanged_tensors")
        if plan is None or not self.size or numbers[0]:
            return {}
        S, N, G = len(self._sites), len(plan.numbers), len(plan.groups)
        sizes = [1, S * (self._E + 1), N, N, G, G]
        ends = [sum(sizes[: at + 1]) for at in range(len(sizes))]
        _, tokens, moving, blind, changed, sampled = (
            numbers[end - size : end] for end, size in zip(ends, sizes, strict=True)
        )
        compares = self.logged % EVERY == 0 and self.rated >= EVERY // 2
        if self.logged % EVERY == 0:
            self.rated = 0
        if not (any(changed) or compares) or not any(moving):
            return {}
        equal = {
            group for group, at in plan.groups.items() if not changed[at] and sampled[at] >= SAMPLE
        }
        layers: defaultdict[int, dict[Key, bool]] = defaultdict(dict)
        last = -1
        for key, at in plan.numbers.items():
            place, kind, number = key
            last = max(last, place if moving[at] and number != _ROUTER else -1)
            if kind and not blind[at]:
                layers[place][key] = moving[at] > 0
        found: list[tuple[int, int, int | None] | None] = []
        for row in rows:
            at, moves = row.place * (self._E + 1), layers[row.place]
            chosen, unknown = [*tokens[at + 1 : at + self._E + 1]], tokens[at] > 0
            if unknown:
                own = [n for n, other in zip(counts, rows, strict=True) if other.place == row.place]
                chosen = [sum(column) for column in zip(*own, strict=True)]
            looked = _looked(moves, chosen, unknown, last > row.place)
            same = sum((row.place, kind) in equal for _, kind, _ in looked) if compares else None
            still = sum(not moves[key] for key in looked)
            found.append((len(looked), still, same) if looked else None)
        columns = zip(*(one or (None,) * 3 for one in found), strict=True)
        lists = {name: [*column] for name, column in zip(names, columns, strict=True)}
        return {name: row for name, row in lists.items() if any(v is not None for v in row)}


def _looked(
    moves: dict[Key, bool], chosen: Sequence[float], unknown: bool, is_followed: bool
) -> list[Key]:
    """Tensors of a layer that should have a gradient; none where that cannot be concluded.

    Args:
        moves: Whether each tensor has a gradient.
        chosen: Tokens of every expert: with loss, all if these are ``unknown``.
        is_followed: A weight after the layer has a gradient.
    """
    enough = [n >= ENOUGH_TOKENS for n in chosen]
    looked = [key for key in moves if (enough[key[2]] if key[2] >= 0 else any(enough))]
    experts = [moved for (_, _, number), moved in moves.items() if number != _ROUTER]
    if unknown and not all(moves[key] for key in looked) and (any(experts) or not is_followed):
        return []
    return looked


def _local(tensor: Any) -> Tensor:
    """This rank's part of a DTensor."""
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local.detach()


def _is_elsewhere(weight: Any) -> bool:
    """The gradient may be kept elsewhere than in ``grad``; FSDP2 calls hooks that clear it."""
    if any(getattr(weight, name, None) is not None for name in _HOLDERS):
        return True
    hooks = getattr(weight, "_post_accumulate_grad_hooks", None)
    return bool(hooks) and weight.grad is None and hasattr(weight, "to_local")


def _rows_of(grad: Any, tensors: list[int]) -> Sequence[int] | None:
    """Tensors whose gradients this rank has; ``None`` if that is unknown."""
    if grad.layout != torch.strided:
        return None
    if len(tensors) == 1:
        return tensors
    start, rows = 0, len(tensors)
    for size, placement, rank in zip(
        getattr(getattr(grad, "device_mesh", None), "shape", ()),
        getattr(grad, "placements", ()),
        getattr(getattr(grad, "device_mesh", None), "get_coordinate", list)() or (),
        strict=False,
    ):
        if not placement.is_replicate() and getattr(placement, "dim", 0) == 0:
            if not placement.is_shard() or rows < len(tensors):
                return None
            rows = -(-len(tensors) // size)
            start = rows * rank
    there = tensors[start : start + rows]
    return there if len(there) == len(_local(grad)) else None


def _norms(grads: Sequence[Tensor], is_stack: bool) -> list[Tensor]:
    """The largest absolute value of each, or of each row; does not wait for the device."""
    if is_stack:
        return [torch.linalg.vector_norm(one.flatten(1), torch.inf, dim=1) for one in grads]
    return [norm[None] for norm in torch._foreach_norm(list(grads), torch.inf)]


def _sample_of(weights: Sequence[Tensor]) -> Tensor:
    """At least ``SAMPLE`` elements if there are as many; an odd distance meets all columns."""
    share = 2 * SAMPLE // max(1, len(weights)) + 1
    pieces = [one.flatten()[:: max(1, one.numel() // share) | 1] for one in weights]
    return torch.cat(pieces).clone() if pieces else torch.zeros(0)
