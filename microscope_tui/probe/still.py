"""Looks at gradients: which experts and routers should have got one in a step, and did not.

A look adds to the sum of the step over ranks which gradients are exactly zero, and rank 0
concludes: nothing before an update has changed a parameter, or where no weight has a gradient.
"""

import itertools
import logging
import math
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from microscope_tui.probe.forward_hooks import ForwardHooks
from microscope_tui.probe.ranks import Ranks
from microscope_tui.probe.sites import Site
from microscope_tui.probe.step_sums import Row, Values
from microscope_tui.probe.weights import Owner, Weight, inside, local_part, plain_path, weights_of

_logger = logging.getLogger(__name__)
FIRST, EVERY = range(3, 6), 100
"""Logged steps with a look: the first ones that may follow an update, then every hundredth."""
ENOUGH_TOKENS, SAMPLE, _OTHERS, _EXACT = 50, 4096, 16, 32
"""Tokens with loss of an expert; elements of a sample; other weights read in or after a layer;
elements of a part of a sample in fp32."""
_HOLDERS = "main_grad", "_hp_mapping"
"""Attributes of a parameter whose gradient Megatron or DeepSpeed may keep."""
Group = tuple[int, str]


class Part(NamedTuple):
    """A parameter, by its module as wrappers replace it, and the tensors in it: one for each expert
    in a stack. Matrices of an adapter share one."""

    module: nn.Module
    name: str
    keys: list[Owner]
    """Without a part: any other weight, which is not judged, behind so many routers."""

    @property
    def weight(self) -> Any:
        """The parameter as it is now; ``None`` if it is not trained, or is gone."""
        found = self.module._parameters.get(self.name)
        return found if getattr(found, "requires_grad", False) else None

    @property
    def group(self) -> Group:
        """Tensors of one kind in one layer are sampled together."""
        return self.keys[0].place, self.keys[0].path


def is_due(step: int) -> bool:
    """Whether there is a look at the gradients in the logged step with this number."""
    return step in FIRST or step % EVERY == 0


def _plan(model: nn.Module, sites: Sequence[Site]) -> list[Part]:
    """Of the weights beside routers and experts only the smallest."""
    places = [place for place, site in enumerate(sites) if site.here]
    layers = {_layer(plain_path(sites[place].path)): place for place in places}
    parts: list[Part] = []
    others: defaultdict[Owner, list[tuple[int, Part]]] = defaultdict(list)
    after = min(places, default=0)  # the routers of earlier stages
    for weight in weights_of(model, sites):
        place = layers.get(inside(weight.path, layers), -1)
        after = max(after, place + 1)
        if not weight.tensor.requires_grad:
            continue
        if keys := _keys(weight, sites):
            parts.append(Part(weight.module, weight.name, keys))
        else:
            at = Owner(after)
            if place >= 0:
                at = Owner(place, path="beside" if weight.tensor.dim() > 1 else "")  # not a norm
            others[at].append((weight.tensor.numel(), Part(weight.module, weight.name, [at])))
    for some in others.values():
        some.sort(key=lambda pair: pair[0])
        parts += [part for _, part in some[:_OTHERS]]
    return sorted(parts, key=lambda part: part.group)


def _layer(path: str) -> str:
    """The path up to its last number."""
    numbered = re.match(r"(.*\.)?\d+(?=\.)", path)
    return numbered[0] if numbered else path


def _keys(weight: Weight, sites: Sequence[Site]) -> list[Owner]:
    """The tensors in a weight of a router or of experts."""
    own, shape = weight.owner, weight.tensor.shape
    if weight.adapter:
        own = own._replace(path=f"{own.path} (adapter)")
    if own.expert is not None:
        return [own._replace(part="experts")]  # also in a list of another name
    if not own.part or len(shape) < 2:
        return []  # a bias of the router may have no gradient: it only selects
    if own.part == "experts":
        E = sites[own.place].num_experts
        if len(shape) == 2 and "expert" not in own.path:
            return []  # with a row for every expert it may also be an embedding
        if not weight.adapter and shape[0] == E > 1:
            return [own._replace(expert=number) for number in range(E)]
    return [own._replace(path=re.sub(r"\d+", "", own.path))]


class Judged(NamedTuple):
    """The numbers of a row of the log; ``None``: no conclusion."""

    looked_tensors: int | None = None
    still_tensors: int | None = None
    unchanged_tensors: int | None = None


