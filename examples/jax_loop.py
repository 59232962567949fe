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

E, K, D, TOKENS = 8, 2, 32, 512  # experts, of which a token chooses K; width
SHAPES = {"embed": (256, D), "router": (D, E), "experts": (E, D, D), "out": (D, 256)}
AUX_WEIGHT, RATE = 0.1, 0.5


def losses(weights: dict, bytes_T: jax.Array, next_T: jax.Array) -> tuple[jax.Array, tuple]:
    """The loss with its auxiliary term, and the numbers for the log."""
    x_TD = weights["embed"][bytes_T]
    probabilities_TE = jax.nn.softmax(x_TD @ weights["router"])
    weights_TK, ids_TK = jax.lax.top_k(probabilities_TE, K)
    outputs_TED = jnp.tanh(jnp.einsum("td,edf->tef", x_TD, weights["experts"]))
    chosen_TKD = jnp.take_along_axis(outputs_TED, ids_TK[..., None], axis=1)
    x_TD += (chosen_TKD * weights_TK[..., None]).sum(1)
    scores_TV = jax.nn.log_softmax(x_TD @ weights["out"])
    loss = -jnp.take_along_axis(scores_TV, next_T[:, None], axis=1).mean()
    counts_E = jnp.bincount(ids_TK.ravel(), length=E)
    aux = E * (counts_E / TOKENS * probabilities_TE.mean(0)).sum()
    return loss + AUX_WEIGHT * aux, (loss, aux, counts_E)


@jax.jit
def update(weights: dict, bytes_T: jax.Array, next_T: jax.Array) -> tuple[dict, tuple]:
    """One step of gradient descent."""
    slopes, numbers = jax.grad(losses, has_aux=True)(weights, bytes_T, next_T)
    return jax.tree.map(lambda weight, slope: weight - RATE * slope, weights, slopes), numbers


def main(steps: int, run: Path) -> None:
    """Train, and print what to open."""
    text = jnp.array(list("\n".join(topics.values()).encode()))
    keys = zip(SHAPES, jax.random.split(jax.random.key(0), len(SHAPES)), strict=True)
    weights = {name: 0.3 * jax.random.normal(key, SHAPES[name]) for name, key in keys}
    model = {"layers": [0], "num_experts": E, "top_k": K}
    balance = {"method": "aux", "aux_weight": AUX_WEIGHT}
    log = RunRecorder(run, model=model, balance=balance, planned_steps=steps)
    for step in range(1, steps + 1):
        at = int(jax.random.randint(jax.random.key(step), (), 0, len(text) - TOKENS))
        piece = text[at : at + TOKENS + 1]
        weights, (loss, aux, counts_E) = update(weights, piece[:-1], piece[1:])
        numbers = {"step": step, "loss": loss, "losses": {"aux": aux}, "tokens": TOKENS}
        log.record_step(**numbers, tokens_per_expert=[counts_E])
        for alert in log.alerts():
            print(alert)
    log.close(step=steps, reason="finished")
    print(f"next: moe-microscope {run}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--logs", type=Path, default=Path("logs"))
    given = parser.parse_args()
    main(given.steps, given.logs / "jax-loop")
