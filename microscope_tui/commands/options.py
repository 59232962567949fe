"""The options of the commands: one dataclass for each purpose, with the checks of their values.

cyclopts makes options and help of the fields and docstrings.
"""

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from cyclopts import Group, Parameter

from microscope_tui.app.remembered import load_view
from microscope_tui.commands.config import GlyphChoice, Theme, UserConfig, read_config
from microscope_tui.commands.console import PIPE, USAGE, fail
from microscope_tui.diagnosis import RULES
from microscope_tui.runlog import safe_text
from microscope_tui.sources import FORMATS, BadMapping, Search, SourceRequest, rules_of
from microscope_tui.sources.catalogue import source_named
from microscope_tui.watch.cost import CostRequest

_STEPS = re.compile(r"(\d{0,18}):(\d{0,18})")
WAIT_S = 600
"""A restarted job needs minutes until its run resumes."""
DEFAULT_WINDOW = 2048
_FOR_FORMATS = ("every", "as_json", "format_only")
"""The options of ``check`` that do not concern the judgement of a run."""
Format = Literal["text", "json", "svg"]
_FORMAT_OF: dict[str, Format] = {".svg": "svg", ".json": "json"}
_CONVERTED = "snapshot -o NAME.svg, then `rsvg-convert NAME.svg -o NAME{}`"
_INSTEAD = {
    ".csv": "export -o NAME.csv",
    ".parquet": "export -o NAME.parquet",
    ".xlsx": "export -o NAME.csv",
    ".svg": "snapshot -o NAME.svg",
    ".json": "snapshot -o NAME.json",
    ".html": "snapshot -o NAME.svg",
    ".png": _CONVERTED.format(".png"),
    ".pdf": _CONVERTED.format(".pdf"),
}
"""What to use for an ending that a command does not write."""
Switch = Annotated[bool, Parameter(negative=())]
AsJson = Annotated[bool, Parameter(name="--json", negative=(), help="Print the same as JSON.")]
_PATH_HELP = "A run, a folder (its newest run), a file of another tool, or - (a pipe)."
RunPath = Annotated[Path, Parameter(help=_PATH_HELP)]
Output = Annotated[Path | None, Parameter(name=["-o", "--output"])]
_Several = Annotated[tuple[str, ...], Parameter(negative=(), show_default=False)]


def refuse_below(least: int, **given: int | None) -> None:
    """Exit with a usage error if an option is below ``least``."""
    for name, number in given.items():
        if number is not None and number < least:
            fail(f"--{_spelled(name)} {number}: write a number from {least} up", USAGE)


def step_range(name: str, steps: str) -> tuple[int | None, int | None]:
    """First and last step of A:B, ``None`` for an open end; exits if it cannot be read."""
    if not steps:
        return None, None
    found = _STEPS.fullmatch(steps)
    first, last = found.groups() if found else ("0", "-1")
    if first and last and int(first) > int(last):
        fail(f"{name} {safe_text(steps, 40)}: write A:B, for example 100:200", USAGE)
    return int(first or 0), int(last) if last else None


_Name = TypeVar("_Name", bound=str)


def format_of(
    output: Path | None, given: _Name | None, endings: Mapping[str, _Name], default: _Name
) -> _Name:
    """The format of ``--format`` or of the output's name; exits if they contradict each other, or
    if the name ends in a format that the command does not write."""
    ending = output.suffix.lower() if output is not None else ""
    named = endings.get(ending)
    if named is None and ending in _INSTEAD:
        fail(f"-o {output}: this command writes no {ending}; use {_INSTEAD[ending]}", USAGE)
    if named is not None and given not in (None, named):
        why = f"the name ends in {ending}, but --format is {given}"
        fail(f"-o {output}: {why}; leave one of them out", USAGE)
    return given or named or default


