"""What the model writes at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_model.generate import generate

if TYPE_CHECKING:
    from moe_model.model import LanguageModel
    from moe_model.training.setup import Run

SAMPLE_TOKENS = 200


def sample(run: Run, model: LanguageModel) -> str:
    """How ``model`` continues the prompt of ``run``; ``ValueError`` where it cannot."""
    tokenizer = run.corpus.tokenizer
    prompt_S = tokenizer.encode(run.prompt)
    ids = generate(model, prompt_S, max_new_tokens=SAMPLE_TOKENS, seed=run.options.seed)
    return tokenizer.decode(ids)
