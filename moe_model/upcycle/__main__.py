"""Convert a Llama to a Mixture of Experts with latent attention, to train from existing weights.

    python -m moe_model.upcycle SmolLM2-135M checkpoints/smol --n-routed-experts 8

The feed-forwards are converted exactly, the attention approximately. The loss is measured before,
between and after; training has to recover the difference. Nothing is downloaded.
"""

import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number

from moe_model import need_packages

if __name__ == "__main__":
    need_packages("python -m moe_model.upcycle", "transformers")

from moe_model import (
    FAILED,
    FINISHED,
    TOKENIZER,
    UsageError,
    fresh_folder,
    python_docs,
    read_text,
    run_command,
    say,
    version,
)
from moe_model.huggingface.read import read_stop_ids, read_tokenizer
from moe_model.huggingface.write import errors_in_one_line, write_checkpoint
from moe_model.upcycle.conversion import Shape, Upcycled, resolve, upcycle, upcycled_config
from moe_model.upcycle.llama import read_llama, windows_of

_SHAPE = Shape()
app = App(
    name="python -m moe_model.upcycle",
    help="Turn a Llama into a Mixture of Experts with latent attention.",
    version=version,
)


@app.default
def main(
    src: Path,
    dst: Path,
    /,
    *,
    shape: Annotated[Shape, Parameter(name="*")] = _SHAPE,
    noise: float = 0.01,
    seed: Annotated[int, Parameter(validator=Number(gte=0, lt=2**63))] = 0,
    text: Path | None = None,
    calibration_tokens: int = 8192,
) -> int:
    """Turn a Llama into a Mixture of Experts with latent attention.

    Args:
        src: Folder with config.json, safetensors and tokenizer.json of a LlamaForCausalLM,
            MistralForCausalLM or Qwen2ForCausalLM.
        dst: Folder to create, such as checkpoints/NAME/latest.
        noise: Standard deviation of the noise that makes the routed experts differ, as a fraction
            of that of the weights; 0 keeps them equal.
        seed: Same seed, same checkpoint.
        text: UTF-8 file for calibration and for measuring the loss (default: the language reference
            that comes with Python).
        calibration_tokens: Tokens for calibration; as many again measure the loss.

    Raises:
        UsageError: If an option is out of range, or the source, its tokenizer or the text cannot be
            used.
    """
    if not 0 <= noise <= 1e6:
        raise UsageError(f"--noise {noise} is out of range: choose 0 to 1e6, such as 0.01.")
    with errors_in_one_line(dst):
        with fresh_folder(dst) as folder:
            llama = read_llama(src)
            tokenizer = read_tokenizer(src, llama.config.vocab_size)
            if tokenizer is None:
                raise UsageError(f"{src} has no {TOKENIZER}, which is needed to encode the text.")
            stop_ids = read_stop_ids(src, llama.config.vocab_size)
            shape = resolve(shape, llama.config)
            words = python_docs("--text") if text is None else read_text(text, "--text")
            context = upcycled_config(llama.config, shape).max_position_embeddings
            windows = windows_of(words, tokenizer, calibration_tokens, context)
            parameters = llama.num_parameters()
            upcycled = upcycle(llama, shape, windows, noise, seed)
            _report(upcycled, llama.config, parameters, noise)
            facts = {"source": src.name, "noise": noise, "seed": seed, "losses": upcycled.losses}
            write_checkpoint(folder, upcycled.model, tokenizer, stop_ids=stop_ids, upcycled=facts)
        say(f"wrote {dst}")
        return FINISHED
    return FAILED


def _report(upcycled: Upcycled, source: Any, parameters: int, noise: float) -> None:
    config, losses = upcycled.model.config, upcycled.losses
    rotary, latent = (sum(share) / len(upcycled.kept) for share in zip(*upcycled.kept, strict=True))
    cached = config.kv_lora_rank + config.qk_rope_head_dim
    before = 2 * source.num_key_value_heads * source.head_dim
    say(
        f"parameters: {parameters:,}, all active -> {config.parameters():,}, "
        f"{config.active_parameters():,} active"
    )
    say(f"cache: {before} numbers per token and layer -> {cached}")
    say("What training has to recover:")
    say(
        f"- attention, {losses['attention'] - losses['noise']:+.4f} nats per token: one rotary key "
        f"keeps {rotary:.1%} of the fast pairs of all heads, a latent of {config.kv_lora_rank} "
        f"keeps {latent:.1%} of the keys without position and of the values"
    )
    say(
        f"- experts: {config.n_routed_experts} per layer, equal except for noise of {noise:g}, "
        "with untrained routers"
    )


if __name__ == "__main__":
    sys.exit(run_command(app, None))
