"""Which key of a logger is which number of the run log, and how the number is read.

Every distinct key is matched once, against the mapping of the user first and the keys of known
writers then. The patterns are whole-key regular expressions with the named groups ``layer`` and,
for matrices, ``expert``. A prefix that a logger puts in front (``train/``) does not matter.

Nested objects and lists are flattened: ``{"moe": {"load": [1, 2]}}`` holds ``moe/load/0`` and
``moe/load/1``, and so is a histogram whose edges are around the whole numbers from 0 on: each bin
is one expert. Only values whose key has a target are turned into numbers.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from itertools import compress
from typing import Any, NamedTuple

import msgspec

from microscope_tui.runlog import RouterSummary, StepRecord

STEP_QUANTITIES = tuple(
    name
    for name in StepRecord.__struct_fields__
    if name not in ("step", "time", "losses", "router")
)
ROUTER_QUANTITIES = tuple(
    name for name in RouterSummary.__struct_fields__ if name not in ("tokens", "unrouted")
)
MATRIX_QUANTITIES = ("tokens_per_expert", "expert_bias", "share")
LOAD_ENTROPY = "load_entropy"
"""Entropy of the loads in nats: its exponential is the number of effective experts."""
SUMMARY_OF = {
    LOAD_ENTROPY: "effective_experts",
    "max_vio": "max_load",
    "avg_vio": "effective_experts",
    "min_vio": "dead_experts",
    "cold_frac": "starved_experts",
}
"""What is computed from another quantity: see ``run_layout``."""
BARE_TOKENS = "bare_tokens"
"""A column ``tokens`` may be cumulative, or of one rank: it only gives k, see ``run_layout``."""
_OF_STEP = (*STEP_QUANTITIES, BARE_TOKENS)
LOSSES = ("mismatch_kl", "logprob_diff")
"""How far the log-probabilities of trainer and engine differ, in nats; ``losses`` of the log."""
MAX_KEY_CHARACTERS = 512
"""Longer keys match nothing."""
MAX_KEYS = 1 << 20
"""Distinct keys that are remembered; further ones are matched each time."""
MAX_REMEMBERED_CHARACTERS = 32 << 20
"""The same in characters, as a hostile file may have long keys."""
MAX_LAYERS = 4096
MAX_EXPERTS = 65_536
MAX_ROW_BYTES = 8 << 20
"""A row of 94 layers × 512 experts with shares and biases has 4 MB; 8 MB of ``{},`` become 200 MB
of objects."""
MAX_DEPTH = 8
"""Deeper objects are skipped: no logger nests its numbers further."""
MAX_OUTER_CHARACTERS = 128
"""Longest name of an object with numbers: it is copied into the key of each."""
_MOST_OBJECTS = 1 << 16
NOT_READ = ("histogram", "table", "table-file")
"""Kinds of objects that are counts only in a histogram with an edge around every expert."""
MAX_STEP = 2**62
STEP_NAMES = (
    "step", "_step", "global_step", "train/global_step", "trainer/global_step", "iteration", "iter",
)  # fmt: skip
TIME_NAMES = ("time", "timestamp", "_timestamp", "wall_time")
NUM_EXPERTS = (
    "num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts", "num_moe_experts",
)  # fmt: skip
TOP_K = (
    "top_k", "num_experts_per_tok", "moe_router_topk", "num_experts_per_token",
    "experts_per_token", "moe_top_k", "moe_topk",
)  # fmt: skip
_VIO = ("max_vio", "min_vio", "avg_vio")
_NOT_TRAINING = r"(?!(?:eval|evaluation|val|valid|validation|test|aux|mtp|draft)(?:[_.-][\w.-]*)?/)"
_ROLE = re.compile(r"(?:^|/)(actor|critic|ref|reward|rollout|teacher)/")
_MOST_DEPTH = 6
_MOST_VALUES = 20_000
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_CONTAINERS = {dict, list}
_MILLISECONDS = 1e11
"""As seconds this is the year 5138: larger times are in milliseconds."""


class Target(NamedTuple):
    """Where a number belongs in a step of the run log."""

    quantity: str
    layer: int | None = None
    """Number of the layer in the key; ``None`` for the whole step, or all layers together."""
    expert: int | None = None
    role: str = ""
    """Of the model in reinforcement learning: ``actor``, ``rollout``."""

    @property
    def of_router(self) -> bool:
        """Whether it is a reading of a router; without a layer, of all routers together."""
        return self.layer is not None or self.quantity not in _OF_STEP

    @property
    def has_role(self) -> bool:
        """Whether a run may have it once per role; the losses that compare roles belong to none."""
        return self.of_router and self.quantity not in LOSSES

    @property
    def final(self) -> "Target":
        """Where the number belongs in the run log, which has fewer quantities and no roles."""
        return Target(SUMMARY_OF.get(self.quantity, self.quantity), self.layer, self.expert)


class BadMapping(ValueError):
    """A ``--map`` cannot be used; the message says what to write."""


class Rule(msgspec.Struct, frozen=True):
    """One pattern: keys that match it hold this quantity."""

    quantity: str
    pattern: re.Pattern[str]
    of_gates: bool = False
    """AutoModel's: the layer is a place in the sorted names of the gates (10 before 2), and experts
    may be missing; the loads of a whole row have the mean 1."""

    @property
    def written(self) -> str:
        """As the user writes it with ``--map``."""
        return f"{self.quantity}={self.pattern.pattern}"


def _known(quantity: str, pattern: str, *, of_gates: bool = False) -> Rule:
    return Rule(quantity, re.compile(rf"(?:{_NOT_TRAINING}[\w.-]+/)?{pattern}"), of_gates)


_L, _E = r"(?P<layer>\d{1,5})", r"(?P<expert>\d{1,6})"


@cache
def known_rules() -> Sequence[Rule]:
    """The keys of known writers; compiled when the first key is looked up."""
    return (
        # torchtitan forks; EP means expert here, not rank
        _known("share", rf"moe_ep_usage/L-{_L}_EP-{_E}"),
        _known("expert_bias", rf"moe_bias/L-{_L}_EP-{_E}"),
        _known("entropy", rf"moe_entropy/L-{_L}"),
        _known("max_vio", rf"moe_maxvio_batch/L-{_L}"),
        # ltp-megatron-lm
        _known("tokens_per_expert", rf"moe-expert/\w*tokens_per_expert_layer{_L}_expert{_E}"),
        # AutoModel: load ÷ mean load
        _known("share", rf"moe_expert_utilization/layer_{_L}_expert_{_E}", of_gates=True),
        # the older microscope
        _known("share", rf"layer_{_L}_load/{_E}"),
        # VeOmni, verl
        *(_known(x, rf"(?:rollout/)?moe/{x}/layer_{_L}") for x in _VIO),
        _known("max_vio", r"(?:rollout/)?moe/max_vio(?:/max)?"),
        # prime-rl
        _known("max_vio", r"max_vio/max"),
        _known("max_load", r"expert_load/max_mean/max"),
        _known("cold_frac", r"expert_load/cold_frac/max"),
        _known("selected_mass", r"routing_confidence/mean"),
        _known("mismatch_kl", r"mismatch_kl/(?:all/)?mean"),
        # slime, miles
        _known("logprob_diff", r"train_rollout_logprob_abs_diff"),
        _known("disagreement", r"r3_mismatch_fraction"),
        # OLMo-core: max ÷ mean; tensorboardX turns spaces into underscores
        _known("max_load", rf"block[ _]{_L}/load[ _]imbalance"),
        _known("z_loss", rf"block[ _]{_L}/router[ _]Z[ _]loss[ _]unscaled"),
        _known("max_load", r"load[ _]imbalance"),
        # Megatron-LM, NeMo-RL
        _known("z_loss", rf"moe/z_loss_layer_{_L}"),
        # our own names, as another logger flattens them
        *(
            _known(name, rf"router/{name}/{_L}(?:/{_E})?")
            for name in (*ROUTER_QUANTITIES, *MATRIX_QUANTITIES, LOAD_ENTROPY)
        ),
        _known(LOAD_ENTROPY, rf"(?:moe|router|experts?)/(?:layer[/_-]?)?{_L}/load_entropy"),
        _known(LOAD_ENTROPY, rf"(?:moe|router|experts?)/load_entropy[/_](?:layer[/_-]?)?{_L}"),
        _known("tokens_per_expert", rf"tokens_per_expert/{_L}/{_E}"),
        # the usual names of the whole step
        _known("loss", r"(?:loss|lm[_ ]loss|CE loss)"),
        _known("learning_rate", r"(?:lr|learning[_ ]rate|optim/lr)"),
        _known("grad_norm", r"(?:grad[_ ]norm|optim/grad_norm|total grad norm)"),
        _known("tokens_per_s", r"(?:throughput/tokens_per_s|tokens_per_s|tps|throughput\(tps\))"),
        _known("tokens", r"(?:tokens_per_step|num_tokens_per_step|batch_tokens)"),
        _known(BARE_TOKENS, "tokens"),
    )


def rules_of(pairs: Iterable[str]) -> tuple[Rule, ...]:
    """The rules of ``QUANTITY=REGEX`` pairs, as given with ``--map``.

    ``BadMapping``: a pair has no ``=``, an unknown quantity, or a pattern that cannot be used.
    """
    return tuple(_rule_of(pair) for pair in pairs)


def _rule_of(pair: str) -> Rule:
    quantity, equals, pattern = pair.partition("=")
    quantity = quantity.strip()
    readings = {*STEP_QUANTITIES, *ROUTER_QUANTITIES, *MATRIX_QUANTITIES}
    known = sorted(readings.union(LOSSES, SUMMARY_OF))
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
        raise BadMapping(f"{pattern!r}: unknown group {extra}; the groups are layer and expert")
    if quantity in MATRIX_QUANTITIES and "expert" not in groups:
        raise BadMapping(
            f"{pattern!r}: {quantity} is a number per expert; add the group (?P<expert>\\d+)"
        )
    if quantity not in STEP_QUANTITIES and quantity not in MATRIX_QUANTITIES and "expert" in groups:
        raise BadMapping(f"{pattern!r}: {quantity} is a number per layer; remove the group expert")
    return Rule(quantity, compiled)


class Keys(dict[str, Target | None]):
    """The target of each key, matched at its first appearance."""

    def __init__(self, own: Sequence[Rule] = (), confirmed: Sequence[Rule] = ()) -> None:
        """``own``: rules that take precedence over the known ones; ``confirmed``: come after."""
        super().__init__()
        self._rules = (*own, *known_rules(), *confirmed)
        self._own = len(own)
        self._unconfirmed = len(self._rules) - len(confirmed)
        self._key_of: dict[Target, str] = {}  # what the user's rules matched
        self._chosen: str | None = None  # the role of the first of these
        self.doubled: tuple[str, str] | None = None
        """Two keys that the user's rules take for the same number."""
        self.unmatched = list(own)
        """Rules of the user that no key has matched."""
        self._characters = 0
        self.of_gates = False
        """Whether a key has appeared whose layers are places in a list of gates: see ``Rule``."""
        self.objects: dict[str, str] = {}
        """Kind of each key that had a list, a histogram or a table."""

    def __missing__(self, key: str) -> Target | None:
        target = self._match(key) if len(key) <= MAX_KEY_CHARACTERS else None
        self._characters += len(key)
        if len(self) < MAX_KEYS and self._characters < MAX_REMEMBERED_CHARACTERS:
            self[key] = target
        return target

    def _match(self, key: str) -> Target | None:
        for place, rule in enumerate(self._rules):
            found = rule.pattern.fullmatch(key)
            if found is None:
                continue
            groups = found.groupdict()
            layer, expert = _number(groups.get("layer")), _number(groups.get("expert"))
            if (layer or 0) >= MAX_LAYERS or (expert or 0) >= MAX_EXPERTS:
                return None
            self.of_gates |= rule.of_gates
            target = Target(rule.quantity, layer, expert)
            role = _ROLE.search(key) if place < self._unconfirmed else None
            if role is not None and target.has_role:
                target = target._replace(role=role[1])
            if place < self._own:
                self._found(rule, target, key)
            elif role is not None and not target.role and role[1] != "actor":
                return None  # the loss of another model
            return target
        return None

    def _found(self, rule: Rule, target: Target, key: str) -> None:
        self.unmatched = [one for one in self.unmatched if one is not rule]
        if target.has_role and self._chosen is None:
            self._chosen = target.role
        if (other := self._key_of.setdefault(target.final, key)) != key:
            self.doubled = self.doubled or (other, key)

    def roles(self) -> list[str]:
        """Those with readings of routers: first the one to read, that of the user's rules or else
        the one with most routers."""
        routers = {(one.role, one.layer) for one in self.values() if one and one.has_role}
        counted = Counter(role for role, _ in routers)
        return sorted(counted, key=lambda role: (role != self._chosen, -counted[role], role))

    def inside(self, name: str, value: list[object] | dict[str, Any]) -> Mapping[str, object]:
        """What a list, an object or a histogram holds, by the rest of its keys."""
        if isinstance(value, list):
            self.sees(name, "list")
            return dict(zip(map(str, range(MAX_EXPERTS)), value, strict=False))
        kind = str(value.get("_type", "")).removeprefix("trackio.")
        if kind not in NOT_READ:
            return value
        edges, counts = value.get("bins"), value.get("values")
        if kind == "histogram" and isinstance(counts, list):
            is_of_experts = edges == [expert - 0.5 for expert in range(len(counts) + 1)]
            if is_of_experts:
                return self.inside(name, counts)
        self.sees(name, kind)
        return {}

    def sees(self, name: str, kind: str) -> None:
        """Remember what an object is, unless there are too many; one step in which it is not read
        decides.
        """
        if name in self.objects and kind not in NOT_READ:
            return
        if len(self.objects) < _MOST_OBJECTS:
            self.objects[name] = kind

    @property
    def has_routers(self) -> bool:
        """Whether a key with a reading of a router has appeared."""
        return any(target is not None and target.of_router for target in self.values())


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() and len(text) < 10 else None


