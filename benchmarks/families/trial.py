"""One family, trained for a step in one way, with what the probe logged and what happened."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.families.oracle import Oracle, count
from benchmarks.families.tiny import PAD, build
from microscope_tui.probe import attach

LENGTHS = (10, 7, 4)
SEQUENCE = 10
ENCODER_DECODER = ("nllb_moe", "switch_transformers")


@dataclass(frozen=True)
class Way:
    """How the step is trained."""

    padding: str = "right"
    checkpointing: str | None = None
    """``reentrant``, ``non-reentrant`` or none."""
    accumulation: int = 1
    experts: str | None = None
    """``eager`` or ``grouped_mm``; none for the default."""


WAYS = {
    "right": Way(),
    "left": Way(padding="left"),
    "reentrant": Way(padding="left", checkpointing="reentrant"),
    "non-reentrant": Way(checkpointing="non-reentrant"),
    "two micro-batches": Way(padding="left", accumulation=2),
    "eager": Way(experts="eager"),
    "grouped_mm": Way(experts="grouped_mm"),
}
"""What is tried with every family."""


@dataclass
class Outcome:
    """What the log holds and what the oracle counted, by the name of the router."""

    line: dict[str, Any]
    run: dict[str, Any]
    counts: dict[str, list[int]] = field(default_factory=dict)
    unrouted: dict[str, int] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """In which the two differ."""
        names = self.run["model"]["layer_names"]
        rows = dict(zip(names, self.line.get("tokens_per_expert", []), strict=False))
        found = [f"logged {list(rows)}, expected {list(self.counts)}"] * (
            set(rows) != set(self.counts)
        )
        if "incomplete" in self.line:
            found.append(f"incomplete: {self.line['incomplete']}")
        router, top_k = self.line["router"], self.run["model"]["top_k"]
        for place, name in enumerate(names):
            if rows.get(name) != self.counts.get(name):
                found.append(f"{name}: logged {rows.get(name)}, expected {self.counts.get(name)}")
                continue
            elsewhere = router.get("unrouted", [0] * len(names))[place]
            tokens = router.get("tokens", [self.line["tokens"]] * len(names))[place]
            k = top_k[place] if isinstance(top_k, list) else top_k
            if (elsewhere, tokens) != (self.unrouted[name], self.tokens[name]):
                found.append(f"{name}: {elsewhere} unrouted of {tokens} tokens")
            if sum(rows[name]) + elsewhere != tokens * k:
                found.append(f"{name}: does not sum to tokens x top_k")
        return found


def attempt(family: str, way: Way, folder: Path, **changes: Any) -> Outcome:
    """Train one step of the tiny model and read its line."""
    model = build(family, **changes)
    if way.experts is not None:
        model.set_experts_implementation(way.experts)
    if way.checkpointing is not None:
        reentrant = way.checkpointing == "reentrant"
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        if reentrant:
            model.enable_input_require_grads()
    oracle = Oracle(family, model)
    reals: list[dict[str, list[bool]]] = []
    with attach(model, folder, saliency=True) as probe:
        for micro in range(way.accumulation):
            inputs, real = batch(family, model, way.padding, micro)
            reals.append(real)
            oracle.recording = True
            output = model(**inputs)
            oracle.recording = False
            loss_of(output).backward()
        probe.step()
        sites = probe.sites
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    run, line = json.loads(lines[0]), json.loads(lines[1])
    outcome = Outcome(line, run)
    for site in sites:
        block = site.path if family == "doge" else site.path.rpartition(".")[0]
        calls = oracle.calls.get(block if family != "doge" else block.rpartition(".")[0], [])
        passes = max(1, len(calls) // way.accumulation)
        for number in range(passes):
            name = f"{site.name}#{number + 1}" if passes > 1 else site.name
            _expect(outcome, name, site, calls[number::passes], reals)
    return outcome


def _expect(outcome: Outcome, name: str, site: Any, calls: list[Any], reals: list[Any]) -> None:
    E = site.num_experts
    outcome.counts[name], outcome.unrouted[name], outcome.tokens[name] = [0] * E, 0, 0
    for choice, real in zip(calls, reals, strict=False):
        flags = real["dec" if site.stack == "dec" else ""]
        counts, unrouted = count(choice, flags, E)
        outcome.counts[name] = [a + b for a, b in zip(outcome.counts[name], counts, strict=True)]
        outcome.unrouted[name] += unrouted
        outcome.tokens[name] += sum(flags)


def batch(
    family: str, model: nn.Module, padding: str, seed: int
) -> tuple[dict[str, Any], dict[str, list[bool]]]:
    """Inputs, and which tokens are real in every stack, worked out from the lengths alone."""
    made = torch.Generator().manual_seed(100 + seed)
    ids_BS = torch.randint(3, 90, (len(LENGTHS), SEQUENCE), generator=made)
    mask_BS = torch.tensor([[i < n for i in range(SEQUENCE)] for n in LENGTHS])
    if padding == "left":
        mask_BS = mask_BS.flip(-1)
    ids_BS = ids_BS.where(mask_BS, PAD)
    inputs: dict[str, Any] = {"input_ids": ids_BS, "attention_mask": mask_BS.long()}
    real = {"": mask_BS.flatten().tolist()}
    if family in ENCODER_DECODER:
        inputs |= {"decoder_input_ids": ids_BS, "decoder_attention_mask": mask_BS.long()}
        real["dec"] = real[""]
    elif family == "diffusion_gemma":
        canvas = torch.randint(3, 90, (len(LENGTHS), 8), generator=made)
        inputs["decoder_input_ids"] = canvas
        real["dec"] = [True] * canvas.numel()
    else:
        inputs["use_cache"] = False
    return inputs, real


def loss_of(output: Any) -> Tensor:
    """Something to differentiate, for models with and without a head."""
    logits = getattr(output, "logits", None)
    hidden = output.last_hidden_state if logits is None else logits
    return hidden.float().square().mean()
