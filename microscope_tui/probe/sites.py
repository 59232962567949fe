"""Where routers are: one ``Site`` for every router module of a model, and its name.

A router is named by the depth in its module path, never by its position: in a model whose first
three layers are dense the first router is ``L3``.
"""

from __future__ import annotations

import inspect
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor, nn

PreHook = Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]
MAX_NAME = 12
SCORE_KINDS = ("softmax", "sigmoid", "sqrtsoftplus")

_STACKS = {
    "encoder": "enc", "decoder": "dec", "mtp": "mtp", "mtp_layers": "mtp", "mtp_modules": "mtp",
    "vision": "vis", "visual": "vis", "image": "vis", "audio": "aud", "talker": "talk",
    "code": "code",
}  # fmt: skip
"""Words in a module path and the stack of layers that they name."""
_WITHIN = {"self_attn": "attn", "self_attention": "attn", "text_moe": "text", "vision_moe": "vis"}
_BIASES = (
    "e_score_correction_bias", "expert_bias", "expert_bias_E", "balancing_biases", "expert_biases",
)  # fmt: skip
_NO_TEXT = ("vis", "aud")
"""Stacks that see patches or frames: the attention mask of the text is not theirs."""


class Choice(NamedTuple):
    """Of one call of a router for T tokens."""

    ids_TK: Tensor
    """Expert ids; any other id (−1, a skip slot, an identity expert) counts as unrouted."""
    weights_TK: Tensor | None = None
    """Factors of the outputs of the chosen experts."""
    logits_TE: Tensor | None = None
    """Logits of the router, see ``Scores``."""
    kept_TK: Tensor | None = None
    """False where a capacity dropped the pair."""
    real_T: Tensor | None = None
    """False for padding; given if the call does not see the tokens of the batch in their order."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How to read the logits of a router."""

    module: nn.Module
    index: int | None
    """Of the logits in the module's output; ``None`` if the output is the logits."""
    kind: str | None
    """``softmax``, ``sigmoid`` or ``sqrtsoftplus``: what turns the logits into scores;
    ``probabilities`` if they are already; ``None`` if unknown."""


@dataclass(slots=True)
class Site:
    """One router of the model."""

    path: str
    """Of the watched module in the model."""
    module: nn.Module
    read: Callable[[nn.Module, tuple[Any, ...], Any], Choice]
    """``read(module, args, output)`` returns the choice of one call; ``output`` is ``None`` if it
    is called before the module runs."""
    before: bool
    """Read before the module runs: its arguments hold the choice."""
    num_experts: int
    top_k: int
    depth: int = 0
    stack: str = ""
    name: str = ""
    scores: Scores | None = None
    router: nn.Module | None = None
    """Holds the router's weight and, mostly, its selection bias."""
    block: nn.Module | None = None
    """Holds the router and its experts."""
    experts: nn.Module | None = None
    """Takes ``(hidden, ids, weights)``: can compute the output of single experts."""
    plain_choice: bool = True
    """The k best of the biased scores are chosen, so that a margin is defined."""
    sees_text: bool = True
    """Its tokens are those of the batch, in their order."""
    drops: bool = False
    """A capacity may drop what was chosen."""
    optional: bool = False
    """Not every pass has tokens for it."""
    balance: dict[str, Any] = field(default_factory=dict)
    """How its framework balances it, in the keys of the run log; empty where that is unknown."""
    own_rows: Callable[[], Tensor | None] | None = None
    """Bool over the tokens of the batch: which of them this call sees; ``None`` for all."""
    pre_hooks: list[tuple[nn.Module, PreHook]] = field(default_factory=list)
    """Modules whose arguments ``own_rows`` needs, and the hook that takes them."""
    here: bool = True
    """This process holds it, and not only other ranks; see ``elsewhere``."""
    holders: Sequence[int] = (0,)
    """Ranks that hold it."""
    is_placed: bool = False
    """Its depth is given: the same one elsewhere is a replica."""
    start: str = ""
    """Of its path: the number of its module, if the model is a list of them."""
    stage: int | None = None
    """Number of its stage in a pipeline of torch, if ``attach`` was given that."""
    has_bias: bool = False
    bias_at: Any = None
    """Where ``bias`` found one: the module and the name; ``()``: nowhere."""

    def elsewhere(self) -> Site:
        """The same router as other ranks see it: without its modules, so that it can be sent to
        them.
        """
        nothing: Any = nn.Module()
        has_bias = self.bias() is not None
        scores = None if self.scores is None else Scores(nothing, None, self.scores.kind)
        return replace(
            self, module=nothing, read=nothing, router=None, block=None, experts=None,
            scores=scores, own_rows=None, pre_hooks=[], here=False, has_bias=has_bias, bias_at=(),
        )  # fmt: skip

    def bias(self) -> Tensor | None:
        """The selection bias as it is now, ``[E]``; ``None`` for a router without one."""
        if self.bias_at is None:  # an attribute that a module lacks takes long to look for
            holders = [self.router, self.block]
            holders += [getattr(holder, "moe_statics", None) for holder in holders]
            places = itertools.product(holders, _BIASES)
            self.bias_at = next((one for one in places if self._is_bias(*one)), ())
        if not self.bias_at:
            return None
        found: Tensor = getattr(*self.bias_at)
        return found.detach().reshape(-1)[: self.num_experts]

    def _is_bias(self, holder: Any, name: str) -> bool:
        found = getattr(holder, name, None)
        return isinstance(found, Tensor) and found.numel() >= self.num_experts