def _spelled(name: str) -> str:
    return name.replace("_", "-")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class CheckOptions:
    """How to judge, what to print, and what to do about it.

    Parameters
    ----------
    every
        Judge every run and exit with the worst code.
    profile
        Judge as this kind of run, not as in the header: finetune counts only changes, in eval
        nothing is trained.
    since_step
        Count only findings that began at this step or later, or are active.
    new_only
        With --since-step: leave out active findings that began earlier; a note lists them.
    fail_on
        With ``crit`` a warning exits with 0.
    ignore
        Leave out this rule (see ``explain``); may be repeated.
    baseline
        Judge against the last steps of this run (log or folder); experts starved or dead there do
        not count.
    follow
        Print alerts until the newest run ends, then the report (--json: an object a line). Waits
        for a log.
    wait
        With --follow: seconds to wait for a stopped or silent run to resume, for example when its
        job is restarted; 0 does not wait.
    notify_command
        With --follow: run this shell command for every alert, with the finding as a line of JSON
        on its input.
    prometheus
        Write gauges for the node exporter to this file.
    format_only
        Validate the file against the log format instead: 0, or 3 with line and reason of every
        error.
    config
        Limits of the rules, as [rules.NAME] tables in TOML; by default those in your config.toml.
    """

    every: Annotated[bool, Parameter(name="--all", negative=())] = False
    as_json: AsJson = False
    profile: Literal["pretrain", "finetune", "eval"] | None = None
    since_step: int = 0
    new_only: Switch = False
    fail_on: Literal["warn", "crit"] = "warn"
    ignore: _Several = ()
    baseline: Path | None = None
    follow: Switch = False
    wait: int = WAIT_S
    notify_command: str | None = None
    prometheus: Path | None = None
    format_only: Switch = False
    config: Path | None = None

    def refuse_invalid(self) -> None:
        """Exit with a usage error if the options contradict each other."""
        if unknown := [name for name in self.ignore if name.upper() not in RULES]:
            there = f"no such rule; there are {', '.join(RULES)}"
            fail(f"--ignore {safe_text(unknown[0], 40)}: {there}", USAGE)
        if self.since_step < 0:
            fail(f"--since-step {self.since_step}: the first step of a run is 1", USAGE)
        if self.new_only and not self.since_step:
            fail("--new-only leaves out what began earlier: add --since-step N", USAGE)
        if self.format_only and (words := self._for_judging()):
            fail(f"--format-only does not judge runs: remove {words}", USAGE)
        if self.follow and self.every:
            fail("--follow follows the newest run: leave --all out, or name the run", USAGE)
        self._refuse_while_following()
        file = self.prometheus
        if file is not None and (file.suffix != ".prom" or not file.parent.is_dir()):
            fail(f"--prometheus {file}: name a file NAME.prom in a folder that exists", USAGE)

    def _refuse_while_following(self) -> None:
        if self.wait < 0:
            fail(f"--wait {self.wait}: write seconds, 0 for none", USAGE)
        if self.wait != WAIT_S and not self.follow:
            fail(f"--wait {self.wait} waits for a run to resume: add --follow", USAGE)
        if self.notify_command is not None and not self.follow:
            fail("--notify-command reports alerts as they happen: add --follow", USAGE)
        if self.notify_command is not None and not self.notify_command.strip():
            fail("--notify-command is empty: give a command for the shell", USAGE)

    def _for_judging(self) -> str:
        judging = [entry.name for entry in fields(self) if entry.name not in _FOR_FORMATS]
        given = [name for name in judging if getattr(self, name) != getattr(DEFAULT_CHECK, name)]
        return ", ".join(f"--{_spelled(name)}" for name in given)


