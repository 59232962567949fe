"""``--help``, ``--help-all`` and ``--version`` of ``train.py``, answered without torch.

Importing torch takes seconds. ``--help`` shows the options that most runs need.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Group, Parameter
from cyclopts.help import DefaultFormatter

from moe_model import FAILED, PRESETS, ModelConfig, need_packages, run_command, version
from moe_model.training.options import RUN_DEFAULTS, Options

if TYPE_CHECKING:
    from cyclopts.help import HelpPanel
    from rich.console import Console, ConsoleOptions

COMMON = {
    "--preset", "--data", "--steps", "--batch-size", "--lr", "--balance", "--bias-update-rate",
    "--force-collapse", "--run", "--resume", "--on-collapse", "--help-all",
}  # fmt: skip

BYTES_PER_PARAMETER = 16
"""In training: weight, gradient and two moments in fp32."""
BYTES_PER_WEIGHT = 4
SAVED_BYTES_PER_PARAMETER = 12
"""In a checkpoint: without the gradient."""
_VOCABULARY = {"char": 100, "bpe": 8192}
"""Vocabulary of a typical text; with characters it hardly changes the size of the model."""


class _Page(DefaultFormatter):
    """A page of help: examples first, and options that few need only with ``--help-all``."""

    def __init__(self, examples: str, *, everything: bool) -> None:
        super().__init__()
        self._examples = examples
        self._everything = everything

    def render_description(self, console: Console, options: ConsoleOptions, text: object) -> None:
        super().render_description(console, options, text)
        console.print(f"{self._examples}\n", markup=False, highlight=False)

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        shown = [one for one in panel.entries if self._everything or COMMON & set(one.names)]
        if shown:
            super().__call__(console, options, panel.copy(entries=shown))


def new_app(doc: str, *, everything: bool = False, **settings: Any) -> App:
    """The cyclopts app of ``train.py``, without its command.

    Args:
        doc: The module's docstring: a summary, then examples.
        everything: Whether its help shows every option, not only the common ones.
        settings: Of the app.
    """
    summary, examples = doc.split("\n\n")[:2]
    app = App(
        name="train.py",
        help=summary,
        help_formatter=_Page(examples, everything=everything),
        help_epilogue=_presets(),
        version=version,
        usage="Usage: python train.py [OPTIONS]",
        group_commands=Group("Help", sort_key=0),
        **settings,
    )

    def help_all() -> None:
        """Display every option, and every field of the model."""
        full = new_app(doc, everything=True)
        full.default(app.default_command)
        full.help_print([])

    app.command(help_all, name="--help-all")
    return app


def answer_without_torch(doc: str) -> None:
    """Exit here if the command line only asks for help, or if a package for training is missing."""
    app = new_app(doc)

    @app.default
    def train(options: Annotated[Options, Parameter(name="*")] = Options()) -> None:  # noqa: B008  # frozen
        pass

    if {"--help", "-h", "--help-all", "--version"} & set(sys.argv[1:]):
        sys.exit(run_command(app, None))
    need_packages("train.py", install=".[train]", code=FAILED)


def _presets() -> str:
    rows = [("--preset", "parameters", "per token", "steps", "memory", "checkpoint")]
    for name, defaults in RUN_DEFAULTS.items():
        fields = {"vocab_size": _VOCABULARY[defaults["tokenizer"]], **PRESETS[name]}
        config = ModelConfig.from_dict(fields)
        size = config.parameters()
        main = _count(config.parameters(multi_token_prediction=False))
        active, steps = _count(config.active_parameters()), f"{defaults['steps']:,}"
        memory = _bytes(BYTES_PER_PARAMETER * size)  # without activations
        rows.append((name, main, active, steps, memory, _bytes(SAVED_BYTES_PER_PARAMETER * size)))
    return "\n".join("    {:<12}{:>11}{:>11}{:>9}{:>9}{:>12}".format(*row) for row in rows)


def main_memory() -> int:
    """Main memory in bytes; asking for that of a GPU would need torch."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _count(number: int) -> str:
    return f"{number / 1e9:.0f} B" if number >= 1e9 else f"{number / 1e6:.1f} M"


def _bytes(number: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1e6:.0f} MB"
