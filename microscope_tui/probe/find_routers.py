"""Finding the routers of a model.

In nearly all models of transformers the module that holds the experts is called with the hidden
states, the chosen ids and their weights, however the router chooses them (bias, groups, hashing,
sampling): its arguments are the truth. Other models have a reader of their own, here (transformers)
or in ``frameworks.py`` (other training code).
"""

import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from microscope_tui.probe import frameworks
from microscope_tui.probe.sites import (
    SCORE_KINDS,
    Adapter,
    Choice,
    Scores,
    Site,
    argument_names,
    arrange,
    is_size,
    locate,
    setting,
    site_at_router,
)

_WRAPPED = re.compile(r"(\.base_layer|\.modules_to_save\.\w+)+$")  # by PEFT
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
_IDS = ("top_k_index", "router_indices", "topk_ids", "expert_indices")
_WEIGHTS = ("top_k_weights", "routing_weights", "topk_weights", "expert_weights")


def find_sites(model: nn.Module, routers: Mapping[str, Adapter] | None) -> list[Site]:
    """All routers of ``model`` in forward order.

    Args:
        model: A whole model; of stages of a pipeline see ``sites_in``.
        routers: Adapters by module path; if there are any, only these are watched.

    Raises:
        ValueError: no router is found, or a path of ``routers`` is not in the model.
    """
    if sites := sites_in(model, routers):
        return arrange(sites)
    raise ValueError(nothing_found(model))


def sites_in(model: nn.Module, routers: Mapping[str, Adapter] | None) -> list[Site]:
    """The routers in a part of a model; empty if it has none. They get names with ``arrange``.

    ``routers``: as in ``find_sites``.
    """
    return locate(_adapted(model, routers) if routers else _known(model), model)


def _adapted(model: nn.Module, routers: Mapping[str, Adapter]) -> list[Site]:
    modules = dict(model.named_modules())
    for path, adapter in routers.items():
        if path not in modules:
            known = ", ".join(name for name in modules if name and name.count(".") < 3)
            raise ValueError(
                f"routers names {path!r}, which the model does not have; its modules are "
                f"{known[:600]}"
            )
        if not isinstance(adapter, Adapter):
            raise TypeError(f"routers[{path!r}] is {adapter!r}: pass Adapter(ids, ...)")
    return [
        _adapted_site(path, modules[path], routers[path]) for path in modules if path in routers
    ]


def _adapted_site(path: str, module: nn.Module, adapter: Adapter) -> Site:
    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
        ids, k = adapter.ids(module, args, output), adapter.top_k
        shape, kind = [*getattr(ids, "shape", ())], getattr(ids, "dtype", type(ids).__name__)
        if kind not in _INTEGERS or shape[-1:] != [k]:
            found = f"the adapter of {path} returned {kind}{shape or ''}"
            raise TypeError(f"{found}: return the ids of the chosen experts, integers [T, {k}]")
        return Choice(ids)

    made = site_at_router(path, module, module, read, adapter.num_experts, adapter.top_k, None)
    made.block = made.scores = None
    return made


def _known(model: nn.Module) -> list[Site]:
    # PEFT keeps a copy of what it trains as a whole.
    modules = {path: part for path, part in model.named_modules() if "original_module" not in path}
    sites: list[Site] = []
    taken: list[str] = []
    for path, module in modules.items():
        parent = modules.get(_WRAPPED.sub("", path).rpartition(".")[0], model)
        site = _own_site(path, module, parent)
        if site is None and takes_ids(module):
            site = _experts_site(path, module, parent)
        if site is None or any(path.startswith(f"{block}.") for block in taken):
            continue
        if site.scores is None:
            site.scores = _scores(model, site, modules)
        sites.append(site)
        if site.block is site.module:  # what is inside belongs to it
            taken.append(path)
    for module in modules.values():
        if type(module).__name__ == "Ernie4_5_VLMoeMoeBlock":
            _ernie_layer(module, sites)
    return sites


def _own_site(path: str, module: nn.Module, parent: nn.Module) -> Site | None:
    """If its class, or one that it is derived from (by users or FSDP2), has its own reader."""
    for kind in type(module).__mro__:
        if make := _OWN.get((kind.__module__.partition(".")[0], kind.__name__)):
            return make(path, module, parent)
    return None