@Parameter(name="*", group=Group("Files of other tools", sort_key=1))
@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How to read files of other tools; a run log needs none of these.

    Parameters
    ----------
    source
        Format, if not recognised (see ``moe-microscope sources``).
    map_
        QUANTITY=REGEX: which keys hold a quantity, for example
        ``'share=load_(?P<layer>\\d+)_(?P<expert>\\d+)'``; repeatable.
    num_experts
        Experts per layer, if the file does not contain it.
    top_k
        Experts per token, if not in the file; balance needs it.
    pipeline_parallel
        Pipeline stages of a Megatron run: each numbers its own layers from 0.
    remembered
        Use the keys and top-k confirmed on the screen.
    """

    source: str = ""
    map_: Annotated[_Several, Parameter(name="--map")] = ()
    num_experts: int | None = None
    top_k: int | None = None
    pipeline_parallel: int = 1
    remembered: Switch = False

    def request(self, user: UserConfig, path: Path) -> SourceRequest:
        """The options with the mapping of the config file; exits if they cannot be used."""
        if self.source and source_named(self.source) is None:
            known = ", ".join(FORMATS)
            fail(f"--source {safe_text(self.source, 40)}: no such format; there are {known}", USAGE)
        experts, top_k, stages = self.num_experts, self.top_k, self.pipeline_parallel
        refuse_below(1, num_experts=experts, top_k=top_k, pipeline_parallel=stages)
        try:
            rules = rules_of(self.map_)
        except BadMapping as error:
            fail(f"--map {safe_text(error, 300)}", USAGE)
        rules = (*rules, *user.rules)
        request = SourceRequest(self.source, rules, (), experts, top_k, pipeline_parallel=stages)
        if self.remembered:
            request = load_view(path).applied(request)
        return request

    def note(self, path: Path) -> Iterator[str]:
        """What was confirmed on the screen, if it differs from ``--map`` and ``--top-k``."""
        kept = load_view(path)
        if not set(kept.maps) <= set(self.map_):
            options = " ".join(f"--map {shlex.quote(one)}" for one in kept.maps)
            said = "keys were confirmed on the screen for this path; --remembered uses them:"
            yield f"{said} {options}"
        if (k := kept.top_k) and not (self.top_k or self.remembered):
            yield f"k = {k} is remembered for the screen: pass --top-k {k} or --remembered"

    def search(self, path: Path) -> Search:
        """The search for runs at ``path``, with these options and your own config file."""
        return Search(path, self.request(read_config(), path))


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Ranks:
    """Where the experts of a layer are.

    Parameters
    ----------
    ranks
        Report what uneven load costs on so many ranks.
    nodes
        Nodes that the ranks are on.
    expert_share
        Share of a balanced step that is spent in the experts: with it, the cost of a whole step.
    """

    ranks: int | None = None
    nodes: int = 1
    expert_share: float | None = None

    def request(self) -> CostRequest:
        """The options as ``cost_of`` takes them; exits with a usage error if they do not fit."""
        refuse_below(1, ranks=self.ranks, nodes=self.nodes)
        if (self.ranks or self.nodes) % self.nodes:
            fail(f"--nodes {self.nodes}: --ranks {self.ranks} does not divide by it", USAGE)
        if self.expert_share is not None and not 0 < self.expert_share <= 1:
            fail(f"--expert-share {self.expert_share:g}: write a share, above 0 up to 1", USAGE)
        return CostRequest(self.ranks, self.nodes, self.expert_share)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """How to print a screen, and where to.

    Parameters
    ----------
    format_
        By default what the name of the output ends in, .svg or .json, else text. json prints the
        view as data: the step, every layer, and the findings.
    size
        COLUMNSxROWS; by default 120x40, and 100 columns for the main screen as text.
    glyphs
        Characters for curves.
    theme
        Colours of a picture: light for papers; by default the theme of your config.toml, or dark.
    frame
        Draw a window around the picture.
    animate
        A:B plays the main screen from step A to step B, as an SVG.
    output
        Write to this file instead of standard output.
    """

    format_: Annotated[Format | None, Parameter(name="--format")] = None
    size: str = ""
    glyphs: GlyphChoice = "auto"
    theme: Theme | None = None
    frame: Switch = False
    animate: str = ""
    output: Output = None

    @property
    def format(self) -> Format:
        """The format: as given, or by the ending of the output; exits as ``format_of`` does."""
        return format_of(self.output, self.format_, _FORMAT_OF, "text")

    @property
    def alphabet(self) -> GlyphChoice:
        """The characters to draw with; a file gets braille, whatever this terminal can show."""
        to_terminal = self.output in (None, PIPE) and self.format == "text"
        if self.glyphs == "auto" and not to_terminal:
            return "braille"
        return self.glyphs

    def refuse_invalid(self) -> None:
        """Exit with a usage error if the options contradict each other."""
        form = self.format  # exits if the name of the output does not fit
        if self.frame and form != "svg":
            fail("--frame draws a window around a picture: add --format svg", USAGE)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class ProbeOptions:
    """What to read, how, and where to write it.

    Parameters
    ----------
    tokens
        Trace at most this many tokens, shared evenly between the slices.
    dtype
        Number format of the weights; auto keeps that of the files.
    device
        Device; auto uses a GPU if there is one.
    generate
        Use the beginning of each text as a prompt, let the model continue it by up to 256 tokens
        (sampled, with a fixed seed), and trace both; what it writes is the slice "NAME written".
    download
        Fetch a model that is named ORG/NAME; its size is printed first.
    window
        Tokens that are read at once; by default what the model reads at most, but no more than
        2,048. Longer texts are read in several windows.
    batch_size
        Windows in one forward pass; by default as many as hold 2,048 tokens, on a GPU 16,384.
    output
        Folder to write, which must not exist; by default logs/probe-MODEL-DATE. It contains the
        text itself.
    """

    tokens: int = 1_000_000
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    generate: Switch = False
    download: Switch = False
    window: int | None = None
    batch_size: int | None = None
    output: Output = None

    def refuse_invalid(self) -> None:
        """Exit with a usage error if a number is out of range or the folder exists."""
        refuse_below(1, tokens=self.tokens, window=self.window, batch_size=self.batch_size)
        if self.output is not None and self.output.exists():
            fail(f"{self.output}: exists already; name another -o, or remove it", USAGE)


DEFAULT_CHECK, DEFAULT_SOURCE, DEFAULT_PROBE = CheckOptions(), SourceOptions(), ProbeOptions()
RANKS = Ranks()
PICTURE = PictureOptions()
