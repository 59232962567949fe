"""What runs inside the Python of the peers: write the same numbers for them, and read them back.

    PEERS_PYTHON benchmarks/peer_programs.py {wandb,tensorboard,accumulate} LOG FOLDER

Imports nothing of this project, so that the peers can live in an environment of their own. Keys
are those that real writers use, where one logs the number, else the names of the run log.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

EXPERT_KEY = "moe-expert/aux_tokens_per_expert_layer{}_expert{}"  # ltp-megatron-lm
LAYER_KEYS = {
    "entropy": "moe_entropy/L-{}",  # torchtitan forks
    "z_loss": "moe/z_loss_layer_{}",  # Megatron-LM
}
CONFIG = ("num_experts", "top_k")


def main() -> None:
    what, log, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    {"wandb": write_wandb, "tensorboard": write_tensorboard, "accumulate": accumulate}[what](
        log, folder
    )


def scalars(log: Path) -> Iterator[tuple[int, float, dict[str, float]]]:
    """Step, time, and every number of a step under the name of its series."""
    with log.open("rb") as lines:
        for line in lines:
            record = json.loads(line)
            if record["kind"] != "step":
                continue
            values = {name: record[name] for name in ("loss", "learning_rate", "grad_norm")}
            for name, routers in record["router"].items():
                key = LAYER_KEYS.get(name, f"router/{name}/{{}}")
                values |= {key.format(router): value for router, value in enumerate(routers)}
            for router, row in enumerate(record["tokens_per_expert"]):
                values |= {EXPERT_KEY.format(router, e): n for e, n in enumerate(row)}
            yield record["step"], record["time"], values


def config(log: Path) -> dict[str, int]:
    """The number of experts and of choices per token."""
    with log.open("rb") as lines:
        model = json.loads(next(lines))["model"]
    return {name: model[name] for name in CONFIG}


def write_wandb(log: Path, folder: Path) -> None:
    """One offline run."""
    import wandb

    settings = wandb.Settings(
        console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True, silent=True
    )
    run = wandb.init(
        mode="offline", project="peers", dir=str(folder), config=config(log), settings=settings
    )
    for step, _, values in scalars(log):
        run.log(values, step=step)
    run.finish()


def write_tensorboard(log: Path, folder: Path) -> None:
    """One event file with one event a scalar, as ``add_scalar`` writes."""
    from tensorboard.compat.proto import event_pb2, summary_pb2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter(str(folder), max_queue_size=10_000, flush_secs=600)
    for step, time, values in scalars(log):
        for name, value in values.items():
            one = summary_pb2.Summary.Value(tag=name, simple_value=value)
            summary = summary_pb2.Summary(value=[one])
            writer.add_event(event_pb2.Event(wall_time=time, step=step, summary=summary))
    writer.close()


def accumulate(log: Path, folder: Path) -> None:
    """Read an event file with nothing sampled away, print how many scalars it held, and wait."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    print(sum(len(accumulator.Scalars(tag)) for tag in tags), "scalars", flush=True)
    sys.stdin.read()  # memory is measured while it lives


if __name__ == "__main__":
    main()
