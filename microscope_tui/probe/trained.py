"""What is trained: routers, experts, attention, embeddings and adapters, as the model shows it.

Weights of two and more dimensions count. PEFT wraps what it adapts (``base_layer``) and keeps a
copy of what it trains as a whole (``modules_to_save``): a weight that an adapter changes counts as
trained, and the matrices of one adapter are one tensor. Nothing is guessed: what is not found (for
example in the flat parameter of FSDP1) is left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from microscope_tui.probe.sites import Site

_WRAPPERS = re.compile(
    r"(^|\.)(base_layer|modules_to_save\.\w+|_fsdp_wrapped_module|_orig_mod"
    r"|_checkpoint_wrapped_module)(?=\.|$)"
)
_ADAPTER = re.compile(r"^(.*?)\.?[^.]*(lora|adapter)[^.]*(\..*)?$", re.IGNORECASE)
"""An adapter that is not PEFT's; before it is what it adapts."""
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_HEADS = re.compile(r"lm_head|embed_out|output_layer|unembed")
_OF_PEFT = {"classifier", "score", "qa_outputs"}
"""Heads that PEFT adds to every ``modules_to_save``; a model has one of them."""
_MOST_NAMES = 20


class _Weight(NamedTuple):
    path: str
    """Without wrappers; of an adapter, that of the weight or module that it adapts."""
    part: str
    tensor: Tensor
    adapter: str
    """Path of the module that holds the adapter; empty for a weight of the model."""