def judge_row(
    own: Mapping[Owner, bool],
    tokens: Sequence[float],
    has_labels: bool,
    is_passed: bool,
    same: Collection[Owner] | None,
) -> Judged:
    """Judge one router and its experts.

    ``own``: whether each tensor has a gradient; ``tokens``: of every expert those with a loss, or
    all without ``has_labels``; ``is_passed``: a weight behind this layer has a gradient; ``same``:
    tensors that have not changed, ``None``: not compared.
    """
    enough: dict[int | None, bool] = {place: n >= ENOUGH_TOKENS for place, n in enumerate(tokens)}
    enough[None] = any(enough.values())  # of weights that belong to no single expert
    looked = [key for key in own if enough[key.expert]]
    still = sum(not own[key] for key in looked)
    if not looked:
        return Judged()
    if still and not has_labels:
        # Tokens of single experts may have no loss: only all experts together show something. And
        # auxiliary losses of the routers up to this one give no gradient to a weight behind the
        # layer: where one has some, another loss came back through the layer.
        some = any(moves for key, moves in own.items() if key.part != "router")
        if some or not is_passed:
            return Judged()
    unchanged = None if same is None else sum(key in same for key in looked)
    return Judged(len(looked), still, unchanged)


class Looks:
    """Looks at the gradients of one model, in the mode ``train`` only."""

    def __init__(self, hooks: ForwardHooks, ranks: Ranks) -> None:
        self._hooks = hooks
        self._ranks = ranks
        self._failed = False
        self._E = max((site.num_experts for site in hooks.sites), default=0)
        self._parts: list[Part] = []
        self._numbers: dict[Owner, int] = {}
        self._samples: dict[Group, Tensor] = {}
        self._kept: dict[Group, Tensor] = {}
        """Samples after the first step, then of the last look at a hundredth."""
        self._enough = set[Group]()
        """Groups of all ranks whose samples are large enough to show that nothing changes."""
        self._ends: dict[Group, list[int]] = {}
        self._moves: Any = None
        self.size = self._width = self._end = 0
        """Numbers that a look adds to the sum of the step: of this step, and of a look; the last
        place of a trained weight without a router."""
        self._logged = self._rated = self._empty = 0
        """Logged steps, those since the samples with a rate that is not zero, and empty looks."""

    def begin(self, on: bool) -> None:
        """Before a step that is logged if ``on``."""
        self._moves, self._samples = None, {}
        self.size = self.size_of(self._logged + 1) if on else 0
        if self.size:
            self.attempt(self._sample)

    def attempt(self, call: Callable[..., Any], *args: Any) -> Any:
        """What ``call`` returns; ``None`` from the first failure on. The counting continues."""
        try:
            with torch.no_grad():
                return None if self._failed else call(*args)
        except Exception as error:  # any failure: the training matters more
            self._failed = True
            _logger.warning("gradients are not looked at any more, training continues: %r", error)

    def size_of(self, number: int) -> int:
        """How many numbers the sum of this logged step has for a look; every rank has as many."""
        return self._width if is_due(number) else 0

    def count(self, number: int, rate: Any) -> None:
        """Note that a step is logged, with its number and learning rate; every rank calls it."""
        self._logged = number
        if isinstance(rate, int | float) and rate != 0:
            self._rated += 1

    def plan(self) -> tuple[list[Owner], list[Group]]:
        """Plan what is looked at, in the first logged step; ``agree`` takes this of all ranks."""
        self._parts = self.attempt(_plan, self._hooks.model, self._hooks.sites) or []
        if any(hasattr(part.weight, "ds_id") for part in self._parts):
            self._parts = []
            if self._ranks.rank == 0:
                _logger.warning("ZeRO-3 keeps gradients in partitions: STILL cannot read any")
        self.attempt(self._sample)
        own = [key for part in self._parts for key in part.keys]
        return own, [*filter(self._is_enough, self._kept)]

    def agree(self, everyone: Sequence[tuple[list[Owner], list[Group]]]) -> None:
        """``everyone``: what ``plan`` returned, by rank."""
        keys = dict.fromkeys(key for own, _ in everyone for key in own)
        self._numbers = {key: number for number, key in enumerate(keys)}
        self._enough = {group for _, enough in everyone for group in enough}
        self._end = max((key.place for key in keys if not key.part), default=0)
        if keys:
            self._width = len(self._hooks.sites) * self._E + 2 * len(keys)

    def read(self) -> None:
        """Read the gradients, before anything clears them; only the first call of a step counts."""
        if self.size and self._moves is None:
            self._moves = self.attempt(self._read)

    def _sample(self) -> None:
        weights: defaultdict[Group, list[Tensor]] = defaultdict(list)
        for part in self._parts:
            held = part.module._parameters.get(part.name)  # also while it is frozen: sizes stay
            weights[part.group].append(torch.zeros(0) if held is None else local_part(held))
        for group, some in weights.items():
            self._samples[group], self._ends[group] = _sample_of(some)
        self._kept = self._kept or self._samples

    def _read(self) -> Tensor:
        """1 for every tensor with a gradient that is not zero; NaN where that is not known."""
        grads: defaultdict[Any, list[tuple[list[int], Tensor]]] = defaultdict(list)
        blind: list[int] = []
        for part in self._parts:
            weight = part.weight
            at = [self._numbers[key] for key in part.keys]
            if weight is None or _is_elsewhere(weight):
                blind += at
            elif weight.grad is not None and (grad := local_part(weight.grad)).numel():
                rows = slice(_first_row(weight.grad), None) if len(at) > 1 else slice(None)
                grads[grad.device, grad.dtype, len(at) > 1].append((at[rows][: len(grad)], grad))
        device = next(iter(grads), (torch.device("cpu"),))[0]
        found_N = torch.zeros(len(self._numbers), dtype=torch.float64, device=device)
        found_N[blind] = math.nan
        for (*_, is_stack), some in grads.items():
            largest_M = _largest([grad for _, grad in some], is_stack)
            at_M = torch.tensor([number for at, _ in some for number in at], device=device)
            found_N.index_add_(0, at_M, (largest_M != 0).to(found_N))
        return found_N

    def vector(self, counts: bool, device: torch.device) -> Tensor:
        """What this rank adds, always ``size``: tokens with loss of every expert, what ``_read``
        returns, how many sampled elements of every tensor changed."""
        found = None if self._moves is None else self.attempt(self._vector, counts, device)
        unknown = torch.full((self.size,), math.nan, dtype=torch.float64, device=device)
        return found if found is not None and found.shape == unknown.shape else unknown

    def _vector(self, counts: bool, device: torch.device) -> Tensor:
        S, E = len(self._hooks.sites), self._E
        tokens_SE = torch.zeros(S, E, dtype=torch.float64, device=device)
        for tally in self._hooks.calls.tallies if counts else ():
            for at, (place, _) in enumerate(tally.keys):
                with_loss_E = tally.with_loss_LE2[at, : tally.num_experts]
                tokens_SE[place, : tally.num_experts] += with_loss_E.to(device)
        changed_N = torch.zeros(len(self._numbers), dtype=torch.float64, device=device)
        changed = [changed_N[:0]]
        for group, new in self._samples.items():
            differs = self._kept[group].to(new.device) != new
            changed_P = nn.functional.pad(differs.cumsum(0), (1, 0))[self._ends[group]].diff()
            if new.element_size() < 4:  # rounding may lose the updates of a part
                changed_P = changed_P.sum().expand(len(changed_P))
            changed.append(changed_P.to(changed_N))
        pairs = [(self._numbers[k], at) for at, part in enumerate(self._parts) for k in part.keys]
        at_M, part_M = torch.tensor(pairs, device=device).view(-1, 2).long().T
        changed_N.index_add_(0, at_M, torch.cat(changed)[part_M])
        if self._logged % EVERY == 0:
            self._kept = self._samples
        return torch.cat([tokens_SE.flatten(), self._moves.to(device), changed_N])

    def conclude(
        self, numbers: Sequence[float], rows: Sequence[Row], counts: Sequence[Sequence[int]]
    ) -> dict[str, Values]:
        """What the look found, as entries of the ``router`` object; empty if nothing can be
        concluded.

        Args:
            numbers: The sum of the vectors of all ranks.
            rows: Of the log.
            counts: Pairs of every row in this step.
        """
        if not numbers:
            return {}
        E, rest = self._E, numbers[len(self._hooks.sites) * self._E :]
        moving = dict(zip(self._numbers, rest, strict=False))
        changed = dict(zip(self._numbers, rest[len(moving) :], strict=True))
        self._warn_if_cleared(moving)
        same = self._unchanged(changed)
        updated = same is not None or any(changed.values())
        if not updated or not any(n > 0 for n in moving.values()):
            return {}
        own = by_place(moving)
        last = _last(moving)
        found: list[Judged] = []
        for row in rows:
            tokens = numbers[row.place * E : (row.place + 1) * E]
            is_passed = row.place < last
            # Labels may have no weight in the loss: then it reaches nothing behind the experts.
            has_loss = is_passed or row.place >= self._end
            has_labels = has_loss and not math.isnan(tokens[0])
            if not has_labels:
                tokens = _chosen(row.place, rows, counts)
            found.append(judge_row(own[row.place], tokens, has_labels, is_passed, same))
        lists = zip(Judged._fields, map(list, zip(*found, strict=True)), strict=True)
        summaries = {name: one for name, one in lists if any(v is not None for v in one)}
        if same and any(changed.values()):
            summaries["layer_changed"] = _around(rows, changed)
        return summaries

    def _warn_if_cleared(self, moving: Mapping[Owner, float]) -> None:
        """Warn if none of the first looks has seen a gradient."""
        if not any(moving.values()):
            self._empty += 1
        if self._logged == FIRST[-1] and self._empty == len(FIRST):
            _logger.warning(
                "all gradients of logged steps 3 to 5 are zero or absent; if they are cleared "
                "before probe.step, call it earlier"
            )

    def _unchanged(self, changed: Mapping[Owner, float]) -> set[Owner] | None:
        """Tensors of which no sampled element has changed; ``None``: not compared. Small samples
        show nothing, unless others of the layer do."""
        if self._logged % EVERY:
            return None
        rated, self._rated = self._rated, 0
        if rated < EVERY // 2 and not any(changed.values()):
            return None
        same = {key for key, n in changed.items() if key.part and not n}
        places = {key.place for key in same if (key.place, key.path) in self._enough}
        return {key for key in same if key.place in places}

    def _is_enough(self, group: Group) -> bool:
        sample = self._kept[group]
        few = _EXACT * len(self._ends[group])
        return len(sample) >= (SAMPLE if sample.element_size() < 4 else min(SAMPLE, few))


