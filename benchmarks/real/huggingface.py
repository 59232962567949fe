"""A flat loop around a Hugging Face MoE model with random weights, logged through its routers.

    python -m benchmarks.real.huggingface --run NAME --folder DIR [--model mixtral|qwen3-moe]

Nothing is downloaded: the text comes with Python. A forward hook on every router module reads its
logits and the experts it chose; ``RunRecorder`` writes them down. ``--per-layer`` does not pool the
auxiliary loss over the layers, ``--aux-off`` sets ``output_router_logits`` to false. ``--switch``
trains on prose (the language reference) first and on code (modules of Python) from the middle on.
"""

import argparse
import sysconfig
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

from benchmarks.machine import options_of
from microscope_tui.probe import RunRecorder
from moe_model import CharTokenizer, python_docs
from moe_model.training.batches import TrainingBatches
from moe_model.training.corpus import Tokens
from moe_model.training.options import FINAL_SHARE, Options
from moe_model.training.step import learning_rate_at, make_optimizer, set_learning_rate

LAYERS, WIDTH, HEADS, EXPERT_WIDTH, BATCH, SEQUENCE = 4, 96, 4, 64, 8, 96


def main() -> None:
    options = options_of(
        __doc__, run="hf", folder=Path("real-runs"), model="mixtral", experts=8, top_k=2,
        aux_weight=0.02, per_layer=False, lr=1e-3, steps=600, seed=0, switch=False, aux_off=False,
    )  # fmt: skip
    prose, code = python_docs("--data"), sources()
    tokenizer = CharTokenizer("".join(sorted(set(prose + code))))
    texts = [Tokens(tokenizer.encode(text), torch.tensor([0])) for text in (prose, code)]
    size = {"batch_size": BATCH, "seq_len": SEQUENCE, "seed": options.seed}
    batches = [TrainingBatches([text], **size) for text in texts]
    torch.manual_seed(options.seed)
    train(build(options, len(tokenizer)).train(), batches, options)


def sources() -> str:
    """Modules of the standard library, as much as the prose, in ASCII."""
    folder = Path(sysconfig.get_path("stdlib"))
    texts = [path.read_text("utf-8", "replace") for path in sorted(folder.glob("[a-d]*.py"))]
    return "\n\n".join(texts).encode("ascii", "ignore").decode()


def build(options: argparse.Namespace, vocabulary: int) -> nn.Module:
    """The model, with weights that are random but seeded."""
    sizes: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": HEADS // 2,
        "max_position_embeddings": SEQUENCE,
        "num_experts_per_tok": options.top_k,
        "output_router_logits": not options.aux_off,
        "router_aux_loss_coef": options.aux_weight,
    }
    if options.model == "mixtral":
        sizes |= {"intermediate_size": EXPERT_WIDTH, "num_local_experts": options.experts}
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**sizes))
    sizes |= {"moe_intermediate_size": EXPERT_WIDTH, "num_experts": options.experts}
    sizes |= {"head_dim": WIDTH // HEADS, "norm_topk_prob": True}
    return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**sizes))


class RouterHooks:
    """What every router did in the last forward pass, in forward order."""

    def __init__(self, model: nn.Module) -> None:
        self.routers = [m for m in model.modules() if type(m).__name__.endswith("TopKRouter")]
        self.seen: list[tuple[Tensor, Tensor]] = []
        for router in self.routers:
            router.register_forward_hook(self._see)

    def _see(self, router: nn.Module, inputs: Any, output: tuple[Tensor, Tensor, Tensor]) -> None:
        logits_TE, _, ids_TK = output
        self.seen.append((logits_TE.detach().float(), ids_TK))

    def read(self) -> dict[str, Any]:
        """Counts and summaries of the step; call it after the backward pass."""
        assert len(self.seen) == len(self.routers), "a router was hooked twice, or not at all"
        probabilities = [logits_TE.softmax(-1) for logits_TE, _ in self.seen]
        counts = [
            torch.bincount(ids_TK.flatten(), minlength=logits_TE.shape[-1])
            for logits_TE, ids_TK in self.seen
        ]
        router = {
            "entropy": [entropy(p_TE).mean() for p_TE in probabilities],
            "mean_entropy": [entropy(p_TE.mean(0)) for p_TE in probabilities],
            "z_loss": [logits_TE.logsumexp(-1).square().mean() for logits_TE, _ in self.seen],
            "max_logit": [logits_TE.abs().max() for logits_TE, _ in self.seen],
            "selected_mass": [
                p_TE.gather(-1, ids_TK).sum(-1).mean()
                for p_TE, (_, ids_TK) in zip(probabilities, self.seen, strict=True)
            ],
            "grad_norm": [router.weight.grad.norm() for router in self.routers],
        }
        self.seen = []
        numbers = {name: [float(value) for value in row] for name, row in router.items()}
        return {"tokens_per_expert": [row.tolist() for row in counts], "router": numbers}


