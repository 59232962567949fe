"""Validates the ``run`` record, which later lines are checked against, and events."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

from microscope_tui.runlog.problems import (
    COUNT,
    POSITIVE,
    TIME,
    Number,
    Problems,
    choice,
    mapping,
    number,
    per_router,
    shown,
    text,
    unknown_keys,
)
from microscope_tui.runlog.records import FORMAT_VERSION
from microscope_tui.runlog.safe_text import safe_text

SOURCES = ("exact", "top1", "shares", "local_rank", "none")
PROFILES = ("pretrain", "finetune", "eval")
END_REASONS = ("finished", "stopped", "collapse", "signal", "failed")

_MAX_ROUTERS = 4096  # the reader takes no more
_NAME_CELLS = 12  # longest layer name that screens show
_WEIGHT = Number("a number of at least 0", 0)

_RUN_KEYS = frozenset(
    {
        "kind",
        "format_version",
        "run",
        "time",
        "planned_steps",
        "resumed_at_step",
        "profile",
        "model",
        "balance",
        "source",
        "world_size",
        "expert_parallel_size",
        "config",
        "versions",
    }
)
_MODEL_KEYS = frozenset(
    {
        "name",
        "layers",
        "layer_names",
        "num_experts",
        "top_k",
        "num_shared_experts",
        "score_function",
        "norm_top_k",
        "capacity_factor",
        "parameters",
        "active_parameters",
    }
)
_BALANCE_WEIGHTS = ("bias_update_rate", "seq_aux_weight", "aux_weight", "z_loss_weight")
_LOST = {
    "num_experts": "there is no balance and its routers are not judged, write it if you can",
    "top_k": "there is no balance and no verdict on a collapse, write it if you can",
}
"""What is lost where it is unknown."""
_EVENT_KEYS = frozenset({"kind", "step", "time", "event", "reason", "values"})


@dataclass(frozen=True, slots=True)
class RunPromise:
    """What the run record declares about the steps after it; ``None`` if it does not."""

    routers: int | None = None
    num_experts: tuple[int | None, ...] = ()
    top_k: tuple[int | None, ...] = ()
    counts: str | None = None
    has_capacity: bool | None = None
    planned_steps: int | None = None

    def experts(self, index: int) -> int | None:
        """Experts of one router."""
        return self.num_experts[index] if index < len(self.num_experts) else None

    def choices(self, index: int) -> int | None:
        """Experts that a token is sent to by one router."""
        return self.top_k[index] if index < len(self.top_k) else None


def check_run(problems: Problems, record: dict[str, Any]) -> RunPromise:
    """Check a ``run`` record and return what it declares."""
    unknown_keys(problems, "", record, _RUN_KEYS)
    version = record.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        problems.error(
            "format_version",
            f"format_version is {shown(version)}, expected {FORMAT_VERSION}: "
            "readers refuse the whole log otherwise",
        )
    text(problems, "run", record.get("run"))
    number(problems, "time", record.get("time"), TIME)
    planned = number(problems, "planned_steps", record.get("planned_steps"), POSITIVE)
    number(problems, "resumed_at_step", record.get("resumed_at_step"), POSITIVE)
    choice(problems, "profile", record.get("profile"), PROFILES, "pretrain")
    for key in ("world_size", "expert_parallel_size"):
        number(problems, key, record.get(key), POSITIVE)
    _check_balance(problems, mapping(problems, "balance", record.get("balance")))
    mapping(problems, "config", record.get("config"))
    mapping(problems, "versions", record.get("versions"))
    source = mapping(problems, "source", record.get("source"))
    unknown_keys(problems, "source.", source, frozenset({"writer", "counts", "note"}))
    text(problems, "source.writer", source.get("writer"))
    text(problems, "source.note", source.get("note"))
    counts = choice(problems, "source.counts", source.get("counts"), SOURCES, "exact")
    model = record.get("model")
    if not isinstance(model, dict):
        problems.error(
            "type model",
            f"model is {shown(model)}, expected an object with layers, num_experts and top_k",
        )
        return RunPromise(counts=counts, planned_steps=_whole(planned))
    return _check_model(problems, model, counts, _whole(planned))


def check_event(problems: Problems, record: dict[str, Any]) -> str:
    """Check an event and return its name, empty where it has none."""
    unknown_keys(problems, "", record, _EVENT_KEYS)
    number(problems, "step", record.get("step"), COUNT)
    number(problems, "time", record.get("time"), TIME)
    for key in mapping(problems, "values", record.get("values")):
        text(problems, "a key of values", key)
    event, reason = record.get("event"), text(problems, "reason", record.get("reason"))
    if event is None:
        problems.error("event", 'an event without a name: write "event": "eval", "checkpoint" …')
    name = text(problems, "event", event) or ""
    if name == "end" and reason not in END_REASONS:
        problems.hint(
            "reason",
            f"reason is {shown(reason)}: the screen has words for {', '.join(END_REASONS)}, "
            "and shows any other as stopped",
        )
    return name


def _check_balance(problems: Problems, balance: dict[str, Any]) -> None:
    unknown_keys(problems, "balance.", balance, frozenset({"method", *_BALANCE_WEIGHTS}))
    text(problems, "balance.method", balance.get("method"))
    for key in _BALANCE_WEIGHTS:
        number(problems, f"balance.{key}", balance.get(key), _WEIGHT)


def _check_model(
    problems: Problems, model: dict[str, Any], counts: str, planned: int | None
) -> RunPromise:
    unknown_keys(problems, "model.", model, _MODEL_KEYS)
    text(problems, "model.name", model.get("name"))
    for key in ("num_shared_experts", "parameters", "active_parameters"):
        number(problems, f"model.{key}", model.get(key), COUNT)
    if not isinstance(model.get("norm_top_k"), bool | None):
        problems.error(
            "type model.norm_top_k",
            f"model.norm_top_k is {shown(model['norm_top_k'])}, expected true or false",
        )
    capacity = number(problems, "model.capacity_factor", model.get("capacity_factor"), _WEIGHT)
    routers = _check_layers(problems, model.get("layers"))
    _check_names(problems, model.get("layer_names"), routers)
    functions = model.get("score_function")
    if isinstance(functions, list):
        functions = per_router(problems, "model.score_function", functions, routers)
    for name in functions if isinstance(functions, list) else [functions]:
        text(problems, "model.score_function", name)
    experts = _per_router_integer(problems, model, "num_experts", routers)
    top_k = _per_router_integer(problems, model, "top_k", routers)
    for index, (e, k) in enumerate(zip(experts, top_k, strict=True)):
        if e is not None and k is not None and k > e:
            problems.error(
                "top_k above num_experts",
                f"top_k {k:,} of router {index} is above its num_experts {e:,}: "
                "write how many different experts a token chooses",
            )
    if counts == "top1" and any(k not in (1, None) for k in top_k):
        problems.error(
            "top1",
            'source.counts is "top1" but model.top_k is not 1: write top_k 1 where only the first '
            'choice is counted, or count all choices and write "exact"',
        )
    return RunPromise(routers, experts, top_k, counts, capacity is not None, planned)


def _check_layers(problems: Problems, layers: Any) -> int | None:
    """Number of routers; ``None`` if unknown."""
    if not isinstance(layers, list) or not 0 < len(layers) <= _MAX_ROUTERS:
        problems.error(
            "model.layers",
            f"model.layers is {shown(layers)}, expected a list of 1 to {_MAX_ROUTERS:,} depths: "
            "one entry per router, in forward order, 0-based, dense layers left out",
        )
        return None
    for index, depth in enumerate(layers):
        if depth is None:
            problems.error("model.layers[]", f"model.layers[{index}] is null, expected a depth")
        number(problems, f"model.layers[{index}]", depth, COUNT, "model.layers[]")
    return len(layers)


def _check_names(problems: Problems, value: Any, routers: int | None) -> None:
    names = per_router(problems, "model.layer_names", value, routers)
    for index, name in enumerate(names or ()):
        shown_name = text(problems, "model.layer_names", name)
        if shown_name is None:
            continue
        if safe_text(shown_name, _NAME_CELLS) != safe_text(shown_name, _NAME_CELLS + 1):
            problems.hint(
                "long name",
                f"model.layer_names[{index}] is {shown(name)}: the screen shows {_NAME_CELLS} "
                "characters of it, write a shorter one",
            )
    twice = [n for n, times in Counter(map(str, names or ())).items() if times > 1]
    if twice and names and None not in names:
        problems.hint(
            "same name",
            f"model.layer_names has {shown(twice[0])} more than once: "
            "name each router differently, L3.attn and L3.mlp for example",
        )


def _per_router_integer(
    problems: Problems, model: dict[str, Any], key: str, routers: int | None
) -> tuple[int | None, ...]:
    """``num_experts`` or ``top_k``, which may be one number or one per router.

    An explicit null is valid, and 0 experts: other tools do not always log them.
    """
    name, value, length = f"model.{key}", model.get(key), routers or 0
    if isinstance(value, list):
        entries = per_router(problems, name, value, routers) or [None] * length
        if any(_is_unknown(key, entry) for entry in value):
            problems.hint(f"unknown {name}", f"{name} is unknown for a router: {_LOST[key]}")
        checked = [
            None if _is_unknown(key, entry) else number(problems, name, entry, POSITIVE)
            for entry in entries
        ]
        return tuple(map(_whole, checked))[:length]
    if key not in model:
        problems.error(f"missing {name}", f"{name} is missing: write {POSITIVE.what}, or null")
    elif _is_unknown(key, value):
        problems.hint(f"unknown {name}", f"{name} is unknown: {_LOST[key]}")
        return (None,) * length
    return (_whole(number(problems, name, value, POSITIVE)),) * length


def _is_unknown(key: str, value: Any) -> bool:
    return value is None or (key == "num_experts" and type(value) is int and value == 0)


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