def _around(rows: Sequence[Row], changed: Mapping[Owner, float]) -> Values:
    """1 for a router that changed, or a matrix beside it; 0 where all of the layer rests."""
    busy = {key.place for key, n in changed.items() if key.part == "experts" and n > 0}
    around = [(k.place, n) for k, n in changed.items() if k.path and k.part != "experts"]
    found = dict(sorted((place, int(n > 0)) for place, n in around if n > 0 or place not in busy))
    return [found.get(row.place) for row in rows]


def by_place(moving: Mapping[Owner, float]) -> defaultdict[int, dict[Owner, bool]]:
    """Which tensors of every router and its experts have a gradient, where that is known."""
    found: defaultdict[int, dict[Owner, bool]] = defaultdict(dict)
    for key, n in moving.items():
        if key.part and not math.isnan(n):
            found[key.place][key] = n > 0
    return found


def _last(moving: Mapping[Owner, float]) -> int:
    """Of a weight with a gradient, other than of a router."""
    return max((k.place for k, n in moving.items() if n > 0 and k.part != "router"), default=0)


def _chosen(place: int, rows: Sequence[Row], counts: Sequence[Sequence[int]]) -> list[int]:
    """Tokens of every expert of a router, over its passes."""
    passes = [n for n, row in zip(counts, rows, strict=True) if row.place == place]
    return [sum(column) for column in zip(*passes, strict=True)]


