"""Everything that needs a GPU to be known, in one command: ``make gpu-report``.

    python -m benchmarks.gpu_report                                # a CUDA GPU; 64 without one
    python -m benchmarks.gpu_report --device cpu --out /tmp/r.json # the same checks, tiny

Each check ends as passed or failed with its numbers, whatever happens to the others. The report
names the processor, torch and its CUDA, and neither host nor user nor folders. Exit codes: 0 all
checks passed, 1 one failed, 64 no GPU.
"""

import argparse
import json
import os
import platform
import socket
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file

import train as trainer
from microscope_tui.probe import attach
from moe_model import LanguageModel, ModelConfig, experts
from moe_model.experts import Experts
from moe_model.sampling import generate
from moe_model.training import parallel
from moe_model.training.step import local_part, mixed_precision
from moe_model.training.world import join_world

SHAPE = {
    "vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 3, "first_k_dense_replace": 1,
    "intermediate_size": 96, "moe_intermediate_size": 32, "n_routed_experts": 8,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "num_attention_heads": 2, "kv_lora_rank": 32,
    "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 16,
    "max_position_embeddings": 128, "num_nextn_predict_layers": 1,
}  # fmt: skip
Result = tuple[bool, dict]


@dataclass
class Place:
    """Where a check runs, and a folder that is its own."""

    device: torch.device
    folder: Path

    @property
    def large(self) -> bool:
        return self.device.type == "cuda"

    def wait(self) -> None:
        if self.large:
            torch.cuda.synchronize()


def small_model(device: torch.device) -> LanguageModel:
    model = LanguageModel(ModelConfig(**SHAPE))
    model.init_weights(torch.Generator().manual_seed(0))
    return model.to(device).train()


def losses_and_gradients(place_device: torch.device, dtype: torch.dtype, compiled: bool = False):
    """Loss and gradients by name of a second pass over fixed tokens."""
    model = small_model(place_device)
    if compiled:
        # Generated code takes minutes on a CPU, where one layer and its graph must do.
        on_cpu = place_device.type == "cpu"
        for layer in model.layers[-1:] if on_cpu else (*model.layers, *model.mtp):
            layer.compile(backend="aot_eager" if on_cpu else "inductor")
    ids_BN = torch.randint(0, 97, (4, 66), generator=torch.Generator().manual_seed(1))
    ids_BN = ids_BN.to(place_device)
    for _ in range(2):
        model.zero_grad()
        with mixed_precision(place_device, dtype):
            output = model(
                ids_BN[:, :64], next_ids=ids_BN[:, 1:-1], targets=[ids_BN[:, 1:-1], ids_BN[:, 2:]]
            )
        loss = sum(output.losses) / ids_BN[:, 2:].numel()
        loss.backward()
    return loss.item(), {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}


def compared(one, other, most_loss: float, most_gradient: float) -> Result:
    """Relative differences of two passes."""
    (loss, gradients), (expected, their_gradients) = one, other
    apart = {n: (gradients[n] - g).norm() / g.norm() for n, g in their_gradients.items()}
    worst = float(max(apart.values()))
    numbers = {"loss": loss, "expected_loss": expected, "gradients_apart": worst}
    return abs(loss - expected) <= most_loss and worst <= most_gradient, numbers


def parity(place: Place, dtype: torch.dtype, *most: float) -> Result:
    """Against fp32 on a CPU: in bf16 near-tied tokens may take another expert."""
    reference = losses_and_gradients(torch.device("cpu"), torch.float32)
    return compared(losses_and_gradients(place.device, dtype), reference, *most)


