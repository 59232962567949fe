"""What is wrong with the settings of a model is reported at ``attach``, before any step.

The same findings are in the log with the first line, so that ``check`` tells them too; there they
are not said again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from microscope_tui.probe.header import describe, profile
from microscope_tui.probe.judge import Alert, judged_by_its_settings
from microscope_tui.probe.plain import plain
from microscope_tui.probe.sites import Site
from microscope_tui.probe.step_sums import Layout
from microscope_tui.runlog import FORMAT_VERSION, encode_record

_logger = logging.getLogger(__name__)


def say(alert: Alert, when: str) -> None:
    """Through ``logging``: a note as information, the rest as a warning."""
    tell = _logger.info if alert.severity == "info" else _logger.warning
    tell("%s: %s: %s. %s", when, alert.rule, alert.verdict, alert.next)


def setting_of(alert: Alert) -> str:
    """What an alert of LINT is about, whenever it began."""
    return alert.verdict.partition(" since ")[0]


def check_settings(model: nn.Module, sites: Sequence[Site], mode: str) -> set[str]:
    """Say what LINT finds in the model and its configuration; returns what was said."""
    # Where k is not known yet, nothing that follows from it is claimed.
    top_k = [site.top_k or site.num_experts for site in sites]
    rows = Layout.of(sites, [1] * len(sites), top_k).rows
    header = {"kind": "run", "format_version": FORMAT_VERSION, "run": "run", "planned_steps": None}
    header |= {"profile": "eval" if mode == "eval" else profile(model)}
    header |= {"source": {"counts": "exact"}} | describe(model, sites, rows, 1)
    said = set()
    for alert in judged_by_its_settings(encode_record(plain(header))):
        say(replace(alert, verdict=setting_of(alert)), "attach")
        said.add(setting_of(alert))
    return said
