"""FP8 weights with a scale per block become what the formula says, edges included."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from moe_model import UsageError
from moe_model.huggingface.read import load_pretrained, parts
from tests.model.published import change_config, change_tensors, imported, tensors, their_model

PLAIN = ("embed_tokens", "lm_head", "norm", ".gate.")
"""What the published models do not quantise."""


def quantise(folder: Path, high: int, wide: int) -> None:
    """Every other matrix as q and a scale per block of ``high`` rows and ``wide`` columns."""

    def change(content: dict[str, Tensor]) -> None:
        for name in [n for n in content if not any(plain in n for plain in PLAIN)]:
            weight = content[name]
            rows, columns = -(-weight.shape[0] // high), -(-weight.shape[1] // wide)
            scale = torch.empty(rows, columns)
            quantised = torch.empty_like(weight, dtype=torch.float8_e4m3fn)
            for i in range(rows):
                for j in range(columns):
                    block = (slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide))
                    scale[i, j] = weight[block].abs().max() / 448
                    quantised[block] = (weight[block] / scale[i, j]).to(torch.float8_e4m3fn)
            content[name], content[f"{name}_scale_inv"] = quantised, scale

    change_tensors(folder, change)
    how = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8"}
    change_config(folder, quantization_config=how | {"weight_block_size": [high, wide]})


def value_of_e4m3(byte: np.ndarray) -> np.ndarray:
    """The format by its definition: sign, 4 bits of exponent with bias 7, 3 bits of mantissa."""
    sign = np.where(byte & 0x80, -1.0, 1.0)
    exponent, mantissa = (byte >> 3) & 0xF, byte & 0x7
    subnormal = mantissa / 8 * 2.0**-6
    normal = (1 + mantissa / 8) * 2.0 ** (exponent.astype(np.int64) - 7)
    return sign * np.where(exponent == 0, subnormal, normal)


@pytest.mark.parametrize("block", [(128, 128), (7, 5)], ids=str)
def test_weights_are_q_times_scale(block: tuple[int, int], tmp_path: Path) -> None:
    high, wide = block
    folder = tmp_path / "theirs"
    their_model(hidden_size=136, q_lora_rank=20).save_pretrained(folder)
    before = tensors(folder)
    quantise(folder, high, wide)
    stored = tensors(folder)
    model = imported(folder)
    compared = 0
    for ours, tensor in model.state_dict().items():
        for part in parts(ours, model.config):
            actual = tensor[part.place].numpy()
            if (scale := stored.get(f"{part.name}_scale_inv")) is None:
                np.testing.assert_array_equal(actual, before[part.name].numpy())
                continue
            value = value_of_e4m3(stored[part.name].view(torch.uint8).numpy())
            row, column = (np.arange(n) for n in value.shape)
            scales = scale.numpy()[row[:, None] // high, column // wide]
            np.testing.assert_allclose(actual, value * scales, rtol=1e-6, err_msg=part.name)
            np.testing.assert_allclose(actual, before[part.name].numpy(), atol=0.07)
            compared += 1
    assert compared == 3 * 5 + 3 + 2 * 3 * 17


def test_wrong_scales_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    their_model().save_pretrained(folder)
    quantise(folder, 16, 8)
    scale = "model.layers.1.self_attn.o_proj.weight_scale_inv"
    sound = tensors(folder)

    def restored(changed: Tensor | None) -> None:
        change_tensors(folder, lambda content: (content.update(sound), content.pop(scale)))
        if changed is not None:
            change_tensors(folder, lambda content: content.update({scale: changed}))

    nan = sound[scale].clone()
    nan[0, 1] = float("nan")
    for changed, message in (
        (nan, f"{scale} contains NaN"),
        (sound[scale][:, :2].clone(), rf"{scale} has shape \(2, 2\), but .* \(2, 3\)"),
        (None, rf"{scale} \(2, 3\) is missing"),
    ):
        restored(changed)
        with pytest.raises(UsageError, match=message):
            load_pretrained(folder)
    restored(sound[scale])
    change_config(folder, quantization_config=...)
    with pytest.raises(UsageError, match="no quantization_config with weight_block_size"):
        load_pretrained(folder)
