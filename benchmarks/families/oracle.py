"""What the routers of a family really chose, found in another way than the probe finds it.

The probe reads what the experts are called with. Here the router module's own output is read, or
its choice is worked out again from its logits, and counted in plain Python.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Choice = list[list[int]]
"""Expert ids of every token, one inner list a token."""


class Oracle:
    """Records the choices of every router while ``recording``; ``calls`` by path of its block."""

    def __init__(self, family: str, model: nn.Module) -> None:
        self.recording = False
        self.calls: dict[str, list[Choice]] = {}
        read = READERS.get(family, _ids_in_output)
        for path, module in model.named_modules():
            if _is_router(family, module):
                self._record(path.rpartition(".")[0], module, read)

    def _record(self, block: str, module: nn.Module, read: Callable[[Any, Any], Tensor]) -> None:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self.recording:
                with torch.no_grad():  # recomputed activations must save the same tensors
                    ids_TK = read(module, output)
                self.calls.setdefault(block, []).append(
                    ids_TK.reshape(-1, ids_TK.shape[-1]).tolist()
                )

        module.register_forward_hook(hook)


def _is_router(family: str, module: nn.Module) -> bool:
    name = type(module).__name__
    if family == "doge":
        return name == "DogeCDMoE"
    return name.endswith((
        "TopKRouter", "TopkRouter", "Top1Router", "Top2Router", "HashRouter", "TokenChoiceRouter",
        "MoEV1Gate", "TopKGating", "Llama4Router", "DbrxRouter", "ZayaRouter", "TextRouter",
    ))  # fmt: skip


def _ids_in_output(module: Any, output: Any) -> Tensor:
    (ids_TK,) = (part for part in output if not part.is_floating_point())
    return ids_TK


def _jetmoe(module: Any, output: Any) -> Tensor:
    """From the order in which it sorts the pairs, and how many each expert gets."""
    order_P, _, _, sizes, _ = output
    ids_P = torch.empty_like(order_P)
    start = 0
    for expert, size in enumerate(sizes):
        ids_P[order_P[start : start + size]] = expert
        start += size
    return ids_P.view(-1, module.top_k)


def _llama4(module: Any, output: Any) -> Tensor:
    """Scores are exactly zero where a token did not choose an expert."""
    return (output[0] != 0).nonzero()[:, 1].view(-1, module.top_k)


def _zaya(module: Any, output: Any) -> Tensor:
    best_T = (output[0].double().softmax(-1) + module.balancing_biases.double()).argmax(-1)
    return best_T.masked_fill(best_T == module.num_experts, -1).unsqueeze(-1)


def _doge(module: Any, output: Any) -> Tensor:
    x_TN, y_TN = output[1].double()
    return (x_TN[:, :, None] + y_TN[:, None, :]).flatten(1).topk(module.top_k).indices


READERS: dict[str, Callable[[Any, Any], Tensor]] = {
    "switch_transformers": lambda module, output: output[2].argmax(-1).reshape(-1, 1),
    "nllb_moe": lambda module, output: output[2].double().topk(2).indices,
    "dbrx": lambda module, output: output.double().softmax(-1).topk(2).indices,
    "jetmoe": _jetmoe,
    "llama4": _llama4,
    "zaya": _zaya,
    "doge": _doge,
}


def count(choice: Choice, real: list[bool], experts: int) -> tuple[list[int], int]:
    """Pairs per expert of real tokens, and those that went to none of them."""
    counts, unrouted = [0] * experts, 0
    for ids, is_real in zip(choice, real, strict=True):
        for expert in ids if is_real else ():
            if 0 <= expert < experts:
                counts[expert] += 1
            else:
                unrouted += 1
    return counts, unrouted
