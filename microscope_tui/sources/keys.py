"""Which key of a logger is which number of the run log.

Every distinct key is matched once, against the mapping of the user first and the keys of known
writers then. The patterns are whole-key regular expressions with the named groups ``layer`` and,
for matrices, ``expert``. A prefix that a logger puts in front (``train/``) does not matter.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

STEP_QUANTITIES = (
    "loss",
    "learning_rate",
    "grad_norm",
    "tokens",
    "tokens_per_s",
    "step_time_s",
    "memory_bytes",
)
ROUTER_QUANTITIES = (
    "entropy",
    "mean_entropy",
    "effective_experts",
    "max_load",
    "dead_experts",
    "starved_experts",
    "drop_rate",
    "z_loss",
    "max_logit",
    "grad_norm",
    "selected_mass",
    "margin",
    "disagreement",
)
MATRIX_QUANTITIES = ("tokens_per_expert", "expert_bias", "share")
MAX_KEY_CHARACTERS = 512
"""Longer keys match nothing."""
MAX_KEYS = 1 << 20
"""Distinct keys that are remembered; further ones are matched each time."""
MAX_REMEMBERED_CHARACTERS = 32 << 20
"""The same in characters: a hostile file with long keys must not fill the memory."""
MAX_LAYERS = 4096
MAX_EXPERTS = 65_536


class Target(NamedTuple):
    """Where a number belongs in a step of the run log."""

    quantity: str
    layer: int | None = None
    """Number of the layer in the key; ``None`` for the whole step, or all layers together."""
    expert: int | None = None
    plus: float = 0.0
    """Added to the value: MaxVio is ``max_load`` − 1."""

    @property
    def of_router(self) -> bool:
        """Whether it is a reading of a router; without a layer, of all routers together."""
        return self.layer is not None or self.quantity not in STEP_QUANTITIES


class BadMapping(ValueError):
    """A mapping cannot be used; the message says why and what to write."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One pattern: keys that match it hold this quantity."""

    quantity: str
    pattern: re.Pattern[str]
    plus: float = 0.0
    of_gates: bool = False
    """AutoModel's: the layer is a place in the sorted names of the gates (10 before 2), and experts
    may be missing; the loads of a whole row have the mean 1."""


def _known(quantity: str, pattern: str, plus: float = 0.0) -> Rule:
    return Rule(quantity, re.compile(rf"(?:[\w.-]+/)?{pattern}"), plus)


_L, _E = r"(?P<layer>\d{1,5})", r"(?P<expert>\d{1,6})"
KNOWN_RULES: Sequence[Rule] = (
    # torchtitan forks; EP means expert here, not rank
    _known("share", rf"moe_ep_usage/L-{_L}_EP-{_E}"),
    _known("expert_bias", rf"moe_bias/L-{_L}_EP-{_E}"),
    _known("entropy", rf"moe_entropy/L-{_L}"),
    _known("max_load", rf"moe_maxvio_batch/L-{_L}", 1.0),
    # ltp-megatron-lm
    _known("tokens_per_expert", rf"moe-expert/\w*tokens_per_expert_layer{_L}_expert{_E}"),
    # AutoModel: load ÷ mean load
    replace(
        _known("share", rf"moe_expert_utilization/layer_{_L}_expert_{_E}"),
        of_gates=True,
    ),
    # VeOmni, verl
    _known("max_load", rf"(?:rollout/)?moe/max_vio/layer_{_L}", 1.0),
    _known("max_load", r"(?:rollout/)?moe/max_vio(?:/max)?", 1.0),
    # prime-rl
    _known("max_load", r"max_vio/max", 1.0),
    _known("max_load", r"expert_load/max_mean/max"),
    # OLMo-core: max ÷ mean; tensorboardX turns spaces into underscores
    _known("max_load", rf"block[ _]{_L}/load[ _]imbalance"),
    _known("z_loss", rf"block[ _]{_L}/router[ _]Z[ _]loss[ _]unscaled"),
    _known("max_load", r"load[ _]imbalance"),
    # Megatron-LM, NeMo-RL
    _known("z_loss", rf"moe/z_loss_layer_{_L}"),
    # our own names, as another logger flattens them
    *(
        _known(name, rf"router/{name}/{_L}(?:/{_E})?")
        for name in (*ROUTER_QUANTITIES, *MATRIX_QUANTITIES)
    ),
    # the usual names of the whole step
    _known("loss", r"(?:loss|lm[_ ]loss|CE loss)"),
    _known("learning_rate", r"(?:lr|learning[_ ]rate|optim/lr)"),
    _known("grad_norm", r"(?:grad[_ ]norm|optim/grad_norm|total grad norm)"),
    _known("tokens_per_s", r"(?:throughput/tokens_per_s|tokens_per_s|tps|throughput\(tps\))"),
    _known("tokens", r"(?:tokens_per_step|num_tokens_per_step|batch_tokens)"),
)


