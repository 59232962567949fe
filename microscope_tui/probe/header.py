"""The header of the log, from a model and its configuration.

Wrong settings are reported at ``attach``. The first step of the log has the same findings, so that
``check`` reports them too; the trainer does not report them twice.
"""

import sys
from collections.abc import Container, Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import nn

from microscope_tui.probe.find_routers import text_config
from microscope_tui.probe.judge import Alert, RunJudge
from microscope_tui.probe.recorder import plain
from microscope_tui.probe.sites import Site
from microscope_tui.probe.step_sums import Row, rows_of
from microscope_tui.probe.trained import trained, trained_lines
from microscope_tui.runlog import RunHeader, encode_record, one_or_each

_ALWAYS_NORMALISE = ("mixtral", "minimax", "gpt_oss", "granitemoe")
"""Families that normalise the weights without a field for it."""
_AUX_WEIGHT = (
    "router_aux_loss_coef", "aux_loss_coef", "aux_loss_alpha", "ffn_config.moe_loss_weight",
)  # fmt: skip
_CAPACITY = ("capacity_factor", "moe_expert_capacity_factor")
_LOGITS = "output_router_logits"
_WEIGHTS = ("bias_update_rate", "aux_weight", "seq_aux_weight", "z_loss_weight")
_NORM_TOP_K = ("norm_topk_prob", "route_norm", "norm_top_k_prob")


class AuxLoss(NamedTuple):
    """What is known of the auxiliary loss, beside the configuration of the model."""

    trainer_args: Any = None
    asked: bool | None = None
    """As in ``ForwardHooks``, like the next one."""
    returned: bool | None = None
    decided: bool = True
    """False before the first pass of a Trainer with a coefficient of its own."""


