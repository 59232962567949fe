"""A training loop in JAX, without torch: ``RunRecorder`` takes the counts of every step.

    pip install . jax
    python examples/jax_loop.py

Trains one layer of eight experts to predict the next byte of text that comes with Python.
"""

import argparse
from pathlib import Path
from pydoc_data.topics import topics

import jax
import jax.numpy as jnp

from microscope_tui.probe import RunRecorder

EXPERTS, TOP_K, WIDTH, TOKENS = 8, 2, 32, 512
AUX_WEIGHT, RATE = 0.1, 0.5
SHAPES = {
    "embed": (256, WIDTH), "router": (WIDTH, EXPERTS), "experts": (EXPERTS, WIDTH, WIDTH),
    "out": (WIDTH, 256),
}  # fmt: skip
Weights = dict[str, jax.Array]


def losses(weights: Weights, bytes_T: jax.Array, next_T: jax.Array) -> tuple[jax.Array, tuple]:
    """The loss with its auxiliary term, and the numbers for the log."""
    x_TD = weights["embed"][bytes_T]
    probabilities_TE = jax.nn.softmax(x_TD @ weights["router"])
    weights_TK, ids_TK = jax.lax.top_k(probabilities_TE, TOP_K)
    outputs_TED = jnp.tanh(jnp.einsum("td,edf->tef", x_TD, weights["experts"]))
    chosen_TKD = jnp.take_along_axis(outputs_TED, ids_TK[..., None], axis=1)
    x_TD += (chosen_TKD * weights_TK[..., None]).sum(1)
    scores_TV = jax.nn.log_softmax(x_TD @ weights["out"])
    loss = -jnp.take_along_axis(scores_TV, next_T[:, None], axis=1).mean()
    counts_E = jnp.bincount(ids_TK.ravel(), length=EXPERTS)
    aux = EXPERTS * (counts_E / TOKENS * probabilities_TE.mean(0)).sum()
    return loss + AUX_WEIGHT * aux, (loss, aux, counts_E)


@jax.jit
def update(weights: Weights, bytes_T: jax.Array, next_T: jax.Array) -> tuple[Weights, tuple]:
    """One step of gradient descent."""
    gradients, numbers = jax.grad(losses, has_aux=True)(weights, bytes_T, next_T)
    return jax.tree.map(lambda weight, slope: weight - RATE * slope, weights, gradients), numbers


def main() -> None:
    """Train, and print what to open."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    given = parser.parse_args()
    text, run = jnp.array(list("\n".join(topics.values()).encode())), given.logs / "jax-loop"
    keys = jax.random.split(jax.random.key(0), len(SHAPES))
    weights = {
        name: jax.random.normal(key, SHAPES[name]) * 0.3
        for name, key in zip(SHAPES, keys, strict=True)
    }
    model = {"layers": [0], "num_experts": EXPERTS, "top_k": TOP_K}
    balance = {"method": "aux", "aux_weight": AUX_WEIGHT}
    log = RunRecorder(run, model=model, balance=balance, planned_steps=given.steps)
    for step in range(1, given.steps + 1):
        at = int(jax.random.randint(jax.random.key(step), (), 0, len(text) - TOKENS))
        bytes_T, next_T = text[at : at + TOKENS], text[at + 1 : at + TOKENS + 1]
        weights, (loss, aux, counts_E) = update(weights, bytes_T, next_T)
        numbers = {"step": step, "loss": loss, "losses": {"aux": aux}, "tokens": TOKENS}
        log.record_step(**numbers, tokens_per_expert=[counts_E])
        for alert in log.alerts():
            print(alert)
    log.close(step=given.steps, reason="finished")
    print(f"next: moe-microscope {run}")


if __name__ == "__main__":
    main()