def decode_object(data: bytes) -> dict[str, object] | None:
    """As ``decode_json``; ``None`` for anything but an object."""
    try:
        value = decode_json(data)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def decode_json(data: bytes) -> object:
    """What ``data`` holds; bare ``NaN`` and ``Infinity`` are allowed, as Python writes them.

    Raises:
        ValueError: it is not JSON, nested too deeply, or longer than ``MAX_ROW_BYTES``.
    """
    if len(data) > MAX_ROW_BYTES:
        raise ValueError(f"longer than {MAX_ROW_BYTES >> 20} MB")
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass  # the standard library takes NaN, and bytes that are not UTF-8 in a text
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def matched(
    fields: Mapping[str, object], keys: Keys, depth: int = 0
) -> Iterator[tuple[Target, float]]:
    """The numbers in ``fields`` whose key has a target.

    Most keys have none: they cost a look-up and no line of Python.
    """
    values = fields.values()
    targets = list(map(keys.__getitem__, fields))
    for target, value in compress(zip(targets, values, strict=True), targets):
        assert target is not None
        number = value if type(value) is float else as_number(value)
        if number is not None:
            yield target, number
    if depth == MAX_DEPTH or _CONTAINERS.isdisjoint(map(type, values)):
        return
    for name, value in fields.items():
        if isinstance(value, list | dict) and len(name) <= MAX_OUTER_CHARACTERS:
            inner = {f"{name}/{key}": item for key, item in keys.inside(name, value).items()}
            yield from matched(inner, keys, depth + 1)