def entropy(p: Tensor) -> Tensor:
    """In nats, over the last dimension."""
    return torch.special.entr(p).sum(-1)


def train(model: nn.Module, batches: list[TrainingBatches], options: argparse.Namespace) -> None:
    """The loop: forward, backward, read the routers, update, write the line."""
    schedule = Options(steps=options.steps, lr=options.lr, min_lr=FINAL_SHARE)
    hooks, optimizer = RouterHooks(model), make_optimizer(model, schedule)
    recorder = RunRecorder(options.folder / options.run, **describe(model, options))
    for step in range(1, options.steps + 1):
        rate = learning_rate_at(step, schedule)
        set_learning_rate(optimizer, rate)
        second = options.switch and step > options.steps // 2
        (batch,), _ = batches[second].draw()
        inputs_BS, targets_BS = batch.tokens_BN[:, :-1], batch.targets(1, SEQUENCE)
        output = model(input_ids=inputs_BS)
        loss = F.cross_entropy(output.logits.flatten(0, 1), targets_BS.flatten())
        aux = per_layer_aux(output.router_logits, options) if options.per_layer else output.aux_loss
        (loss if aux is None else loss + options.aux_weight * aux).backward()
        norm = nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
        line = hooks.read()
        if torch.isfinite(norm):
            nn.utils.clip_grads_with_norm_(model.parameters(), schedule.clip, norm)
            optimizer.step()
        optimizer.zero_grad()
        recorder.record_step(
            step=step,
            loss=loss.item(),
            losses={"aux": aux.item()} if options.aux_weight and aux is not None else {},
            tokens=inputs_BS.numel(),
            learning_rate=rate,
            grad_norm=float(norm),
            **line,
        )
    recorder.close(step=options.steps, reason="finished")


def per_layer_aux(logits_LTE: tuple[Tensor, ...], options: argparse.Namespace) -> Tensor:
    """What ``transformers`` computes over all layers at once, for each by itself; floor k."""
    losses = []
    for logits_TE in logits_LTE:
        p_TE = logits_TE.softmax(-1)
        chosen_TE = torch.zeros_like(p_TE).scatter(-1, p_TE.topk(options.top_k).indices, 1.0)
        losses.append(options.experts * (chosen_TE.mean(0) * p_TE.mean(0)).sum())
    return torch.stack(losses).mean()


def describe(model: nn.Module, options: argparse.Namespace) -> dict[str, Any]:
    """The header of the log."""
    return {
        "run": options.run,
        "writer": "benchmarks.real",
        "planned_steps": options.steps,
        "model": {
            "name": options.model,
            "layers": list(range(LAYERS)),
            "layer_names": [f"L{depth}" for depth in range(LAYERS)],
            "num_experts": options.experts,
            "top_k": options.top_k,
            "score_function": "softmax",
            "norm_top_k": True,
            "capacity_factor": None,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        "balance": {
            "method": "aux" if options.aux_weight else "none",
            "aux_weight": options.aux_weight,
            "output_router_logits": not options.aux_off,
        },
        "config": {
            "dtype": "fp32",
            "learning_rate": options.lr,
            "per_layer": options.per_layer,
            "switch": options.switch,
        },
        "versions": {"torch": str(torch.__version__), "transformers": transformers.__version__},
    }


if __name__ == "__main__":
    main()
