"""Train a small DeepSeek-V3 and write the log that the microscope watches.

    python train.py                               # minutes, no download
    python train.py --steps 300 --run first
    python train.py --run first --resume auto     # resume, bit for bit
    python train.py --force-collapse 3@100 --on-collapse stop
    torchrun --nproc-per-node 2 -- train.py       # two processes

Exit codes: 0 finished, 1 failed, 3 stopped on a collapse, 64 usage error, 75 stopped by a signal;
before 3 and 75 a checkpoint is written.
"""

from __future__ import annotations

import math
import re
import sys
import time
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from moe_model.threads import choose_waiting
from moe_model.training.help import SAVED_BYTES_PER_PARAMETER, answer_without_torch, new_app

if __name__ == "__main__":
    answer_without_torch(__doc__)  # --help and --version print at once
    choose_waiting()

import torch
from cyclopts import CycloptsError, Parameter

from microscope_tui.probe import (
    RoutingCounter,
    RunRecorder,
    TrainingLog,
    held_out_slices,
    memory_bytes,
    trace_texts,
)
from moe_model.balance import bias_rate_at, update_expert_bias
from moe_model.command import FAILED, FINISHED, USAGE, UsageError, choose_device, run_command, say
from moe_model.store import CheckpointError
from moe_model.training.checkpoint import BEST, COLLAPSE, LATEST, Checkpoints, save_checkpoint
from moe_model.training.console import Console, introduction, places, sample
from moe_model.training.machine import run_lock
from moe_model.training.options import Options
from moe_model.training.parallel import all_experts, synchronised
from moe_model.training.resolving import option_facts, read_option_sources, resolve
from moe_model.training.run import ENDINGS, Run, TrainingFailedError, describe, layer_names
from moe_model.training.setup import prepare
from moe_model.training.signals import StopRequest
from moe_model.training.step import (
    clip_gradients,
    evaluate,
    gradient_squares,
    learning_rate_at,
    loss_shares,
    mixed_precision,
    seed_noise,
    set_learning_rate,
    weights_at,
)
from moe_model.training.world import (
    RankLostError,
    agree,
    is_first,
    join_world,
    launched,
    lost_ranks,
    own_rank,
)

app = new_app(__doc__, config=read_option_sources)


@app.default
def train(options: Annotated[Options, Parameter(name="*")] = Options()) -> int:  # noqa: B008  # frozen
    """Train a small DeepSeek-V3 whose routers the microscope can watch."""
    try:
        device = choose_device(options.device, deterministic=options.deterministic)
        stop = StopRequest(to_the_end=__name__ == "__main__")
        with stop, join_world(device) as world, lost_ranks():
            agree(world, option_facts(options))
            with world.together():
                options = resolve(options, world)
            with run_lock(options.checkpoint_dir / options.run, world):
                return run_training(prepare(options, world), stop)
    except UsageError as error:
        if is_first():
            raise
        say(f"train.py: {own_rank()}: {error}")  # rank 0 may not have seen this error
        return USAGE
    except (
        OSError, CheckpointError, RankLostError, TrainingFailedError, torch.OutOfMemoryError
    ) as error:  # fmt: skip
        say(f"train.py: {options.run or 'the run'} failed: {error}")
    except KeyboardInterrupt:
        say(f"train.py: {options.run or 'the run'} was interrupted without saving.")
    return FAILED


def end_all_ranks_if_refused() -> None:
    """Check the command line before anything else; if it is wrong, end the other ranks as well.

    They wait for a rank that has not joined them, so this one joins before it ends.
    """
    try:
        app.parse_args(exit_on_error=False, print_error=False)
    except (CycloptsError, UsageError) as error:
        # The device of the other ranks, as far as this command line has it.
        asked = re.search(r"--device[= ](cpu|cuda)", " ".join(sys.argv))
        name = asked[1] if asked else "auto"
        with suppress(UsageError, RankLostError), join_world(choose_device(name)) as world:
            agree(world, {}, UsageError(str(error)))