def _first_row(grad: Any) -> int:
    if not hasattr(grad, "device_mesh"):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset as place_of

    return int(place_of(grad.shape, grad.device_mesh, grad.placements)[1][0])


def _is_elsewhere(weight: Any) -> bool:
    """The gradient may be kept elsewhere than in ``grad``, or hooks (of FSDP2, or of an optimizer
    that steps inside the backward pass) clear it."""
    hooks = weight._post_accumulate_grad_hooks or weight._backward_hooks
    held = any(getattr(weight, name, None) is not None for name in _HOLDERS)
    return held or (weight.grad is None and bool(hooks))


def _largest(grads: Sequence[Tensor], is_stack: bool) -> Tensor:
    """The largest absolute value of each, or of each row."""
    if not is_stack:
        grads = [one[None] for one in grads]
    rows = [one.flatten(1) for one in grads]
    if grads[0].device.type == "cpu":  # eight times as fast there
        low, high = (torch.cat([f(row, 1) for row in rows]) for f in (torch.amin, torch.amax))
        return torch.maximum(-low, high)
    if is_stack:
        return torch.cat([torch.linalg.vector_norm(row, torch.inf, dim=1) for row in rows])
    return torch.stack(torch._foreach_norm(rows, torch.inf))


def _sample_of(weights: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """At least ``SAMPLE`` elements if there are as many, and where each weight begins and ends; an
    odd distance meets all columns."""
    share = 2 * SAMPLE // len(weights) + 1
    pieces = [one.flatten()[:: max(1, one.numel() // share) | 1] for one in weights]
    sample = torch.cat([one.to(pieces[0].device) for one in pieces])
    return sample, [0, *itertools.accumulate(map(len, pieces))]
