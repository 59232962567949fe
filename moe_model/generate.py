"""Continue a text: sample one token after the other from a trained model.

    python -m moe_model.generate checkpoints/RUN/best --prompt "The " --temperature 0.8

Each token reads the last context again from its start; the seed alone decides what comes out.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
from cyclopts import App, Parameter
from torch import Tensor

from moe_model.command import FINISHED, UsageError, run_command
from moe_model.model import LanguageModel
from moe_model.store import CheckpointError, read_checkpoint


@torch.no_grad()
def generate(
    model: LanguageModel,
    prompt_S: Tensor,
    *,
    max_new_tokens: int,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> list[int]:
    """Token ids that follow ``prompt_S``, without the prompt.

    Args:
        model: Left in the mode, training or evaluation, that it is found in.
        prompt_S: At least one token id, int64.
        max_new_tokens: How many tokens to sample.
        temperature: Divides the logits; 0 takes the likeliest token.
        top_p: Sample among the likeliest tokens that together hold this probability.
        seed: Of a generator of its own, so that sampling never disturbs training.
    """
    if not len(prompt_S):
        raise ValueError("prompt has 0 tokens: give at least one.")
    generator = torch.Generator().manual_seed(seed)
    context = model.config.max_position_embeddings
    device = model.embed_tokens.weight.device
    ids = prompt_S.tolist()
    was_training = model.training
    model.eval()
    try:
        for _ in range(max_new_tokens):
            window_1S = torch.tensor([ids[-context:]], device=device)
            logits_V = model(window_1S).logits_BSV[0, -1].float().cpu()
            ids.append(pick(logits_V, temperature, top_p, generator))
    finally:
        model.train(was_training)
    return ids[len(prompt_S) :]


def pick(logits_V: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """One token id, sampled from the nucleus of ``softmax(logits_V / temperature)``."""
    if temperature == 0:
        return int(logits_V.argmax())
    probability_V, ids_V = (logits_V / temperature).softmax(dim=-1).sort(descending=True)
    # A token stays while the mass before it is below top_p: the likeliest always stays.
    mass_before_V = probability_V.cumsum(dim=-1) - probability_V
    probability_V = probability_V.masked_fill(mass_before_V >= top_p, 0.0)
    return int(ids_V[torch.multinomial(probability_V, 1, generator=generator)])


app = App(name="moe_model.generate", help="Continue a text with a trained model.", version_flags=[])


@app.default
def main(
    checkpoint: Path,
    /,
    *,
    prompt: Annotated[str, Parameter(allow_leading_hyphen=True)] = "\n",
    max_new_tokens: int = 400,
    temperature: float = 0.8,
    top_p: float = 0.95,
    seed: int = 0,
) -> int:
    """Continue a text with a trained model. The text goes to standard output.

    Args:
        checkpoint: Folder such as checkpoints/RUN/best, or a run: its latest.
        prompt: Text to continue.
        max_new_tokens: Tokens to sample.
        temperature: Divides the logits; 0 takes the likeliest token each time.
        top_p: Sample among the likeliest tokens that together hold this probability.
        seed: Same seed, same text.
    """
    if max_new_tokens < 1:
        raise UsageError(f"--max-new-tokens {max_new_tokens} writes nothing: choose 1 or more.")
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"--temperature {temperature} is out of range: choose 0 or more.")
    if not 0 < top_p <= 1:
        raise UsageError(f"--top-p {top_p} is out of range: choose above 0, up to 1.")
    try:
        found = read_checkpoint(checkpoint)
        prompt_S = found.tokenizer.encode(prompt)
        if not len(prompt_S):
            raise UsageError("--prompt is empty: give at least one character.")
        model = found.load_model()
    except CheckpointError as error:
        raise UsageError(str(error)) from error
    except ValueError as error:
        raise UsageError(f"--prompt {prompt!r}: {error}") from error
    sampled = generate(
        model,
        prompt_S,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    sys.stdout.write(prompt + found.tokenizer.decode(sampled) + "\n")
    return FINISHED


if __name__ == "__main__":
    sys.exit(run_command(app, None))