def grouped_against_in_turn(place: Place) -> Result:
    """Milliseconds of a pass of the experts, forward and backward, each way; and the same sums and
    gradients. Two experts are empty: where they get a gradient, as pytorch 172439 reports for
    compute capability 10, the grouped product must not be chosen."""
    width, tokens, count = (1024, 16384, 64) if place.large else (64, 256, 8)
    sizes = {"hidden_size": width, "moe_intermediate_size": width // 2, "n_routed_experts": count}
    layer = Experts(ModelConfig(**SHAPE | sizes)).to(place.device, torch.bfloat16)
    x_TD = torch.randn(tokens, width, device=place.device, dtype=torch.bfloat16)
    ids_TK = torch.rand(tokens, count - 2, device=place.device).topk(2).indices
    weights_TK = torch.rand(tokens, 2, device=place.device)
    before, numbers, sums, gradients = experts._grouped_is_better, {}, [], []
    numbers["chosen"] = "grouped" if before(x_TD, layer.gate_up_proj) else "in turn"
    try:
        for way in ("grouped", "in turn"):
            experts._grouped_is_better = lambda *_, way=way: way == "grouped"
            seconds = []
            for _ in range(5):
                place.wait()
                started = time.perf_counter()
                layer.zero_grad()
                y_TD = layer(x_TD, ids_TK, weights_TK)
                y_TD.float().square().sum().backward()
                place.wait()
                seconds.append(time.perf_counter() - started)
            numbers[f"{way} ms"] = round(1e3 * min(seconds), 3)
            sums.append(y_TD.float())
            gradients.append(torch.cat([p.grad.flatten(1).float() for p in layer.parameters()], 1))
            numbers[f"{way} empty"] = float(gradients[-1][-2:].norm())
    finally:
        experts._grouped_is_better = before
    numbers["apart"] = float((sums[0] - sums[1]).norm() / sums[1].norm())
    numbers["gradients apart"] = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    right = numbers["grouped empty"] == 0 and numbers["gradients apart"] < 2e-2
    unharmed = right or numbers["chosen"] == "in turn"
    return numbers["apart"] < 2e-2 and numbers["in turn empty"] == 0 and unharmed, numbers


def compiled(place: Place) -> Result:
    """Compiled layers against plain ones."""
    plain = losses_and_gradients(place.device, torch.float32)
    other = losses_and_gradients(place.device, torch.float32, compiled=True)
    return compared(other, plain, 1e-4, 1e-3)


def train(place: Place, run: str, *more: str, rank: bool = False, own_shape: bool = True) -> Path:
    """Run the trainer in this process and return its newest checkpoint.

    Args:
        own_shape: Train the small model of these checks on a small text, instead of the preset on
            the text that ships with Python.
    """
    text = place.folder / "text.txt"
    text.write_text("".join(f"{n} of {n * 7 % 13} is {n * n % 97}.\n" for n in range(300)))
    folders = [f"--log-dir={place.folder / 'logs'}", f"--checkpoint-dir={place.folder / 'ck'}"]
    fields = [f"--model.{name}={SHAPE[name]}" for name in TRAINED if own_shape]
    data = text if own_shape else "python-docs"
    own = [f"--data={data}", f"--run={run}", f"--device={place.device.type}", "--batch-size=4"]
    flags = [*own, *folders, *fields, "--dtype=fp32", *more]
    with mock.patch.dict(os.environ, names_of_a_rank() if rank else {}):
        code = trainer.run_command(trainer.app, list({f.split("=")[0]: f for f in flags}.values()))
    if code:
        raise RuntimeError(f"train.py ended with {code}; its message is above")
    return place.folder / "ck" / run / "latest"


def names_of_a_rank() -> dict[str, str]:
    """What torchrun sets for one process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    names = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    return {**names, "MASTER_PORT": port}


TRAINED = (
    "hidden_size", "num_hidden_layers", "intermediate_size", "moe_intermediate_size",
    "num_attention_heads", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    "max_position_embeddings",
)  # fmt: skip


def logged(place: Place, run: str, field: str) -> list[float]:
    """A number of every step of a run."""
    lines = (place.folder / "logs" / run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [record[field] for record in map(json.loads, lines) if record["kind"] == "step"]


def resumed_bit_for_bit(place: Place) -> Result:
    """Six steps at once, and three and three."""
    straight = train(place, "straight", "--steps=6", "--save-every=3", "--deterministic")
    previous = straight.parent / "previous"
    again = train(place, "again", "--steps=6", f"--resume={previous}", "--deterministic")
    one, other = (load_file(path / "model.safetensors") for path in (straight, again))
    different = [name for name, tensor in one.items() if not torch.equal(tensor, other[name])]
    return not different, {"tensors": len(one), "different": len(different)}


def losses_apart(place: Place, more: list[str], others: list[str], rank: bool = False) -> float:
    """The losses of three steps with the options ``more`` against those with ``others``."""
    losses = []
    for flags in (more, others):
        with tempfile.TemporaryDirectory() as folder:
            own = Place(place.device, Path(folder))
            train(own, "run", "--steps=3", *flags, rank=rank and flags is more)
            losses.append(logged(own, "run", "loss"))
    return max(abs(one - other) for one, other in zip(*losses, strict=True))


def options_against_cpu(place: Place) -> Result:
    """Options with kernels of their own; Muon computes in bf16. The noise differs on a GPU."""
    options = ("--optimizer=muon", "--document-mask", "--balance=aux")
    apart = {one: losses_apart(place, [one], [one, "--device=cpu"]) for one in options}
    return max(apart.values()) < 5e-3, apart


def sharded_on_one(place: Place) -> Result:
    """FSDP2 with one rank against no FSDP."""
    apart = losses_apart(place, ["--parallel=fsdp"], [], rank=True)
    return apart < 1e-3, {"losses_apart": apart}


def probed(place: Place) -> Result:
    """What the probe counts in a step, against a CPU: few of the pairs may move between experts."""
    counts = []
    for device in (torch.device("cpu"), place.device):
        model = small_model(device)
        ids_BN = torch.randint(0, 97, (4, 66), generator=torch.Generator().manual_seed(1))
        with attach(model, place.folder / "logs" / f"probe-{len(counts)}") as probe:
            model(ids_BN.to(device)).logits_BSV.logsumexp(-1).sum().backward()
            probe.step()
        (rows,) = logged(place, f"probe-{len(counts)}", "tokens_per_expert")
        counts.append(torch.tensor([row for row in rows if row]))  # without next ids no MTP
    moved = int((counts[0] - counts[1]).abs().sum()) // 2
    return moved <= 4, {"pairs": int(counts[0].sum()), "moved": moved}


def exchanged_with_itself(place: Place) -> Result:
    """The exchange of expert parallelism of one rank, over NCCL, against experts without it."""
    generator = torch.Generator().manual_seed(0)
    x_TD = torch.randn(512, 64, generator=generator).to(place.device)
    ids_TK = torch.rand(512, 8, generator=generator).topk(2).indices.to(place.device)
    found = []
    with mock.patch.dict(os.environ, names_of_a_rank()), join_world(place.device) as world:
        for shared in (False, True):
            layer = small_model(place.device).layers[-1]
            if shared:
                parallel._share_experts(layer, parallel._expert_mesh(world, 1)["experts"])
            y_TD = layer.mlp.experts(x_TD, ids_TK, torch.ones(512, 2, device=place.device))
            y_TD.square().sum().backward()
            found.append([local_part(p.grad) for p in layer.mlp.experts.parameters()])
    apart = max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
    return apart < 1e-4, {"gradients_apart": apart}


def generated(place: Place) -> Result:
    """The likeliest tokens, against those of the CPU."""
    prompt_S, answers, seconds = torch.arange(1, 9), [], 0.0
    for device in (torch.device("cpu"), place.device):
        model = small_model(device).eval()
        started = time.perf_counter()
        answers.append(generate(model, prompt_S, max_new_tokens=64, temperature=0.0))
        seconds = time.perf_counter() - started
    alike = next((i for i, (a, b) in enumerate(zip(*answers, strict=True)) if a != b), 64)
    return alike >= 32, {"same_tokens": alike, "tokens_per_s": round(64 / seconds, 1)}


def throughput(place: Place) -> Result:
    """Tokens a second of the preset ``small`` on a GPU, after its first steps."""
    more = ["--steps=60", "--preset=small", "--batch-size=32"] if place.large else ["--steps=4"]
    train(place, "speed", *more, "--dtype=auto", own_shape=not place.large)
    rates = logged(place, "speed", "tokens_per_s")
    rate = sorted(rates[len(rates) // 2 :])[len(rates) // 4]
    return rate > 0, {"tokens_per_s": round(rate, 1)}


CHECKS = {
    "parity fp32": lambda place: parity(place, torch.float32, 1e-4, 1e-3),
    "parity bf16": lambda place: parity(place, torch.bfloat16, 0.05, 0.3),
    "grouped products": grouped_against_in_turn,
    "compile": compiled,
    "options": options_against_cpu,
    "probe": probed,
    "resume bit for bit": resumed_bit_for_bit,
    "fsdp on one": sharded_on_one,
    "exchange on one": exchanged_with_itself,
    "generation": generated,
    "throughput": throughput,
}


NO_DEVICE = 64


def main(arguments: list[str] | None = None) -> int:
    """Run all checks and write the report; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-report.json"))
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "gpu-report: this torch finds no usable GPU: run it where there is one, with a CUDA "
            "build of torch. Nothing was written.",
            file=sys.stderr,
        )
        return NO_DEVICE
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product
    report = report_of(options.device)
    options.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    failed = [name for name, check in report["checks"].items() if not check["passed"]]
    print(f"{options.out}: {len(report['checks']) - len(failed)} passed, {len(failed)} failed.")
    return 1 if failed else 0


def report_of(device: str) -> dict:
    """The machine, and how every check ended."""
    cuda = device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        place = Place(torch.device(device), Path(folder))
        checks = {name: outcome(check, place) for name, check in CHECKS.items()}
    return {
        "device": torch.cuda.get_device_name() if cuda else device,
        "capability": list(torch.cuda.get_device_capability()) if cuda else None,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "checks": checks,
    }


def outcome(check, place: Place) -> dict:
    """``passed``, ``numbers`` and seconds of a check; of one that broke, kind and words."""
    started = time.perf_counter()
    try:
        passed, numbers = check(place)
        found = {"passed": bool(passed), "numbers": numbers}
    except Exception as error:
        traceback.print_exc()  # for who is looking; the report holds no folder
        found = {"passed": False, "numbers": {}, "error": type(error).__name__}
    finally:
        torch.use_deterministic_algorithms(False)
    return {**found, "seconds": round(time.perf_counter() - started, 1)}


if __name__ == "__main__":
    sys.exit(main())
