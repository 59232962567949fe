"""What is trained: routers, experts, attention, embeddings and adapters, as the model shows it.

Weights of two and more dimensions count. A weight that an adapter changes counts as trained, and
the matrices of one adapter are one tensor.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from microscope_tui.probe.sites import Site
from microscope_tui.probe.weights import Weight, inside, plain_path, shape_of, weights_of

_ATTENTION = re.compile(r"attn|attention", re.IGNORECASE)
_HEADS = re.compile(r"lm_head|embed_out|output_layer|unembed")
_OF_PEFT = {"classifier", "score", "qa_outputs"}  # it adds them to modules_to_save


def trained(model: nn.Module, sites: Sequence[Site]) -> dict[str, Any]:
    """The object ``training`` of the header: ``[trained, all]`` of each part."""
    weights = [w for w in weights_of(model, sites) if w.adapter or len(shape_of(w.tensor)) > 1]
    parts = _by_part(model, weights)
    trains = [w for w in weights if w.tensor.requires_grad]
    adapted = {w.path for w in trains if w.adapter}
    found = _routers(parts["router"], sites) | _others(parts, {w.path for w in trains})
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, Mapping):
        configs = {}
    if adapted or configs:
        found["adapters"] = _adapters(parts)
    if missing := _missing(model, configs.values(), adapted):
        found["missing_targets"] = missing[:20]
    return found


def trained_lines(training: Mapping[str, Any]) -> list[str]:
    """The object ``training`` of a header in words: what is trained or frozen, and adapters."""
    said, frozen = [], []
    for part in ("routers", "experts", "attention", "embeddings"):
        if part not in training:
            said.append(f"{part} unknown")
            continue
        number, of = training[part]
        said.append(f"{part} {number} of {of}")
        if part == "experts":
            said[-1] += f" ({100 * training['expert_weights']:.3g} % of their weights)"
        if not number:
            frozen.append(part)
    lines = [f"trained tensors: {', '.join(said)}", f"frozen: {', '.join(frozen) or 'no part'}"]
    if adapters := training.get("adapters"):
        lines.append("adapters: " + ", ".join(f"{n} on {name}" for name, n in adapters.items()))
    if missing := training.get("missing_targets"):
        lines.append(f"adapters name what the model does not have: {', '.join(missing)}")
    return lines


def _by_part(model: nn.Module, weights: Iterable[Weight]) -> Mapping[str, list[Weight]]:
    """By what they are part of; empty for any other part."""
    tables = {plain_path(n) for n, m in model.named_modules() if isinstance(m, nn.Embedding)}
    parts: defaultdict[str, list[Weight]] = defaultdict(list)
    for weight in weights:
        part = "attention" if _ATTENTION.search(weight.path) else ""
        if _HEADS.search(weight.path) or weight.path.rpartition(".")[0] in tables:
            part = "embeddings"
        parts[weight.owner.part or part].append(weight)
    return parts


def _routers(weights: Sequence[Weight], sites: Sequence[Site]) -> dict[str, Any]:
    """Trained routers, which may share weights, of all; nothing if those of one are unknown."""
    changed = {w.owner.place for w in weights if w.tensor.requires_grad}
    trains: dict[int, bool] = {}
    for place, site in enumerate(sites):
        if site.router is not None:
            own = [p for p in site.router.parameters() if len(shape_of(p)) > 1]
            if not own:
                return {}
            trains[id(site.router)] = place in changed or any(p.requires_grad for p in own)
    return {"routers": [sum(trains.values()), len(trains)]} if trains else {}


def _others(parts: Mapping[str, Sequence[Weight]], changed: Collection[str]) -> dict[str, Any]:
    """Trained weights of all in every other part, and the share of the experts' numbers."""
    found: dict[str, Any] = {}
    for part in ("experts", "attention", "embeddings"):
        own = [bool(inside(w.path, changed)) for w in parts[part] if not w.adapter]
        if own:
            found[part] = [sum(own), len(own)]
    if sizes := [(math.prod(shape_of(w.tensor)), w) for w in parts["experts"]]:
        ours = sum(size for size, w in sizes if w.tensor.requires_grad)
        found["expert_weights"] = ours / max(1, sum(size for size, _ in sizes))
    return found


def _adapters(parts: Mapping[str, Sequence[Weight]]) -> dict[str, int]:
    pairs = [(part, w) for part, own in parts.items() for w in own if w.tensor.requires_grad]
    count = Counter(dict((w.adapter, part) for part, w in pairs if w.adapter).values())
    named = {name: count[name] for name in ("experts", "attention", "router")}
    return named | {"other": count.total() - sum(named.values())}


def _missing(model: nn.Module, configs: Iterable[Any], adapted: Collection[str]) -> list[str]:
    """Names for PEFT that match nothing; not a part (``gate_proj``) of a whole that is adapted."""
    modules = [plain_path(name) for name, _ in model.named_modules()]
    parameters = [plain_path(name) for name, _ in model.named_parameters()]
    missing = set[str]()
    for config in configs:
        names = "target_modules", "target_parameters", "modules_to_save"
        targets, weights, saved = (getattr(config, name, None) or () for name in names)
        missing.update(_unmatched(targets, modules, adapted))
        missing.update(n for n in weights if not _ends(parameters, n))
        saved = set(saved) - _OF_PEFT
        missing.update(n for n in saved if not any(m.endswith(n) for m in modules))
    return sorted(missing)


def _unmatched(
    targets: str | Iterable[str], modules: Sequence[str], adapted: Iterable[str]
) -> Iterator[str]:
    """A pattern or names of modules that match none; a part (``gate_proj``) of a whole that is
    adapted (``gate_up_proj``) is not missing."""
    if isinstance(targets, str):
        if targets != "all-linear" and not any(re.fullmatch(targets, n) for n in modules):
            yield targets
        return
    wholes = [set(path.rpartition(".")[2].split("_")) for path in adapted]
    for name in targets:
        is_part = any(whole.issuperset(name.split("_")) for whole in wholes)
        if not is_part and not _ends(modules, name):
            yield name


def _ends(names: Iterable[str], target: str) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)
