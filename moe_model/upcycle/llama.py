"""Read a Llama checkpoint in transformers' format, and record its layers on a text.

transformers reads the weights from safetensors in a local folder: nothing is downloaded, nothing in
it is executed. A checkpoint that :mod:`moe_model.upcycle` would silently get wrong is rejected.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from moe_model import Tokenizer, UsageError, json_object, shown

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")
"""Same names and arithmetic, as long as sliding windows are off; Qwen2 also has biases. Latent
attention cannot express Qwen3, which normalises queries and keys per head before rotation."""
_BATCH = 8

_WINDOW = 256
_HELD_OUT_SHARE = 0.1
_CHARACTERS_PER_TOKEN = 100
"""Characters per token that are read; no tokenizer needs more on average."""


@dataclass(frozen=True, slots=True)
class LayerReadings:
    """Recordings of one decoder layer on N tokens, in windows of S."""

    inputs_ND: Tensor
    """The stream after the first norm, before the learned gain: mean square 1; fp32."""
    attention_N: Tensor
    """Squares of the attention that a token receives, summed over queries and heads; mean 1; fp64.

    Squares, because the cost of an error is quadratic: an error δ in a value changes the output by
    p · δ, an error δ in a score by p · δ times the distance of the value from the others.
    """
    distance_HS: Tensor
    """Fraction of a head's squared attention that looks 0, 1, … S - 1 tokens back; fp64.

    Without the first token of a window, which large models use as an attention sink.
    """
    usefulness_F: Tensor
    """For each neuron of the feed-forward: mean size of its contribution to the stream; fp64."""


def read_llama(folder: Path) -> Any:
    """The model in ``folder`` as a class of transformers, in fp32 and evaluation mode.

    ``UsageError`` if it is damaged, or not exactly a Llama.
    """
    architecture = _architecture(folder)
    if not any(folder.glob("*.safetensors")):
        raise UsageError(
            f"{folder} has no *.safetensors: pickled weights are not read; save the model with "
            "save_pretrained, which writes safetensors."
        )
    import transformers  # slow

    kind = getattr(transformers, architecture)
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        config = kind.config_class.from_pretrained(folder, local_files_only=True)
        if getattr(config, "head_dim", None) is None:
            config.head_dim = config.hidden_size // config.num_attention_heads  # as its layers do
        _refuse_what_differs(config, folder)
        llama, report = kind.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            attn_implementation="eager",  # other implementations do not return attention weights
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except UsageError:
        raise
    except Exception as error:  # its validators raise classes of three libraries
        first = " ".join(str(error).split())[:200]
        raise UsageError(f"{folder} cannot be read ({first}): use another copy of it.") from error
    # transformers fills what is missing with random numbers and only warns.
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, report[problem])):
            raise UsageError(
                f"{folder} has {len(names)} {problem.replace('_', ' ')}, such as {names[0]}: its "
                "weights do not fit its config.json, use another copy of it."
            )
    return llama.eval()


def _architecture(folder: Path) -> str:
    path = folder / "config.json"
    try:
        plain = json_object("it", path.read_bytes())
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{path} cannot be read ({error}): name a folder that save_pretrained wrote, with "
            "config.json, *.safetensors and tokenizer.json."
        ) from error
    names: Any = plain.get("architectures")
    if names not in [[name] for name in ARCHITECTURES]:
        raise UsageError(
            f"{path} has architectures={shown(names)}, which is not supported: choose a checkpoint "
            f"of {' or '.join(ARCHITECTURES)}."
        )
    if "quantization_config" in plain:
        raise UsageError(
            f"{path} has a quantization_config: choose a checkpoint that is not quantised."
        )
    return str(names[0])


def _refuse_what_differs(config: Any, folder: Path) -> None:
    rope = config.rope_parameters
    window = getattr(config, "sliding_window", None)
    reasons = {
        "mlp_bias=true": getattr(config, "mlp_bias", False),
        f"hidden_act={config.hidden_act}": config.hidden_act != "silu",
        f"rope_type={rope['rope_type']}": rope["rope_type"] not in ("default", "llama3"),
        f"partial_rotary_factor={rope.get('partial_rotary_factor')}": (
            rope.get("partial_rotary_factor") not in (None, 1.0)
        ),
        f"sliding_window={window}": window and window < config.max_position_embeddings,
    }
    if wrong := [reason for reason, applies in reasons.items() if applies]:
        raise UsageError(
            f"{folder / 'config.json'} has {', '.join(wrong)}, which the new architecture cannot "
            "express: choose a Llama without."
        )


def has_biases(config: Any) -> bool:
    """Whether the attention projections have biases: always in Qwen2, as configured in Llama."""
    return config.model_type == "qwen2" or bool(getattr(config, "attention_bias", False))


@torch.no_grad()
def mean_loss(logits_of: Callable[[Tensor], Tensor], windows_NS: Tensor) -> float:
    """Mean cross-entropy of all tokens except the first of each window, in nats per token.

    ``logits_of`` maps token ids ``(B, S)`` to logits ``(B, S, V)``.
    """
    total = 0.0
    for ids_BS in torch.split(windows_NS, _BATCH):
        logits_BSV = logits_of(ids_BS)[:, :-1]
        total += F.cross_entropy(
            logits_BSV.flatten(0, 1), ids_BS[:, 1:].flatten(), reduction="sum"
        ).item()
    return total / windows_NS[:, 1:].numel()


@torch.no_grad()
def observe(llama: Any, windows_NS: Tensor) -> list[LayerReadings]:
    """Read the windows with ``llama`` and record every layer, in order.

    Args:
        llama: From :func:`read_llama`, which makes attention return its weights.
        windows_NS: Token ids.
    """
    observers = [_Observer(layer) for layer in llama.model.layers]
    for ids_BS in torch.split(windows_NS, _BATCH):
        llama(ids_BS, use_cache=False)
    return [observer.readings() for observer in observers]


class _Observer:
    def __init__(self, layer: Any) -> None:
        self._inputs: list[Tensor] = []
        self._attention: list[Tensor] = []
        self._distance_HS: Tensor | float = 0.0
        self._activity_F: Tensor | float = 0.0
        self._down_DF: Tensor = layer.mlp.down_proj.weight
        self._eps = layer.input_layernorm.variance_epsilon
        self._hooks = (
            layer.input_layernorm.register_forward_pre_hook(self._see_input),
            layer.self_attn.register_forward_hook(self._see_attention),
            layer.mlp.down_proj.register_forward_pre_hook(self._see_activation),
        )

    def _see_input(self, _: Any, args: tuple[Tensor]) -> None:
        x_ND = args[0].flatten(0, 1)
        self._inputs.append(F.rms_norm(x_ND, x_ND.shape[-1:], None, self._eps))

    def _see_attention(self, _: Any, __: Any, output: tuple[Tensor, Tensor]) -> None:
        cost_BHSS = output[1].double().square()
        self._attention.append(cost_BHSS.sum(dim=(1, 2)).flatten())
        cost_BHSS[..., 0] = 0
        cost_HSS = cost_BHSS.sum(dim=0)
        back = [cost_HSS.diagonal(-far, dim1=1, dim2=2).sum(-1) for far in range(len(cost_HSS[0]))]
        self._distance_HS = self._distance_HS + torch.stack(back, dim=-1)

    def _see_activation(self, _: Any, args: tuple[Tensor]) -> None:
        self._activity_F = self._activity_F + args[0].double().abs().flatten(0, 1).sum(dim=0)

    def readings(self) -> LayerReadings:
        for hook in self._hooks:
            hook.remove()
        inputs_ND, attention_N = torch.cat(self._inputs), torch.cat(self._attention)
        distance_HS = torch.as_tensor(self._distance_HS)
        distance_HS[:, 0] += 1e-12  # avoids dividing by zero; the rest counts as its own token
        return LayerReadings(
            inputs_ND=inputs_ND,
            attention_N=attention_N / attention_N.mean(),
            distance_HS=distance_HS / distance_HS.sum(dim=-1, keepdim=True),
            usefulness_F=self._activity_F / len(inputs_ND) * self._down_DF.norm(dim=0),
        )


class Windows(NamedTuple):
    """Windows of S tokens, spread evenly over their part of the text."""

    calibration_NS: Tensor
    """From the first nine tenths."""
    held_out_NS: Tensor
    """From the last tenth."""


def windows_of(text: str, tokenizer: Tokenizer, tokens: int, context: int) -> Windows:
    """About ``tokens`` tokens for calibration and as many for measuring, if available.

    Args:
        text: Only as much of it is encoded as is needed.
        tokens: Most tokens of each part.
        context: Longest window the source can read.

    Raises:
        UsageError: If ``tokens`` is less than a window, the text is too short, or has characters
            that the tokenizer cannot encode.
    """
    length = min(_WINDOW, context)
    if tokens < length:
        raise UsageError(
            f"--calibration-tokens {tokens} is less than a window of {length}: choose more, such "
            "as 8192."
        )
    try:
        ids = tokenizer.encode(text[: tokens * _CHARACTERS_PER_TOKEN])
    except ValueError as error:
        raise UsageError(f"--text: {error}") from error
    boundary = len(ids) - int(len(ids) * _HELD_OUT_SHARE)
    if len(ids) - boundary < length:
        raise UsageError(
            f"--text has {len(ids)} tokens, but a window has {length}: use at least "
            f"{int(length / _HELD_OUT_SHARE) + 1} tokens."
        )
    most = tokens // length
    return Windows(_spread(ids[:boundary], most, length), _spread(ids[boundary:], most, length))


def _spread(ids: Tensor, most: int, length: int) -> Tensor:
    windows = len(ids) // length
    rows = min(windows, most)
    start_N = torch.arange(rows) * windows // rows * length
    return ids[start_N[:, None] + torch.arange(length)]
