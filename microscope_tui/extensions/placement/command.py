"""``moe-microscope placement``: where experts should live, scored on steps it was not fitted to."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from msgspec.structs import replace

from microscope_tui.commands.config import read_config
from microscope_tui.commands.console import (
    NO_VERDICT,
    PIPE,
    USAGE,
    fail,
    fail_to_read,
    newest_file,
    print_data,
    print_record,
    read,
    say,
    show_progress,
    to_file,
)
from microscope_tui.commands.options import (
    DEFAULT_SOURCE,
    AsJson,
    SourceOptions,
    refuse_below,
    step_range,
)
from microscope_tui.draw.words import listed
from microscope_tui.extensions.placement.files import FORMS, BadFile, read_form, write_form
from microscope_tui.extensions.placement.report import placement_json, placement_text
from microscope_tui.extensions.placement.study import BadWindow, Request, Study, study
from microscope_tui.extensions.placement.text import repair_first
from microscope_tui.runlog import ROUTING_NAME, RunFile, UnknownFormat
from microscope_tui.watch import VERDICT_MEMORY, view_of
from microscope_tui.watch.cluster import BadCluster
from microscope_tui.watch.counted import NoCounts, read_counts

if TYPE_CHECKING:
    Form = str
else:
    Form = Literal[tuple(FORMS)]
_PATH = "A run, a folder (its newest run), a probe, or a file of another tool, with counts."


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class PlacementOptions:
    """The ranks, the steps, the price of a move, and the files of engines.

    Parameters
    ----------
    ranks
        Devices that share the experts of a layer; by default the run's expert_parallel_size.
    nodes
        Nodes that the ranks are on.
    groups
        Groups of experts; each stays on one node if the nodes divide them.
    replicas
        Extra copies of experts, on all ranks together; engines count them as E + S slots.
    fit
        A:B, the first and the last step to fit to; by default the first half of the counted steps.
    score
        A:B, the steps to score; by default those after --fit.
    expert_bytes
        Bytes of one expert of one layer; a rank receives 25 GB/s.
    step_time
        Seconds of a step: with --expert-bytes, after how many steps a move is paid back.
    expert_share
        Share of a balanced step that the experts take: with --step-time, what a move saves.
    write
        FORM FILE: write the placement as an engine reads it, whatever the verdict: sglang,
        tensorrt-llm or ascend.
    check
        Score the placement in this file of an engine instead of a new one.
    hidden_layers
        Layers of the model with the dense ones, for sglang, if the run does not have them.
    """

    ranks: int | None = None
    nodes: int = 1
    groups: int = 1
    replicas: int = 0
    fit: str = ""
    score: str = ""
    expert_bytes: float = 0.0
    step_time: float = 0.0
    expert_share: float = 1.0
    write: Annotated[tuple[Form, Path] | None, Parameter(negative=())] = None
    check: Path | None = None
    hidden_layers: int | None = None
    as_json: AsJson = False

    def request(self) -> Request:
        """The request for a study; an option out of range ends the program with a message."""
        refuse_below(1, ranks=self.ranks, nodes=self.nodes, groups=self.groups)
        refuse_below(1, hidden_layers=self.hidden_layers)
        refuse_below(0, replicas=self.replicas)
        prices = self.expert_bytes, self.step_time  # a sum with NaN is not below infinity
        if not (0 < self.expert_share <= 1 and 0 <= min(prices) <= sum(prices) < float("inf")):
            fail("write --expert-share up to 1, --expert-bytes and --step-time from 0 up", USAGE)
        fit, score = step_range("--fit", self.fit), step_range("--score", self.score)
        keys = ("nodes", "groups", "replicas", "expert_bytes", "step_time", "expert_share")
        given = {key: getattr(self, key) for key in keys}
        return Request(**given, ranks=self.ranks or 1, fit=fit, score=score)


def placement(
    path: Annotated[Path, Parameter(help=_PATH)],
    /,
    options: PlacementOptions = PlacementOptions(),
    reading: SourceOptions = DEFAULT_SOURCE,
) -> int:
    """Place experts on ranks, and score that on later steps: 0 pays, 1 does not, 3 no counts.

    A run with a collapse or a critical finding is repaired first: its loads will change (1).
    """
    request = options.request()
    run = newest_file(reading.search(path.parent if path.name == ROUTING_NAME else path))
    target = options.write[1] if options.write is not None else run.path.parent
    if target == PIPE or (target.is_file() and target.samefile(run.path)):
        fail(f"--write {target}: name a new file", USAGE)
    try:
        found = _study(run, request, options)
    except (BadCluster, BadWindow, BadFile) as error:
        fail(str(error), USAGE)
    except NoCounts as error:
        fail(f"{run.path}: {error}", NO_VERDICT)
    except (OSError, UnknownFormat) as error:
        fail_to_read(run, error)
    finally:
        show_progress("")
    watch = read(run, read_config().criteria, VERDICT_MEMORY)
    fault = repair_first(view_of(watch, 1, 1).alerts)
    if options.as_json:
        print_record(placement_json(found, fault))
    else:
        print_data(placement_text(found, fault))
    return int(bool(found.reason or fault))


def _study(run: RunFile, request: Request, options: PlacementOptions) -> Study:
    counts = read_counts(run, lambda share: show_progress(f"reading: {share:4.0%}"))
    routers = [layer.router for layer in counts.layers]
    if options.ranks is None:
        request = replace(request, ranks=counts.run.expert_parallel_size)
        if request.ranks == 1:
            raise BadCluster("the run has no expert parallelism: write --ranks R")
    given = None
    depths, experts = [r.depth for r in routers], [r.num_experts for r in routers]
    hidden_layers = options.hidden_layers or counts.run.hidden_layers
    if (options.check or options.write) and len(routers) < len(counts.run.routers):
        missing = listed([r.name for r in counts.run.routers if r not in routers])
        raise BadFile(f"{missing}: no counts, and a file of an engine has every MoE layer")
    if options.check is not None:
        given = read_form(options.check, depths, experts, request.ranks, hidden_layers)
        copies = sum(map(len, given[0])) - experts[0]
        if request.replicas not in (0, copies):
            raise BadFile(f"{options.check}: {copies:,} extra copies, not {request.replicas:,}")
        request = replace(request, replicas=copies)
    found = study(counts, request, given, lambda share: show_progress(f"fitting: {share:4.0%}"))
    if options.write is not None:
        form, path = options.write
        placements = found.chosen.placements
        text = write_form(form, placements, depths, hidden_layers=hidden_layers)
        with to_file(path) as file:
            file.write(text)
        say(f"written: {path}, of layers at depth {listed(depths)}; give it to {FORMS[form]}")
    return found