def rules_of(pairs: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of ``QUANTITY=REGEX`` pairs, as given with ``--map``.

    Raises:
        BadMapping: a pair has no ``=``, an unknown quantity, or a pattern that cannot be used.
    """
    return tuple(_rule_of(pair) for pair in pairs)


def _rule_of(pair: str) -> Rule:
    quantity, equals, pattern = pair.partition("=")
    quantity = quantity.strip()
    known = sorted({*STEP_QUANTITIES, *ROUTER_QUANTITIES, *MATRIX_QUANTITIES})
    if not equals or not pattern:
        raise BadMapping(f"{pair!r}: write QUANTITY=REGEX")
    if quantity not in known:
        raise BadMapping(f"{quantity!r}: no such quantity; there are {', '.join(known)}")
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise BadMapping(f"{pattern!r}: not a regular expression: {error}") from error
    groups = set(compiled.groupindex)
    if groups - {"layer", "expert"}:
        extra = ", ".join(sorted(groups - {"layer", "expert"}))
        raise BadMapping(f"{pattern!r}: unknown group {extra}; there are layer and expert")
    if quantity in MATRIX_QUANTITIES and "expert" not in groups:
        raise BadMapping(
            f"{pattern!r}: {quantity} is a number per expert; add the group (?P<expert>\\d+)"
        )
    if quantity not in STEP_QUANTITIES and quantity not in MATRIX_QUANTITIES and "expert" in groups:
        raise BadMapping(f"{pattern!r}: {quantity} is a number per layer; remove the group expert")
    return Rule(quantity, compiled)


class Keys(dict[str, Target | None]):
    """The target of each key, matched at its first appearance."""

    def __init__(self, own: Sequence[Rule] = (), known: Sequence[Rule] = KNOWN_RULES) -> None:
        """``own``: rules of the user, which win over ``known``."""
        super().__init__()
        self._rules = (*own, *known)
        self._characters = 0
        self.of_gates = False
        """Whether a key has appeared whose layers are places in a list of gates: see ``Rule``."""

    def __missing__(self, key: str) -> Target | None:
        target = self._match(key) if len(key) <= MAX_KEY_CHARACTERS else None
        self._characters += len(key)
        if len(self) < MAX_KEYS and self._characters < MAX_REMEMBERED_CHARACTERS:
            self[key] = target
        return target

    def _match(self, key: str) -> Target | None:
        for rule in self._rules:
            found = rule.pattern.fullmatch(key)
            if found is None:
                continue
            groups = found.groupdict()
            layer, expert = _number(groups.get("layer")), _number(groups.get("expert"))
            if (layer or 0) >= MAX_LAYERS or (expert or 0) >= MAX_EXPERTS:
                return None
            self.of_gates |= rule.of_gates
            return Target(rule.quantity, layer, expert, rule.plus)
        return None

    @property
    def has_routers(self) -> bool:
        """Whether a key with a reading of a router has appeared."""
        return any(target is not None and target.of_router for target in self.values())


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 10 else None
