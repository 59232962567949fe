"""The probe as a callback of the Hugging Face Trainer and of trainers built on it (TRL).

Trainer(model, ..., callbacks=[MicroscopeCallback("logs")])
"""

import base64
import logging
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from microscope_tui.probe.attaching import attach
from microscope_tui.probe.judge import Alert
from microscope_tui.probe.losses import StepLosses
from microscope_tui.probe.probe import Probe, claimed
from microscope_tui.probe.sites import Adapter, Site

_logger = logging.getLogger(__name__)
_MOST_NUMBERS = 64
"""Of one log of the Trainer."""


class MicroscopeCallback(TrainerCallback, ExportableState):
    """Writes ``logs/<run>/metrics.jsonl`` while the Trainer trains.

    Its state is part of the Trainer's checkpoints: a resumed run is judged as if never stopped.
    """

    def __init__(
        self,
        logs: str | os.PathLike[str] = "logs",
        run: str | None = None,
        *,
        every: int = 1,
        routers: Mapping[str, Adapter] | None = None,
        saliency: bool = False,
        on_alert: Callable[[Alert], Any] | None = None,
        on_collapse: str = "log",
    ) -> None:
        """Nothing is attached before the training begins.

        Args:
            logs: Folder of the runs.
            run: Name of the run; by default ``args.run_name``, else the name of ``output_dir``.
            on_collapse: ``log``, or ``stop``: end the training on all ranks one logged step
                (with several ranks two) after a critical COLLAPSE or DIVERGED; a warning does
                not.
            every, routers, saliency, on_alert: See ``attach``.

        Raises:
            ValueError: ``on_collapse`` is neither ``log`` nor ``stop``.
        """
        if on_collapse not in ("log", "stop"):
            raise ValueError(
                f"on_collapse is {on_collapse!r}: choose 'log' or 'stop' (if critical)"
            )
        self._logs, self._run, self._every = Path(logs), run, every
        self._routers, self._saliency, self._on_alert = routers, saliency, on_alert
        self._on_collapse = on_collapse
        self._learning_rate: float | None = None
        self._news: list[Alert] = []
        """Alerts of this step."""
        self._unlogged = 0
        """Alerts since the last log of the Trainer."""
        self._numbers: list[tuple[int, dict[str, float]]] = []
        """What the Trainer logged, with its step, until it is written behind the line of it."""
        self.kept: str | None = None
        """State of the judge in a checkpoint, base64."""
        self.marks: list[float | None] = []
        """Of the MoE weights in the checkpoint, see ``_marks``."""
        self.probe: Probe | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """A Trainer that resumes has set its step already."""
        kept = (state.stateful_callbacks or {}).get(type(self).__name__)
        attributes = kept["attributes"] if isinstance(kept, dict) else vars(self)
        text, marked = attributes.get("kept"), attributes.get("marks") or []
        run = self._run or args.run_name or Path(args.output_dir).name or "run"
        folder = (self._logs / run).resolve()
        for left in (self.probe, claimed.get(folder)):
            if left is not None:
                _logger.warning("%s: the probe of an earlier training is detached", left.folder)
                left.detach("failed")
        self._numbers = []
        self.probe = attach(
            kw["model"],
            folder,
            every=self._every,
            routers=self._routers,
            saliency=self._saliency,
            start_step=state.global_step + 1,
            judgement=base64.b64decode(text) if text and state.global_step else None,
            on_alert=self._alarm,
            planned_steps=state.max_steps,
            trainer_args=args,
        )
        if state.global_step and (names := _differing(self.probe.sites, marked)):
            _logger.warning(
                "resumed after step %d, and the MoE weights of %s are not those of the checkpoint: "
                "transformers loads a checkpoint only in part where it saves experts under other "
                "names (huggingface/transformers#48805); load the model with from_pretrained from "
                "the checkpoint before you resume",
                state.global_step,
                ", ".join(names[:8]),
            )
        self.probe.hooks.losses = StepLosses(
            self.probe.hooks.model,
            self.probe.ranks.counting,
            across_ranks=bool(args.average_tokens_across_devices),
        )

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Read gradients and learning rate now: at the end of the step the gradients are
        cleared.
        """
        if self.probe is not None:
            self.probe.read_gradients()
        optimizer = kw.get("optimizer")
        groups = getattr(optimizer, "param_groups", None)
        rate = groups[0].get("lr") if groups else None
        self._learning_rate = float(rate) if isinstance(rate, int | float) else None

    def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> Any:
        """Log the step, and add its alerts to the Trainer's history; may end the training."""
        if self.probe is None:
            return control
        self._write_numbers(self.probe)  # here the line of the step before is due in any case
        self.probe.step(step=state.global_step, learning_rate=self._learning_rate)
        # What reporters get depends on the order of callbacks; the history is the Trainer's own.
        for alert in self._news:
            entry = {"moe_alert": str(alert), "epoch": state.epoch, "step": alert.step}
            state.log_history.append(entry)
        self._unlogged += len(self._news)
        self._news = []
        if self.probe.stops:
            control.should_training_stop = True
        return control

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kw: Any
    ) -> None:
        """Keep the numbers for the run log; add the number of new alerts to the logs of the
        callbacks after this one."""
        if found := _numbers(logs or {}):
            self._numbers.append((state.global_step, found))
        if logs is not None and self._unlogged:
            logs["moe_alerts"] = self._unlogged
        self._unlogged = 0

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Any = None, **kw: Any
    ) -> None:
        """The loss of an evaluation becomes an event of the log."""
        loss = (metrics or {}).get("eval_loss")
        if self.probe is not None and loss is not None:
            self.probe.event("eval", {"loss": loss}, state.global_step)

    def on_save(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Write the checkpoint as an event, so that advice can name it."""
        if self.probe is not None:
            self.probe.event("checkpoint", {"step": state.global_step}, state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
        """Print the verdict and close the log, with the reason: finished, stopped or collapse."""
        if self.probe is not None:
            self._write_numbers(self.probe)
            if verdict := self.probe.verdict():
                _logger.info("%s", verdict)
            reason = "finished" if state.global_step >= state.max_steps else "stopped"
            self.probe.detach("collapse" if self.probe.stops else reason)
            self.probe = None

    def state(self) -> dict[str, Any]:
        """What the Trainer saves in ``trainer_state.json``."""
        if self.probe is not None:
            judgement, self.marks = self.probe.state_dict()["judgement"], _marks(self.probe.sites)
            self.kept = None if judgement is None else base64.b64encode(judgement).decode()
        settings = {"logs": str(self._logs), "run": self._run, "every": self._every}
        settings |= {"saliency": self._saliency, "on_collapse": self._on_collapse}
        return {"args": settings, "attributes": {"kept": self.kept, "marks": self.marks}}

    def _write_numbers(self, probe: Probe) -> None:
        for step, values in self._numbers:
            probe.event("numbers", values, step)
        self._numbers = []

    def _alarm(self, alert: Alert) -> None:
        if alert.severity != "info":
            self._news.append(alert)
        if alert.is_collapse and self._on_collapse == "stop" and self.probe is not None:
            self.probe.wants_stop = True
            _logger.warning("on_collapse='stop': the critical %s ends the training", alert.rule)
        if self._on_alert is not None:
            self._on_alert(alert)


def _numbers(logs: Mapping[str, Any]) -> dict[str, float]:
    """The first finite numbers of the Trainer's log, by name."""
    numbers = {
        str(name): float(value)
        for name, value in logs.items()
        # An integer may be larger than any float.
        if isinstance(value, int | float) and abs(value) <= sys.float_info.max
    }
    return dict(islice(numbers.items(), _MOST_NUMBERS))


def _marks(sites: Sequence[Site]) -> list[float | None]:
    """A number per router that changes with its weights and those of its experts; ``None`` if this
    process holds only a part of them."""
    return [_mark([*(site.block or site.module).parameters()]) for site in sites]


def _mark(weights: Sequence[Tensor]) -> float | None:
    if any(hasattr(weight, "device_mesh") or not weight.numel() for weight in weights):
        return None
    # Samples are cheap, and different weights do not have the same norms.
    samples = [weight.detach().flatten()[:4096].double() for weight in weights]
    return math.fsum(float(torch.linalg.vector_norm(sample)) for sample in samples)


def _differing(sites: Sequence[Site], kept: Sequence[float | None]) -> list[str]:
    """Names of the routers whose weights, or those of their experts, differ from ``kept``.

    The Trainer of transformers loads a checkpoint in part if its weights have other names than
    the model's: without experts that were saved one by one.
    """
    if len(kept) != len(sites):
        return []
    return [
        site.name
        for site, old, new in zip(sites, kept, _marks(sites), strict=True)
        if old is not None and new is not None and abs(new - old) > 1e-5 * abs(old)
    ]
