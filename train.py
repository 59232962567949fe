"""Train a small DeepSeek-V3 and write the log that the microscope watches.

    python train.py                                        # minutes on two CPU cores, no download
    python train.py --preset tiny --steps 300 --run first
    python train.py --balance none                         # watch experts starve
    python train.py --force-collapse 3@100                 # collapse one router on purpose

Read from top to bottom: one optimizer step, the loop around it, what happens now and then, the end.
Exit codes: 0 finished, 1 failed, 64 the command line asks for something that cannot be, 75 stopped
by a signal with a checkpoint written.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Annotated, Any

import torch
from cyclopts import App, Parameter

from microscope_tui.probe.recorder import RunRecorder
from moe_model.balance import bias_rate_at, update_expert_bias
from moe_model.command import FAILED, FINISHED, STOPPED_BY_SIGNAL, run_command, say
from moe_model.generate import generate
from moe_model.training.checkpoint import BEST, LATEST, Checkpoints
from moe_model.training.console import Console
from moe_model.training.evaluation import evaluate
from moe_model.training.losses import next_token_loss, penalties_at
from moe_model.training.machine import memory_bytes, mixed_precision
from moe_model.training.optimizer import CLIP_NORM, learning_rate_at, set_learning_rate
from moe_model.training.options import Options, settle
from moe_model.training.progress import Progress, TrainingFailedError
from moe_model.training.setup import Run, describe, dtype_name, layer_names, prepare
from moe_model.training.stopping import StopRequest

SAMPLE_TOKENS = 200

app = App(
    name="train.py",
    help="Train a small DeepSeek-V3 whose routers the microscope can watch.",
    version_flags=[],
)


@app.default
def train(options: Annotated[Options, Parameter(name="*")] = Options()) -> int:  # noqa: B008  # frozen
    """Train a small DeepSeek-V3 whose routers the microscope can watch."""
    options = settle(options)
    try:
        with StopRequest() as stop:
            return train_run(prepare(options), stop)
    except (OSError, TrainingFailedError, torch.OutOfMemoryError) as error:
        say(f"train.py: {options.run} failed: {error}")
    except KeyboardInterrupt:
        say(f"train.py: {options.run} was interrupted without saving.")
    return FAILED


def optimizer_step(run: Run, step: int) -> dict[str, Any]:
    """Forward, backward, balance, update; returns the line of the log."""
    options, model = run.options, run.model
    started = time.perf_counter()
    learning_rate = learning_rate_at(step, options.steps, options.lr)
    set_learning_rate(run.optimizer, learning_rate)
    if run.forced_collapse is not None and step >= run.forced_collapse[1]:
        router = model.routers[run.forced_collapse[0]]
        router.forced_experts = tuple(range(model.config.num_experts_per_tok))

    model.readings.reset()
    penalties = penalties_at(step, options)
    losses = torch.zeros(1 + len(penalties), device=run.device)
    for _ in range(options.grad_accum):
        tokens_BN = run.batches.draw(run.device)
        inputs_BS, next_ids = tokens_BN[:, : options.seq_len], tokens_BN[:, 1:-1]
        with mixed_precision(run.device, run.dtype):
            output = model(inputs_BS, next_ids=next_ids if model.mtp else None)
        loss = next_token_loss(output.logits_BSV, tokens_BN)
        total, means = loss, [loss]
        for weight, measure in penalties.values():
            penalty_L = measure(output, tokens_BN)
            total = total + weight * penalty_L.sum()
            means.append(penalty_L.mean())
        (total / options.grad_accum).backward()  # type: ignore[no-untyped-call]  # torch
        losses += torch.stack(means).detach() / options.grad_accum

    # All that the step is judged by, in one copy to the host, before anything changes.
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    report = model.readings.report(model.routers, [*losses, norm])
    loss_value, *gauges, grad_norm = report.scalars

    # A step that is not finite moves nothing: not the weights, and not the expert bias either.
    if math.isfinite(grad_norm):
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), CLIP_NORM, norm)
        run.optimizer.step()
        rate = bias_rate_at(step, options.steps, options.bias_update_rate)
        update_expert_bias(model.routers, model.readings.counts_LE, rate)
    run.optimizer.zero_grad()
    seconds = time.perf_counter() - started
    return {
        "step": step,
        "loss": loss_value,
        "losses": dict(zip(penalties, gauges, strict=True)),
        "tokens": report.tokens,
        "tokens_per_expert": report.tokens_per_expert,
        "expert_bias": report.expert_bias,
        "router": report.router,
        "learning_rate": learning_rate,
        "grad_norm": grad_norm,
        "tokens_per_s": report.tokens / seconds,
        "step_time_s": seconds,
        "memory_bytes": memory_bytes(run.device),
    }


def train_run(run: Run, stop: StopRequest) -> int:
    """The loop, and its ends: finished, stopped by a signal, failed."""
    options = run.options
    log = Log(RunRecorder(options.log_dir / options.run, **describe(run)))
    console = Console(options.steps, layer_names(run.model.config))
    progress = Progress(collapse_index=[None] * len(run.model.routers))
    reason = "failed"
    try:
        checkpoints = Checkpoints(options.checkpoint_dir / options.run)
        with console:
            introduce(run, console)
            for step in range(1, options.steps + 1):
                if stop.requested:
                    break
                record = optimizer_step(run, step)
                progress.advance(record, log.step(record) or progress.collapse_index)
                last = step == options.steps
                if last or step % options.eval_every == 0:
                    validate(run, progress, checkpoints, log)
                if last or step % options.save_every == 0:
                    save(LATEST, run, progress, checkpoints, log)
                console.step(progress)
            if progress.saved_step != progress.step:
                save(LATEST, run, progress, checkpoints, log)
        reason = "finished" if progress.step == options.steps else "signal"
    finally:
        log.end(progress.step, reason)
    conclude(run, progress, console, reason)
    return FINISHED if reason == "finished" else STOPPED_BY_SIGNAL


def introduce(run: Run, console: Console) -> None:
    """What is about to run, and how to watch it."""
    config, options = run.model.config, run.options
    console.say(
        f"{options.run}: {config.parameters():,} parameters, {config.active_parameters():,} active "
        f"per token, on {run.device.type} in {dtype_name(run)}"
    )
    console.say(f"watch it: moe-microscope {options.log_dir / options.run}")


def validate(run: Run, progress: Progress, checkpoints: Checkpoints, log: Log) -> None:
    """Judge the model on held-out text, and keep it where it is the best so far."""
    loss = evaluate(run.model, run.held_out, run.device, run.dtype)
    progress.validation_loss = loss
    log.event(progress.step, "eval", {"loss": loss})
    if loss < progress.best_loss:
        progress.best_loss = loss
        save(BEST, run, progress, checkpoints, log)


def save(name: str, run: Run, progress: Progress, checkpoints: Checkpoints, log: Log) -> None:
    """Write a checkpoint, and force the log to disk with it: both tell the same story."""
    log.sync()  # before as well: a checkpoint is never ahead of its log
    validation = progress.validation_loss
    known = validation is not None and math.isfinite(validation)
    path = checkpoints.save(
        name,
        step=progress.step,
        model=run.model,
        tokenizer=run.corpus.tokenizer,
        optimizer=run.optimizer,
        batches=run.batches.generator,
        facts={
            "options": run.options.to_dict(),
            "validation_loss": validation if known else None,
        },
    )
    if name == LATEST:
        progress.saved_step = progress.step
    log.event(progress.step, "checkpoint", {"name": name, "path": str(path)})
    log.sync()


def conclude(run: Run, progress: Progress, console: Console, reason: str) -> None:
    """The last numbers, and a sample unless somebody wants the run to be over."""
    options = run.options
    console.summary(progress, "finished" if reason == "finished" else "stopped by a signal")
    console.say(f"checkpoint: {options.checkpoint_dir / options.run / LATEST}")
    console.say(f"verdict: moe-microscope check {options.log_dir / options.run}")
    if reason != "finished":
        return
    prompt_S = run.corpus.tokenizer.encode(run.prompt)
    try:
        ids = generate(run.model, prompt_S, max_new_tokens=SAMPLE_TOKENS, seed=options.seed)
    except ValueError as error:
        console.say(f"no sample: {error}")
        return
    console.sample(run.prompt, run.corpus.tokenizer.decode(ids))


class Log:
    """The recorder with a promise on top: what is wrong with it costs a warning, not the run."""

    def __init__(self, recorder: RunRecorder) -> None:
        self._recorder = recorder
        self._warned = False

    def step(self, record: dict[str, Any]) -> list[float | None] | None:
        """Write a step; the collapse index of every router, none where recording failed."""
        collapse: list[float | None] | None = self._try(self._recorder.record_step, **record)
        return collapse

    def event(self, step: int, event: str, values: dict[str, Any]) -> None:
        """Write an event."""
        self._try(self._recorder.record_event, step=step, event=event, values=values)

    def sync(self) -> None:
        """Force what is written to disk."""
        self._try(self._recorder.sync)

    def end(self, step: int, reason: str) -> None:
        """Write how the run ended, and close."""
        self._try(self._recorder.close, step=step, reason=reason)

    def _try(self, call: Callable[..., Any], **arguments: Any) -> Any:
        try:
            return call(**arguments)
        except Exception as error:
            if not self._warned:
                say(f"train.py: the run log has a gap, training goes on: {error!r}")
            self._warned = True
            return None


if __name__ == "__main__":
    sys.exit(run_command(app, None))