def optimizer_step(run: Run, step: int) -> dict[str, Any]:
    """Forward, backward, balance, update; returns the line of the log. All ranks call this.

    ``step`` counts from 1.
    """
    options, model, world = run.options, run.model, run.world
    started = time.perf_counter()
    learning_rate = learning_rate_at(step, options)
    set_learning_rate(run.optimizer, learning_rate)
    if run.forced_collapse is not None and step >= run.forced_collapse[1]:
        model.routers[run.forced_collapse[0]].collapse()

    weights = weights_at(step, options)
    counter = RoutingCounter(model.config, model.routers)
    sums = forward_and_backward(run, weights, counter)

    # All that the log records, in one sum over ranks and one copy, before anything changes.
    own = gradient_squares(model, world, run.scale)
    extra = counter.all_reduce(world, torch.cat([sums, own]))

    def update() -> None:
        """A step that is not finite changes neither the weights nor the expert bias."""
        finite = extra[-1].isfinite()
        run.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # AdamW reads it
        if options.optimizer == "adamw" or finite:  # for Muon the host waits
            clip_gradients(model, extra[-1].sqrt(), run.scale, options.clip)
            run.optimizer.step()
        rate = bias_rate_at(step, options.steps, options.bias_update_rate)
        update_expert_bias(model.routers, counter.counts, rate * finite)
        run.optimizer.zero_grad()

    seen = counter.read(update)
    loss, *other_losses = seen.extra[: len(sums)]
    *squares, square = seen.extra[len(sums) :]
    grad_norm = math.sqrt(square)
    if run.loss_scale is not None:
        run.loss_scale.update(finite=math.isfinite(grad_norm))
    seconds = time.perf_counter() - started
    tokens = run.sequences_per_step * options.seq_len
    return {
        "step": step,
        "loss": loss,
        "losses": dict(zip(weights, other_losses, strict=True)),
        **counter.record(seen, squares),
        "learning_rate": learning_rate,
        "grad_norm": grad_norm,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "step_time_s": seconds,
        "memory_bytes": memory_bytes(),
    }


def forward_and_backward(
    run: Run, weights: dict[str, float], counter: RoutingCounter
) -> torch.Tensor:
    """Compute gradients and count routings; return this rank's share of the loss, then of each loss
    in ``weights``, fp64."""
    options, model, world = run.options, run.model, run.world
    length = options.seq_len
    sums = torch.zeros(1 + len(weights), dtype=torch.float64, device=world.device)
    drawn = run.batches.draw()
    num_passes = world.size * len(drawn.micro_batches)
    counts_LE = None
    if options.balance_scope == "step":
        counts_LE = torch.stack([router.counts_E for router in model.routers])
    whole = not (model.sharded or model.recompute or options.compile)
    for place, on_host in enumerate(drawn.micro_batches, 1):
        for experts in all_experts(model) if whole else ():
            experts.again = place < len(drawn.micro_batches)
        first = ((place - 1) * world.size + world.rank) * options.batch_size
        rows = range(first, first + options.batch_size)
        seed_noise(model.routers, f"{options.seed}/{run.progress.step}", rows)
        batch = on_host.to(world.device)
        inputs = {"targets": batch.all_targets(length, ahead=options.mtp_weight > 0)}
        if options.mtp_weight:
            inputs["next_ids"] = batch.tokens_BN[:, 1:-1]
        if options.document_mask:
            inputs["starts_BS"] = batch.starts_BN[:, :length]
        with synchronised(run.forward, place == len(drawn.micro_batches)):
            with mixed_precision(world.device, run.dtype):
                output = run.forward(batch.tokens_BN[:, :length], **inputs)
            counter.add(output.routings)
            shares = loss_shares(output, weights, drawn, num_passes, counts_LE)
            total = shares[0]
            for weight, share in zip(weights.values(), shares[1:], strict=True):
                total = total + weight * share.sum()
            (total * run.scale).backward()
        sums += torch.stack([share.detach().double().mean() for share in shares])
    return sums


def run_training(run: Run, stop: StopRequest) -> int:
    """Train until the end of the run; return the exit code of the process. All ranks call this.

    Rank 0 writes the log, whose last line has the reason of the end, also after an exception.
    """
    options, progress = run.options, run.progress
    if progress.step >= options.steps:
        run.world.say(
            f"{options.run} already has all {options.steps} steps; raise --steps to continue."
        )
        return FINISHED
    checkpoints = Checkpoints(run.folder, run.resumed_from, options.keep)
    recorder = None
    if run.world.is_main:  # it writes the log for all ranks
        recorder = RunRecorder(options.log_dir / options.run, **describe(run))
    log = TrainingLog(recorder, say=run.world.say)
    names = layer_names(run.model)
    console = Console(options.steps, names, progress.step + 1, quiet=not run.world.is_main)
    reason = "failed"
    try:
        with console:
            for line in introduction(run):
                console.say(line)
            run.world.barrier()  # rank 0 has read the log of earlier attempts
            if run.resumed_from is not None and not run.is_newest:
                # A fork, or an earlier step: later resumes start from here.
                save(LATEST, run, checkpoints, log, or_fail=True)
            ended = loop(run, stop, log, console, checkpoints)
            if progress.saved_step != progress.step:
                save(LATEST, run, checkpoints, log, or_fail=True)
            reason = ended
    finally:
        log.end(progress.step, reason)
    conclude(run, console, reason, log)
    run.world.barrier()  # torchrun ends all ranks as soon as one has ended
    return ENDINGS[reason][0]