def shape_of(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole parameter: ZeRO-3 leaves it empty, and 4-bit weights are packed."""
    packed = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return tuple(getattr(parameter, "ds_shape", None) or packed or parameter.shape)


def around_router(site: Site) -> nn.Module | None:
    """The router with the adapter around it."""
    parts = [*(site.block.children() if site.block else ()), site.router]
    return next((m for m in parts if m and site.router in m.modules()), None)


def is_frozen(site: Site) -> bool | None:
    """The router is not trained: it was excluded, or an adapter like LoRA leaves it out; ``None``
    if it has no weights."""
    around = around_router(site)
    weights = [p for p in around.parameters() if len(shape_of(p)) >= 2] if around else []
    return not any(p.requires_grad for p in weights) if weights else None


def trained(model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
    """The object ``training`` of the header: ``[trained, all]`` tensors of each part."""
    frozen = [is_frozen(site) for site in sites]
    found: dict[str, Any] = {} if None in frozen else {"routers": [frozen.count(False), len(sites)]}
    weights = list(_weights(model, sites))
    trains = [w for w in weights if w.tensor.requires_grad]
    adapted = {w.path for w in trains if w.adapter}
    for part in ("experts", "attention", "embeddings"):
        own = [w for w in weights if w.part == part and not w.adapter]
        if own:
            ours = sum(w.tensor.requires_grad or _inside(w.path, adapted) for w in own)
            found[part] = [ours, len(own)]
    if "experts" in found:
        sizes = [sum(math.prod(shape_of(w.tensor)) for w in ws if w.part == "experts")
                 for ws in (trains, weights)]  # fmt: skip
        found["expert_weights"] = sizes[0] / max(1, sizes[1])
    configs = getattr(model, "peft_config", None)
    configs = configs if isinstance(configs, Mapping) else {}
    if adapted or configs:
        holders = {w.adapter: w.part for w in trains if w.adapter}
        count = Counter(holders.values())
        known = {name: count[name] for name in ("experts", "attention", "router")}
        found["adapters"] = known | {"other": len(holders) - sum(known.values())}
    missing = _missing(model, configs.values(), adapted)
    return found | ({"missing_targets": missing} if missing else {})


def trained_lines(training: Mapping[str, Any]) -> list[str]:
    """The object as text; what is not known is "unknown"."""
    said = {
        part: "{} of {}".format(*training[part]) if part in training else "unknown"
        for part in ("routers", "experts", "attention", "embeddings")
    }
    share = f" ({training['expert_weights']:.3g} of their weights)" if "experts" in training else ""
    lines = [
        f"trained: routers {said['routers']}, expert tensors {said['experts']}{share}",
        f"trained: attention {said['attention']}, embeddings {said['embeddings']}",
    ]
    if adapters := training.get("adapters"):
        lines.append("adapters: " + ", ".join(f"{n} on {name}" for name, n in adapters.items()))
    if missing := training.get("missing_targets"):
        lines.append(f"adapters name what the model does not have: {', '.join(missing)}")
    still = [part for part in said if part in training and not training[part][0]]
    return [*lines, f"frozen: {', '.join(still) or 'none of these as a whole'}"]


def _weights(model: nn.Module, sites: Sequence[Site]) -> Iterator[_Weight]:
    """The weights of the model and of its adapters."""
    modules = dict(model.named_modules())
    wraps = {n for n, m in modules.items() if isinstance(getattr(m, "base_layer", None), nn.Module)}
    tables = {_plain(n) for n, m in modules.items() if isinstance(m, nn.Embedding)}
    routers, experts = _places(modules, sites)
    tunes = any(not p.requires_grad for p in model.parameters())
    for name, weight in model.named_parameters():
        if "original_module" in name:
            continue
        path = _plain(name)
        above = (name[: dot.start()] for dot in re.finditer(r"\.", name))
        holder = [n for n in above if n in wraps and not name.startswith(f"{n}.base_layer.")]
        if holder:
            target = getattr(modules[holder[-1]], "parameter_name", "weight")
            path = f"{_plain(holder[-1])}.{target}"
        elif tunes and weight.requires_grad and (other := _ADAPTER.match(path)):
            path = other[1]
            holder = [f"{path} (of another library)"]
        elif len(shape_of(weight)) < 2:
            continue
        part = "attention" if _ATTENTION.search(path) else ""
        if _inside(path, routers) or _inside(path, experts):
            part = "router" if _inside(path, routers) else "experts"
        elif _HEADS.search(path) or path.rpartition(".")[0] in tables:
            part = "embeddings"
        yield _Weight(path, part, weight, holder[-1] if holder else "")


def _places(modules: Mapping[str, nn.Module], sites: Sequence[Site]) -> tuple[set[str], set[str]]:
    """Where routers and experts are: paths of modules and parameters."""
    path_of = {id(module): _plain(name) for name, module in modules.items()}
    routers = {path_of.get(id(around_router(site)), site.path) for site in sites}
    experts = set[str]()
    for site in sites:
        if site.experts is not None:
            experts.add(path_of[id(site.experts)])
            continue
        block = site.block or modules[site.path.rpartition(".")[0]]
        own = [(_plain(n), p) for n, p in block.named_parameters() if "shared" not in n]
        named = [n for n, _ in own if "expert" in n] or [
            n for n, p in own if shape_of(p)[:1] == (site.num_experts,) and len(shape_of(p)) > 1
        ]
        home = path_of[id(block)]
        experts.update(f"{home}.{name}".removeprefix(".") for name in named)
    return routers, experts


def _missing(model: nn.Module, configs: Iterable[Any], adapted: set[str]) -> list[str]:
    """Names in the configurations of PEFT that match nothing; not those of single projections of
    an adapted weight that holds several (``gate_proj`` where ``gate_up_proj`` is adapted)."""
    modules = {_plain(name) for name, _ in model.named_modules()}
    parameters = {_plain(name) for name, _ in model.named_parameters()}
    fused = [set(path.rpartition(".")[2].split("_")) for path in adapted]
    missing = list[str]()
    for config in configs:
        targets = getattr(config, "target_modules", None) or ()
        if isinstance(targets, str) and targets != "all-linear":
            missing += () if any(re.fullmatch(targets, name) for name in modules) else (targets,)
        named = () if isinstance(targets, str) else targets
        missing += (
            n
            for n in named
            if not (_ends(modules, n) or any(set(n.split("_")) <= f for f in fused))
        )
        weights = getattr(config, "target_parameters", None) or ()
        missing += (name for name in weights if not _ends(parameters, name))
        saved = set(getattr(config, "modules_to_save", None) or ()) - _OF_PEFT
        missing += (name for name in saved if not _ends(modules, name))
    return sorted(set(missing))[:_MOST_NAMES]


def _ends(names: Iterable[str], target: str) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)


def _inside(path: str, places: set[str]) -> bool:
    """The path, or one of the modules above it, is in ``places``."""
    while path and path not in places:
        path = path.rpartition(".")[0]
    return bool(path)


def _plain(path: str) -> str:
    """A path without what PEFT, FSDP and ``torch.compile`` put into it."""
    return _WRAPPERS.sub("", path).removeprefix(".")