def site_at_router(
    path: str,
    module: nn.Module,
    parent: nn.Module,
    read: Callable[..., Choice],
    experts: int,
    top_k: int,
    kind: str | None,
    **more: Any,
) -> Site:
    """A site whose router is watched: ``read`` takes the choice from its output; see ``Scores``."""
    made = Site(path, module, read, False, int(experts), int(top_k), **more)
    made.scores, made.router, made.block = Scores(module, None, kind), module, parent
    return made


def setting(holders: Iterable[Any], names: Sequence[str], fits: Callable[[Any], bool]) -> Any:
    """The first attribute of the holders by one of the names that ``fits``; else ``None``."""
    for holder in holders:
        for name in names:
            if fits(value := getattr(holder, name, None)):
                return value
    return None


def argument_names(module: nn.Module) -> list[str]:
    """Names of the arguments of a module's forward; empty if they are unknown."""
    try:
        return list(inspect.signature(type(module).forward).parameters)[1:]
    except (TypeError, ValueError):
        return []


def is_size(value: Any) -> bool:
    """Whether the attribute of a model can be a number of experts, of choices, or of tokens."""
    return isinstance(value, int) and value >= 1


def locate(sites: list[Site], model: nn.Module) -> list[Site]:
    """Set the depth and the stack of every site from its path."""
    for position, site in enumerate(sites):
        parts = site.path.split(".")
        at = _depth_at(parts, model)
        site.depth = position if at is None else int(parts[at])
        number = getattr(site.module, "layer_number", None)  # Megatron: true under pipelines too
        if isinstance(number, int) and number >= 1:
            site.depth, site.is_placed = number - 1, True
        site.stack = next(filter(None, map(_stack, parts[:at])), "")
        site.sees_text = site.stack not in _NO_TEXT
        site.optional = site.optional or not site.sees_text
    return sites


def arrange(sites: list[Site]) -> list[Site]:
    """Name the routers of a whole model and sort them in forward order."""
    stacks = {site.stack for site in sites}
    for site in sites:
        if len(stacks) == 1 or (site.stack == "dec" and "enc" not in stacks):
            site.stack = ""  # a decoder without an encoder is the model
    ordered = sorted(sites, key=_forward_order)
    _name(ordered)
    return ordered


def _stack(part: str) -> str:
    words = (part, *part.split("_"))
    return next((_STACKS[word] for word in words if word in _STACKS), "")


def _depth_at(parts: list[str], model: nn.Module) -> int | None:
    """Index of the part that is the layer's number, in the outermost list of several modules."""
    first, module = None, model
    for at, part in enumerate(parts):
        if part.isdigit():
            first = at if first is None else first
            if len(list(module.children())) > 1:
                return at
        module = getattr(module, part)
    return first


def _within(site: Site) -> str:
    return next((_WITHIN[p] for p in reversed(site.path.split(".")) if p in _WITHIN), "")


def _forward_order(site: Site) -> tuple[int, str, int, bool]:
    first = {"vis": 0, "aud": 1, "enc": 2, "": 3, "dec": 3}.get(site.stack, 4)
    return first, site.stack, site.depth, _within(site) != "attn"


def _short_name(site: Site) -> str:
    return f"{site.stack}.{site.depth}" if site.stack else f"L{site.depth}"


def _name(sites: list[Site]) -> None:
    names = [*map(_short_name, sites)]
    alone = Counter(names)
    for index, site in enumerate(sites):
        if alone[names[index]] > 1 and _within(site):
            names[index] += f".{_within(site)}"
    repeated, seen = Counter(names), Counter[str]()
    for site, name in zip(sites, names, strict=True):
        seen[name] += 1
        if repeated[name] > 1:
            name += f".{seen[name]}"
        site.name = name[:MAX_NAME]


@dataclass(frozen=True, slots=True)
class Adapter:
    """How to read the choices of one kind of router."""

    ids: Callable[[Any, tuple[Any, ...], Any], Any]
    """``ids(module, args, output)``, called after the module's forward, returns the chosen expert
    ids ``[T, k]``, T tokens in the order of the batch, −1 for a slot that chose no real expert.
    It runs inside the forward pass: tensor operations only, nothing that waits for the device."""
    num_experts: int
    """Routed experts."""
    top_k: int
    """Experts that a token chooses."""

    def __post_init__(self) -> None:
        """Check what the user wrote.

        Raises:
            TypeError: ``ids`` cannot be called.
            ValueError: ``num_experts`` or ``top_k`` is less than 1.
        """
        if not callable(self.ids):
            raise TypeError(f"Adapter(ids={self.ids!r}): pass a function (module, args, output)")
        if self.num_experts < 1 or self.top_k < 1:
            raise ValueError(
                f"Adapter(num_experts={self.num_experts}, top_k={self.top_k}): both are at least 1"
            )