def describe(
    model: nn.Module, sites: Sequence[Site], rows: Sequence[Row], passes: int, aux: AuxLoss
) -> dict[str, Any]:
    """What a header reports of the model and its training, as arguments of ``RunRecorder``.

    ``passes``: calls of the routers in a forward pass; ``aux``: how the auxiliary loss is
    weighted.
    """
    config, training = text_config(model), trained(model, sites)
    routers = training.get("routers", (0, 0))
    normalises = _named(config, *_NORM_TOP_K)[1]
    if normalises is None and getattr(config, "model_type", None) in _ALWAYS_NORMALISE:
        normalises = True
    versions = {"torch": str(torch.__version__)}
    if type(model).__module__.startswith("transformers."):
        versions["transformers"] = sys.modules["transformers"].__version__
    kinds = [(row.kind or "unknown").replace("probabilities", "softmax") for row in rows]
    return {
        "model": {
            "name": getattr(config, "model_type", None) or type(model).__name__,
            "layers": [sites[row.place].depth for row in rows],
            "layer_names": [row.name for row in rows],
            "num_hidden_layers": _named(config, "num_hidden_layers")[1],
            "num_experts": one_or_each([row.num_experts for row in rows]),
            "top_k": one_or_each([row.top_k for row in rows]),
            "num_shared_experts": _named(config, "n_shared_experts", "num_shared_experts")[1],
            "score_function": one_or_each(kinds),
            "norm_top_k": normalises,
            "capacity_factor": _named(config, *_CAPACITY)[1],
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "balance": _balance(model, config, sites, aux, routers[1] - routers[0]),
        "training": training,
        "config": {"dtype": dtype_name(model), "micro_batches": passes},
        "versions": versions,
    }


def profile(model: nn.Module) -> str:
    """``finetune`` if the weights were loaded, or only some of them are trained."""
    loaded = bool(getattr(getattr(model, "config", None), "_name_or_path", ""))
    frozen = any(not p.requires_grad for p in model.parameters())
    return "finetune" if loaded or frozen else "pretrain"


def _balance(
    model: nn.Module, config: Any, sites: Sequence[Site], aux: AuxLoss, frozen: int
) -> dict[str, Any]:
    always = {"frozen_routers": frozen} if frozen else {}
    if known := next((site.balance for site in sites if site.balance), None):
        return known | always
    home, has_bias = _home(model), any(site.has_bias or site.bias() is not None for site in sites)
    adds = _adds_loss(home, config, aux)
    name, given = _named(aux.trainer_args, *_AUX_WEIGHT)
    weight = _named(config, *_AUX_WEIGHT)[1]
    # Transformers applies the value that the model was built with.
    weight = given if weight is None else getattr(model, "router_aux_loss_coef", weight)
    balance = _method(weight, adds, has_bias, home, len(sites))
    # A Trainer has switched it off with 0, and before its first pass it is not decided.
    if given == 0 or not aux.decided:
        balance.pop(_LOGITS, None)
    names = _names(model, config, balance.keys())
    if given is not None:
        ignored = adds is False and given and aux.decided  # the model has no such term
        key = "trainer_aux_weight" if ignored else "aux_weight"
        balance[key] = given
        names[key] = f"{type(aux.trainer_args).__name__}.{name}"
    return balance | ({"names": names} if names else {}) | always


def _adds_loss(home: Any, config: Any, aux: AuxLoss) -> bool | None:
    if aux.returned is not None:
        return aux.returned
    if home is not None and not hasattr(home, "load_balancing_loss_func"):
        return False
    found: bool | None = getattr(config, _LOGITS, None if home is None else False)
    return found if aux.asked is None else aux.asked


def _method(
    weight: Any, adds: bool | None, has_bias: bool, home: Any, routers: int
) -> dict[str, Any]:
    """Transformers never updates a bias, and its auxiliary loss is over all layers together."""
    if home is None:  # without a coefficient nothing is known of other losses
        bias = {"method": "bias"} if has_bias else {}
        return bias if weight is None else _term(weight, adds)
    can_add = adds or hasattr(home, "load_balancing_loss_func")
    term = _term(weight, adds) if weight is not None and can_add else {}
    if term and adds:  # then a bias is not what balances
        return term | ({"pools_layers": True} if routers > 1 else {})
    return ({"method": "bias", "updates_bias": False} if has_bias else {"method": "none"}) | term


def _term(weight: Any, adds: bool | None) -> dict[str, Any]:
    flag = {} if adds is None else {_LOGITS: bool(adds)}
    return {"method": "aux", "aux_weight": weight, **flag}


def _names(model: nn.Module, config: Any, known: Container[str]) -> dict[str, str]:
    """What the framework calls the settings of the text model that the header has."""
    outer = getattr(model, "config", None)
    parts = getattr(outer, "sub_configs", ())
    prefix = "".join(f"{part}." for part in parts if getattr(outer, part, None) is config)
    names = {"norm_top_k": _named(config, *_NORM_TOP_K)[0]}
    if "aux_weight" in known:
        names["aux_weight"] = _named(config, *_AUX_WEIGHT)[0]
    if _LOGITS in known:
        names[_LOGITS] = _LOGITS
    return {ours: prefix + theirs for ours, theirs in names.items() if theirs}


def _home(model: nn.Module) -> Any:
    """The module of transformers that defines the model; FSDP2 derives a class from the model's."""
    for kind in type(model).__mro__:
        if kind.__module__.startswith("transformers.models."):
            return sys.modules[kind.__module__]
    return None


def _named(config: Any, *names: str) -> tuple[str, Any]:
    for name in names:
        value = reduce(lambda one, part: getattr(one, part, None), name.split("."), config)
        if value is not None:
            return name, value
    return "", None


def dtype_name(model: nn.Module) -> str:
    """The type of the first floating-point weights: ``bf16``, or torch's name for a rare one."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return names.get(kind, str(kind))


def setting_of(alert: Alert) -> str:
    """What an alert of LINT is about: its verdict without the step."""
    return alert.verdict.partition(" since ")[0]


def check_settings(
    model: nn.Module, sites: Sequence[Site], mode: str, trainer_args: Any = None
) -> tuple[str, list[Alert]]:
    """What is trained and balanced, in words, and the alerts of LINT."""
    # If k is not known yet, LINT must not conclude anything from it.
    top_k = [site.top_k or site.num_experts for site in sites]
    rows = rows_of(sites, [1] * len(sites), top_k)
    aux = AuxLoss(trainer_args, decided=not hasattr(trainer_args, _AUX_WEIGHT[0]))
    described = describe(model, sites, rows, 1, aux)
    header = RunHeader(
        run="run",
        planned_steps=None,
        profile="eval" if mode == "eval" else profile(model),
        source={"counts": "exact"},
        **described,
    )
    judge = RunJudge(encode_record(plain(header.to_json())))
    empty = encode_record({"kind": "step", "step": 1, "router": {}})
    alerts = judge.observe(empty, lambda index: None, lambda index: None)
    lines = [
        *trained_lines(described["training"]),
        _balance_line(described["balance"], aux.decided),
    ]
    return "\n".join(lines), [alert for alert in alerts if alert.rule == "LINT"]


def _balance_line(balance: Mapping[str, Any], decided: bool) -> str:
    names, flag = balance.get("names", {}), balance.get(_LOGITS)
    said = [str(balance.get("method", "unknown"))]
    said += (f"{names.get(key, key)} {balance[key]:g}" for key in _WEIGHTS if balance.get(key))
    if flag is not None:
        applied = "applied" if flag else "not applied"
        said.append(f"{applied}: {names[_LOGITS]} is {str(flag).lower()}")
    if not decided:
        said.append("the first step shows whether it is applied")
    if balance.get("updates_bias") is False:
        said.append("transformers does not update the bias")
    return f"balancing: {', '.join(said)}"
