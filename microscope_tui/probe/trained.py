"""What is trained: routers, experts, attention, embeddings and adapters, as the model shows it.

Weights of two and more dimensions count. PEFT wraps what it adapts (``base_layer``) and keeps a
copy of what it trains as a whole (``modules_to_save``): a weight that an adapter changes counts as
trained, and the matrices of one adapter are one tensor. Nothing is guessed: what cannot be found
(for example in the flat parameter of FSDP1) is left out.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from microscope_tui.probe.sites import Site

_WRAPPERS = re.compile(
    r"(^|\.)(base_layer|modules_to_save\.\w+|_fsdp_wrapped_module|_orig_mod"
    r"|_checkpoint_wrapped_module)(?=\.|$)"
)
_ADAPTER = re.compile(r"^(.*?)\.?[^.]*(lora|adapter)", re.IGNORECASE)  # not PEFT's
_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_HEADS = re.compile(r"lm_head|embed_out|output_layer|unembed")
_OF_PEFT = {"classifier", "score", "qa_outputs"}  # it adds them to modules_to_save


class _Weight(NamedTuple):
    """``path`` has no wrappers and is, of an adapter, that of what it adapts; ``adapter`` is where
    the adapter is."""

    path: str
    part: str
    tensor: Tensor
    adapter: str


def trained(model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
    """The object ``training`` of the header: ``[trained, all]`` of each part."""
    routers, experts = _places(model, sites)
    weights = list(_weights(model, routers, experts))
    trains = [w for w in weights if w.tensor.requires_grad]
    holders = {w.adapter: w for w in trains if w.adapter}
    adapted, found = {w.path for w in holders.values()}, dict[str, Any]()
    known = [[p for p in m.parameters() if len(shape_of(p)) > 1] for m in routers.values()]
    if known and all(known):
        found["routers"] = [sum(any(p.requires_grad for p in ps) for ps in known), len(known)]
    changed = adapted | {w.path for w in trains}
    for part in ("experts", "attention", "embeddings"):
        own = [_inside(w.path, changed) for w in weights if w.part == part and not w.adapter]
        found |= {part: [sum(own), len(own)]} if own else {}
    if "experts" in found:
        sizes = [(w, math.prod(shape_of(w.tensor))) for w in weights if w.part == "experts"]
        ours = sum(size for w, size in sizes if w.tensor.requires_grad)
        found["expert_weights"] = ours / max(1, sum(size for _, size in sizes))
    configs = getattr(model, "peft_config", None)
    configs = configs if isinstance(configs, Mapping) else {}
    if holders or configs:
        count = Counter(w.part for w in holders.values())
        named = {name: count[name] for name in ("experts", "attention", "router")}
        found["adapters"] = named | {"other": len(holders) - sum(named.values())}
    missing = _missing(model, configs.values(), adapted)
    return found | ({"missing_targets": missing[:20]} if missing else {})


def trained_lines(training: Mapping[str, Any]) -> list[str]:
    """The object as text."""
    known = {p: training.get(p) for p in ("routers", "experts", "attention", "embeddings")}
    said = [f"{p} {'{} of {}'.format(*n) if n else 'unknown'}" for p, n in known.items()]
    if "experts" in training:
        said[1] += f" ({100 * training['expert_weights']:.3g} % of their weights)"
    frozen = ", ".join(part for part, n in known.items() if n and not n[0])
    lines = [f"trained tensors: {', '.join(said)}", f"frozen: {frozen or 'no part'}"]
    if adapters := training.get("adapters"):
        lines.append("adapters: " + ", ".join(f"{n} on {name}" for name, n in adapters.items()))
    if missing := training.get("missing_targets"):
        lines.append(f"adapters name what the model does not have: {', '.join(missing)}")
    return lines


def shape_of(parameter: Any) -> tuple[int, ...]:
    """The shape of the whole parameter: ZeRO-3 leaves it empty, and 4-bit weights are packed."""
    packed = getattr(getattr(parameter, "quant_state", None), "shape", None)
    return tuple(getattr(parameter, "ds_shape", None) or packed or parameter.shape)


def _weights(model: nn.Module, routers: Collection[str], experts: set[str]) -> Iterator[_Weight]:
    """The weights of the model and of its adapters."""
    modules = dict(model.named_modules())
    wraps = {n for n, m in modules.items() if isinstance(getattr(m, "base_layer", None), nn.Module)}
    tables = {_plain(n) for n, m in modules.items() if isinstance(m, nn.Embedding)}
    tunes = any(not p.requires_grad for p in model.parameters())
    for name, weight in model.named_parameters():
        path, holder = _plain(name), ""
        for dot in re.finditer(r"\.", name):
            if (n := name[: dot.start()]) in wraps and not name.startswith(f"{n}.base_layer."):
                holder = n
        if holder:
            path = f"{_plain(holder)}.{getattr(modules[holder], 'parameter_name', 'weight')}"
        elif tunes and weight.requires_grad and (other := _ADAPTER.match(path)):
            path, holder = other[1], f"{other[1]} (of another library)"
        elif len(shape_of(weight)) < 2 or "original_module" in name:
            continue
        part = "attention" if _ATTENTION.search(path) else ""
        if _inside(path, routers) or _inside(path, experts):
            part = "router" if _inside(path, routers) else "experts"
        elif _HEADS.search(path) or path.rpartition(".")[0] in tables:
            part = "embeddings"
        yield _Weight(path, part, weight, holder)


def _places(model: nn.Module, sites: Sequence[Site]) -> tuple[dict[str, nn.Module], set[str]]:
    """The routers by path, with their adapters, and where experts are."""
    modules = {_plain(name): module for name, module in model.named_modules()}
    path_of = {id(module): _plain(name) for name, module in model.named_modules()}
    routers, experts = dict[str, nn.Module](), set[str]()
    for site in sites:  # what was replaced after attach is not found
        block = site.block or modules.get(_plain(site.path).rpartition(".")[0], site.module)
        around = [*(site.block.children() if site.block else ()), site.router]
        router = next((m for m in around if m and site.router in m.modules()), None)
        routers |= {} if router is None else {path_of.get(id(router), site.path): router}
        if site.experts is not None:
            experts.add(path_of.get(id(site.experts), site.path))
            continue
        own = [(_plain(n), shape_of(p)) for n, p in block.named_parameters() if "shared" not in n]
        named = [n for n, _ in own if "expert" in n] or [
            n for n, shape in own if shape[:1] == (site.num_experts,) and len(shape) > 1
        ]
        experts.update(f"{path_of.get(id(block), '?')}.{n}".removeprefix(".") for n in named)
    return routers, experts


def _missing(model: nn.Module, configs: Iterable[Any], adapted: set[str]) -> list[str]:
    """Names for PEFT that match nothing; not a part (``gate_proj``) of a whole that is adapted."""
    modules = [_plain(name) for name, _ in model.named_modules()]
    parameters = [_plain(name) for name, _ in model.named_parameters()]
    fused = [set(path.rpartition(".")[2].split("_")) for path in adapted]
    missing = set[str]()
    for config in configs:
        names = "target_modules", "target_parameters", "modules_to_save"
        targets, weights, saved = (getattr(config, name, None) or () for name in names)
        if isinstance(targets, str):
            found = targets == "all-linear" or any(re.fullmatch(targets, n) for n in modules)
            missing |= set() if found else {targets}
            targets = ()
        targets = {n for n in targets if not any(set(n.split("_")) <= words for words in fused)}
        missing |= {n for n in targets if not _ends(modules, n)}
        missing |= {n for n in set(saved) - _OF_PEFT if not any(m.endswith(n) for m in modules)}
        missing |= {n for n in weights if not _ends(parameters, n)}
    return sorted(missing)


def _ends(names: Iterable[str], target: str) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)


def _inside(path: str, places: Collection[str]) -> bool:
    """The path, or one of the modules above it, is in ``places``."""
    while path and path not in places:
        path = path.rpartition(".")[0]
    return bool(path)


def _plain(path: str) -> str:
    """A path without what PEFT, FSDP and ``torch.compile`` put into it."""
    return _WRAPPERS.sub("", path).removeprefix(".")