def loop(
    run: Run, stop: StopRequest, log: TrainingLog, console: Console, checkpoints: Checkpoints
) -> str:
    """Train until all steps are done or there is a reason to stop; return a key of ``ENDINGS``.

    All ranks call this and stop after the same step.
    """
    options, progress, world = run.options, run.progress, run.world
    if options.on_collapse == "stop" and world.any(bool(log.collapsed())):
        return "collapse"  # collapsed before this start
    if progress.step == 0:
        held_out_loss(run, log)
    while progress.step < options.steps:
        if world.any(stop.requested):
            return "signal"
        record = optimizer_step(run, progress.step + 1)
        progress.advance(record, log.step(record) or progress.collapse_index)
        alerts = log.alerts()
        for alert in alerts:
            console.alert(alert)
        last = progress.step == options.steps
        if last or progress.step % options.eval_every == 0:
            validate(run, checkpoints, log)
        if last or progress.step % options.save_every == 0:
            save(LATEST, run, checkpoints, log)
        console.step(progress)
        if options.on_collapse != "log" and world.any(any(a.is_collapse for a in alerts)):
            if options.on_collapse == "stop":
                return "collapse"
            save(COLLAPSE, run, checkpoints, log)
    return "finished"


def validate(run: Run, checkpoints: Checkpoints, log: TrainingLog) -> None:
    """Evaluate on held-out text; save the model if it is the best so far. All ranks call this."""
    progress = run.progress
    progress.validation_loss = loss = held_out_loss(run, log)
    if loss < progress.best_loss:
        progress.best_loss = loss
        save(BEST, run, checkpoints, log)


def held_out_loss(run: Run, log: TrainingLog) -> float:
    """In nats per token, the mean of all sources. All ranks call this.

    Logged with the experts that each chose.
    """
    names, sources = zip(*run.held_out, strict=True)
    judge = partial(evaluate, run.model, dtype=run.dtype, forward=run.forward, world=run.world)
    found = [judge(batches, document_mask=run.options.document_mask) for batches in sources]
    losses, counts = zip(*found, strict=True)
    loss = sum(losses) / len(losses)
    slices = held_out_slices(names, [*map(len, counts)], torch.cat(counts).cpu().numpy())
    log.event(run.progress.step, "eval", {"loss": loss}, slices=slices)
    return loss


def save(
    name: str, run: Run, checkpoints: Checkpoints, log: TrainingLog, *, or_fail: bool = False
) -> None:
    """Write a checkpoint and force the log to disk, so that both describe the same steps.

    A full disk costs a checkpoint, not the run; only with ``or_fail`` it must succeed, and
    ``previous`` makes room for it.
    """
    log.sync()  # before as well: a checkpoint must never be ahead of its log
    step, path = run.progress.step, checkpoints.folder / name
    problem = refused(name, run, checkpoints, log)
    if run.world.any(problem is not None):
        needed = f"{SAVED_BYTES_PER_PARAMETER * run.model.config.parameters():,}"
        run.world.say(f"no checkpoint at step {step} ({problem}); free {needed} bytes.")
        if not or_fail:
            return
        if run.world.is_main:
            checkpoints.remove_previous()
        problem = refused(name, run, checkpoints, log)
        if problem is not None:
            raise problem
    if name == LATEST:
        run.progress.saved_step = step
    log.event(step, "checkpoint", {"name": name, "path": str(path)})
    log.sync()


def refused(name: str, run: Run, checkpoints: Checkpoints, log: TrainingLog) -> OSError | None:
    """Save a checkpoint; return why it could not be written, if it was not. All ranks call this."""
    problem = None
    try:
        save_checkpoint(name, run, checkpoints, log.judgement())
    except OSError as error:
        problem = error
    run.world.barrier()  # rank 0 writes alone, however long its disk takes
    return problem


def conclude(run: Run, console: Console, reason: str, log: TrainingLog) -> None:
    """Print the summary and the paths; after a finished run also a sample. All ranks call this."""
    console.summary(run.progress, ENDINGS[reason][1], log.verdict())
    console.places(places(run, reason, log.collapse_onset()))
    if reason != "finished":
        return
    try:
        console.sample(run.prompt, text := sample(run))
    except ValueError as error:
        console.say(f"no sample: {error}")
        return
    if run.options.trace_sample and run.world.is_main:
        texts, name = {"prompt": run.prompt, "sample": text}, f"{run.options.run}-sample"
        folder = run.options.log_dir / name
        console.places({"trace": trace_texts(run.model, run.tokenizer, texts, folder)})


if __name__ == "__main__":
    if launched():
        end_all_ranks_if_refused()
    sys.exit(run_command(app, None))