def as_number(value: object) -> float | None:
    """The number that a value of JSON holds, also by name (``"NaN"``); else ``None``."""
    if isinstance(value, str):
        return _NON_FINITE.get(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def as_step(value: object) -> int | None:
    """A step: a whole number from 0, also written as ``10.0`` or ``"10"``."""
    if isinstance(value, str):
        value = parse_number(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    is_step = type(value) is int and 0 <= value < MAX_STEP
    return value if is_step else None  # type: ignore[return-value]


def as_time(value: object) -> float | None:
    """Unix seconds of a number (seconds or milliseconds) or of an ISO 8601 text (UTC if bare)."""
    if isinstance(value, str):
        if (number := parse_number(value)) is not None:
            return as_time(number)
        try:
            moment = datetime.fromisoformat(value[:64])
            return moment.replace(tzinfo=moment.tzinfo or UTC).timestamp()
        except (ValueError, OverflowError):
            return None
    seconds = as_number(value)
    if seconds is None or not 0 <= seconds < _MILLISECONDS * 1000:
        return None
    return seconds / 1000 if seconds >= _MILLISECONDS else seconds


def parse_number(text: str) -> float | None:
    """The number that a text holds, also ``nan`` and ``inf``; else ``None``."""
    try:
        return float(text) if len(text) <= 64 else None
    except ValueError:
        return None


def first_of(fields: Mapping[str, object], names: tuple[str, ...]) -> object:
    """The value of the first of ``names`` that ``fields`` holds, or ``None``."""
    return next((fields[name] for name in names if name in fields), None)


def config_number(config: Mapping[str, object], names: Sequence[str]) -> int | None:
    """The first positive integer that one of ``names`` has in a nested configuration.

    Keys may be nested (``{"model": {"num_experts": 8}}``), dotted (``model.num_experts``) or spelt
    with hyphens; W&B wraps values as ``{"value": …}``.
    """
    left = _MOST_VALUES
    found: dict[str, int] = {}
    todo: list[tuple[Mapping[object, object], int]] = [(config, 0)]  # type: ignore[list-item]
    while todo and left > 0:
        level, depth = todo.pop()
        for key, value in level.items():
            left -= 1
            if isinstance(value, Mapping) and set(value) <= {"value", "desc"} and "value" in value:
                value = value["value"]
            name = re.split(r"[./]", str(key)[-200:])[-1].replace("-", "_")
            if type(value) is int and 0 < value < 1 << 20:
                found.setdefault(name, value)
            elif isinstance(value, Mapping) and depth < _MOST_DEPTH:
                todo.append((value, depth + 1))
    return next((found[name] for name in names if name in found), None)