def takes_ids(module: nn.Module) -> bool:
    """Whether a module is one of experts that gets the choice: ``forward(x, ids, weights)``."""
    names = argument_names(module)[:3]
    return len(names) == 3 and names[1] in _IDS and names[2] in _WEIGHTS


def _experts_site(path: str, module: nn.Module, parent: nn.Module) -> Site | None:
    router = _router_in(parent)
    split = bool(getattr(module, "_is_expert_parallel", False))
    experts = _experts_of(module, router, split)
    holders = with_configs(module, router, parent)
    names = ("top_k", "num_experts_per_tok", "top_k_experts", "moe_top_k")
    if experts is None:
        return None
    top_k = setting(holders, names, is_size) or 0  # 0 if only a forward pass can show it
    made = Site(path, module, _argument_ids, True, experts, top_k, experts=module)
    if split:  # their ids may be local: the router is asked
        if router is None:
            return None
        made = Site(path, router, _router_ids, False, experts, top_k)
    made.router, made.block = router, parent
    made.plain_choice = _plain_choice(router, parent)
    return made


def _argument_ids(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
    return Choice(*args[1:3])


def _router_ids(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
    ids = [part for part in output if isinstance(part, Tensor) and not part.is_floating_point()]
    return Choice(ids[-1])


def _experts_of(module: nn.Module, router: nn.Module | None, split: bool) -> int | None:
    """Of the router where the module holds only some of them."""
    names = ("num_routed_experts", "num_experts", "n_routed_experts", "num_local_experts")
    holders = (router, module) if split else (module, router)
    stacks = (len(stack) for stack in module.parameters(recurse=False))
    return setting(holders, names, is_size) or next(stacks, None)


def nothing_found(model: nn.Module) -> str:
    """The message of an error: the kinds of modules in ``model``, and how to name routers."""
    kinds: dict[str, str] = {}
    for path, module in model.named_modules():
        kinds.setdefault(type(module).__name__, path)
    shown = ", ".join(f"{kind} ({path or 'the model'})" for kind, path in kinds.items())
    return (
        f"no MoE layer found in {type(model).__name__}; looked at {len(kinds)} kinds of modules: "
        f"{shown[:1500]}. Name the routers yourself: attach(model, folder, routers={{PATH: "
        "Adapter(ids, num_experts=..., top_k=...)})"
    )


def _switch(path: str, module: Any, parent: nn.Module) -> Site:
    """Its one-hot choice is zero where the capacity dropped a token: the argmax is the demand."""

    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
        kept_BSE, _, logits_BSE = output
        ids_TK = logits_BSE.argmax(dim=-1).reshape(-1, 1)
        kept_TK = kept_BSE.sum(dim=-1).reshape(-1, 1) > 0
        return Choice(ids_TK, logits_TE=logits_BSE.flatten(0, -2), kept_TK=kept_TK)

    return site_at_router(path, module, parent, read, module.num_experts, 1, "softmax", drops=True)


def _best_logits(path: str, module: Any, parent: nn.Module, *, index: int, kind: str) -> Site:
    """The choice is the best of the logits, number ``index`` of the router's outputs."""
    top_k = int(module.top_k)

    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
        logits_TE = output[index]
        return Choice(logits_TE.topk(top_k, dim=-1).indices, logits_TE=logits_TE)

    return site_at_router(path, module, parent, read, module.num_experts, top_k, kind)


def _nllb(path: str, module: Any, parent: nn.Module) -> Site:
    """Only the first choice reaches the experts, and only experts 0 and 1 run (a bug of the
    library): what the router chooses is counted, choices without a weight as dropped. One that
    samples the second choice leaves the noise in its logits, and is refused."""
    if module.second_expert_policy == "sampling":
        raise ValueError(
            f"{path} samples its second choice, which its outputs do not name: set "
            "second_expert_policy='all', or pass an Adapter for it"
        )

    def read(module: Any, args: tuple[Any, ...], output: Any) -> Choice:
        _, weights_TE, logits_TE = output
        ids_TK = logits_TE.topk(2, dim=-1).indices
        return Choice(ids_TK, logits_TE=logits_TE, kept_TK=weights_TE.gather(1, ids_TK) > 0)

    return site_at_router(path, module, parent, read, module.num_experts, 2, "softmax", drops=True)


def _doge(path: str, module: Any, parent: nn.Module) -> Site:
    """Product keys: an expert is a pair of half-keys, and the best pairs are chosen."""
    keys, top_k = int(module.num_keys), int(module.top_k)

    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
        logits_2TN = output[1]
        (x_TN, y_TN), (i_TN, j_TN) = logits_2TN.topk(keys, dim=-1)
        scores_TE = (x_TN.unsqueeze(-1) + y_TN.unsqueeze(-2)).flatten(1)
        pairs_TE = (i_TN.unsqueeze(-1) * keys + j_TN.unsqueeze(-2)).flatten(1)
        chosen_TK = scores_TE.topk(top_k, dim=-1).indices
        # In the order of the experts, as all logits are.
        logits_TE = torch.zeros_like(scores_TE).scatter(1, pairs_TE, scores_TE)
        return Choice(pairs_TE.gather(1, chosen_TK), logits_TE=logits_TE)

    made = site_at_router(path, module, parent, read, keys * keys, top_k, "softmax")
    made.router, made.block = module.router_gate, module
    return made


def _ernie_layer(layer: Any, sites: list[Site]) -> None:
    """Text and vision have separate experts, called with their own tokens only, and the vision ones
    only if the batch has images. The layer around both has the types of the tokens."""
    is_vision: Tensor | None = None

    def note_token_types(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        nonlocal is_vision
        given = kwargs.get("moe_mm_token_type_ids", *args[1:2])
        is_vision = None if given is None else given.bool()

    for site in sites:
        if site.block is layer.text_moe:
            site.own_rows = lambda: None if is_vision is None else ~is_vision
            site.pre_hooks = [(layer, note_token_types)]
        if site.block is layer.vision_moe:
            site.own_rows = lambda: is_vision
            site.optional = True


def _skip(path: str, module: Any, parent: nn.Module) -> Site | None:
    """What no expert computes is passed on as some expert's with weight 0: a token that skips its
    layer (Zaya, expert 0), an identity expert (LongCat from transformers 5.25 on, spread over all;
    before, its own id from E on, whose weight is not 0)."""

    def read(module: nn.Module, args: tuple[Any, ...], output: Any) -> Choice:
        _, ids_TK, weights_TK = args[:3]
        return Choice(ids_TK.masked_fill(weights_TK == 0, -1), weights_TK)

    if made := _experts_site(path, module, parent):
        made.read = read
    return made


_PROBABILITIES = ("Gemma4TextRouter", "DiffusionGemmaTextRouter")
_SIGMOID = frozenset({
    "afmoe", "axk1", "axk2", "bailing_hybrid", "beam", "deepseek_v3", "deepseek_v32", "dots1",
    "dots3_note", "ergo", "exaone_moe", "flint", "glm4_moe", "glm4_moe_lite", "glm4v_moe",
    "glm5_next", "glm_moe_dsa", "hy_v3", "hy_v4", "hy_v4_vl", "inkling", "inkling2",
    "inkling2_loop", "kimi_linear", "kolibri1", "kolibri1_1", "laguna", "lfm2_moe", "mimo_v2_flash",
    "minicpm5_moe", "minimax_m2", "minimax_m3_vl", "muse_spark", "nemotron_h", "solar_open",
    "step3p7",
})  # fmt: skip
_SOFTMAX = frozenset({
    "aria", "dbrx", "deepseek_ocr2", "deepseek_v2", "ernie4_5_moe", "ernie4_5_vl_moe", "flex_olmo",
    "gpt_oss", "granitemoe", "granitemoe_swa", "granitemoehybrid", "granitemoeshared",
    "hunyuan_v1_moe", "jamba", "lara_mini", "longcat_flash", "mellum", "minimax", "mistral4",
    "mistral_large4", "mixtral", "olmoe", "openai_privacy_filter", "phimoe", "qwen2_moe",
    "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_omni_moe", "qwen3_vl_moe", "qwen4_exp",
    "unlimited_ocr", "zaya",
})  # fmt: skip
"""Families by what turns their logits into probabilities; of others a reader or the configuration
names it."""
_NOT_PLAIN = ("kolibri1", "kolibri1_1", "phimoe")
"""These choose by biased logits or by sampling: not the best of the biased scores."""
_ROUTERS = ("Router", "Gate", "Gating", "Route")


def _router_in(block: nn.Module) -> nn.Module | None:
    """The router beside the experts in ``block``, by its name or by the name of its class."""
    named = (getattr(block, name, None) for name in ("gate", "router"))
    for module in map(_without_adapter, (*named, *block.children())):
        if isinstance(module, nn.Module) and type(module).__name__.endswith(_ROUTERS):
            return module
    return None


def _without_adapter(module: Any) -> Any:
    """What PEFT has wrapped: the copy that it trains, or what an adapter adds to."""
    copies = getattr(module, "modules_to_save", None)
    if isinstance(copies, nn.ModuleDict):
        return next(iter(copies.values()), module)
    return getattr(module, "base_layer", module)


def _plain_choice(router: nn.Module | None, block: nn.Module) -> bool:
    """The k best of the biased scores are chosen, so that the next best was a candidate too."""
    if router is not None and _family(router) in _NOT_PLAIN:
        return False
    names = ("n_group", "num_expert_group")
    holders = with_configs(router, block)
    return setting(holders, names, lambda value: is_size(value) and value > 1) is None


def with_configs(*modules: nn.Module | None) -> list[Any]:
    """Each of the modules and its ``config``, in this order; where one is missing, ``None``."""
    return [one for module in modules for one in (module, getattr(module, "config", None))]


def _scores(model: nn.Module, site: Site, modules: dict[str, nn.Module]) -> Scores | None:
    """From the outputs that the model, or in a part of one its code, declares as recordable."""
    router = site.router
    if router is None:
        return None
    classes = vars(sys.modules[type(router).__module__]).values()
    for one in (*modules.values(), *(one for one in classes if isinstance(one, type))):
        recorders = getattr(one, "_can_record_outputs", None)
        found: Any = recorders.get("router_logits") if isinstance(recorders, dict) else None
        if not isinstance(found, list | tuple):
            found = [found]
        for recorder in found:
            if recorder is not None and isinstance(router, recorder.target_class):
                kind = _score_kind(router, site.block, text_config(model))
                return Scores(router, int(recorder.index), kind)
    return None


def _score_kind(router: nn.Module, block: nn.Module | None, config: Any) -> str | None:
    """What turns logits of this router into probabilities; ``None`` if unknown."""
    if type(router).__name__ in _PROBABILITIES:
        return "probabilities"
    if _family(router) in _SIGMOID:
        return "sigmoid"
    if _family(router) in _SOFTMAX:
        return "softmax"
    names = ("scoring_func", "expert_selection_fn", "score_function")
    found: str | None = setting((router, block, config), names, SCORE_KINDS.__contains__)
    return found


def text_config(model: Any) -> Any:
    """The configuration of the language model inside a model; ``None`` without any."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _family(module: nn.Module) -> str:
    """The folder of transformers that a class comes from; empty for one from elsewhere."""
    home, _, below = type(module).__module__.partition(".models.")
    return below.partition(".")[0] if home == "transformers" else ""


_OWN: dict[tuple[str, str], Callable[[str, Any, nn.Module], Site | None]] = {
    ("transformers", "SwitchTransformersTop1Router"): _switch,
    ("transformers", "NllbMoeTop2Router"): _nllb,
    # Returns a sorted order of tokens and no ids.
    ("transformers", "JetMoeTopKGating"): partial(_best_logits, index=4, kind="softmax"),
    # Its experts see every token, weighted by zero where it did not choose them.
    ("transformers", "Llama4Router"): partial(_best_logits, index=1, kind="sigmoid"),
    ("transformers", "DogeCDMoE"): _doge,
    ("transformers", "ZayaExperts"): _skip,
    ("transformers", "LongcatFlashExperts"): _skip,
    ("moe_model", "Router"): frameworks.moe_model,
    ("megatron", "TopKRouter"): frameworks.megatron,
    ("torchtitan", "TokenChoiceTopKRouter"): frameworks.torchtitan,
    ("deepspeed", "TopKGate"): frameworks.deepspeed,
}
"""By package and name of the class."""
