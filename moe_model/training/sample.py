"""What the model writes at the end of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_model.model import LanguageModel
from moe_model.sampling import generate
from moe_model.training.parallel import whole_weights

if TYPE_CHECKING:
    from moe_model.training.setup import Run

SAMPLE_TOKENS = 200


def sample(run: Run) -> str:
    """How the model continues the prompt; all ranks ask, the first one gets the text.

    Raises:
        ValueError: If it cannot be continued.
    """
    model = run.model
    if run.options.parallel == "fsdp":
        weights = whole_weights(model, run.world)
        if not run.world.is_main:
            return ""
        model = LanguageModel(model.config)
        model.load_state_dict(weights)
    elif not run.world.is_main:
        return ""
    tokenizer = run.corpus.tokenizer
    prompt_S = tokenizer.encode(run.prompt)
    ids = generate(
        model,
        prompt_S,
        max_new_tokens=SAMPLE_TOKENS,
        seed=run.options.seed,
        stop_at=run.stop_ids,
    )
    return tokenizer.decode(ids)
