"""The options that say how to read what other tools wrote."""

from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from microscope_tui.commands.config import UserConfig
from microscope_tui.console import USAGE, fail
from microscope_tui.runlog import safe_text
from microscope_tui.sources import FORMATS, Asked, BadMapping, rules_of


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class SourceOptions:
    """How to read files of other tools; a run log needs none of these.

    Parameters
    ----------
    source
        Format of the path, if it is not recognised: ``sources`` lists the names.
    map_
        QUANTITY=REGEX: keys of the source that hold this quantity of the run log (or ``share``),
        with the named groups ``layer`` and, for a number per expert, ``expert``. May be repeated;
        wins over the known keys.
    num_experts
        Experts per layer, if the source does not say it.
    top_k
        Experts per token, if the source does not say it; without it no balance is computed.
    pipeline_parallel
        Pipeline stages of a Megatron run: each numbers its own layers from 0.
    """

    source: str = ""
    map_: Annotated[tuple[str, ...], Parameter(name="--map", negative=(), show_default=False)] = ()
    num_experts: int | None = None
    top_k: int | None = None
    pipeline_parallel: int = 1

    def asked(self, user: UserConfig) -> Asked:
        """The options with the mapping of the config file; exits if they cannot be used."""
        if self.source and self.source not in FORMATS:
            known = ", ".join(FORMATS)
            fail(f"--source {safe_text(self.source, 40)}: no such format; there are {known}", USAGE)
        numbers = {
            "--num-experts": self.num_experts,
            "--top-k": self.top_k,
            "--pipeline-parallel": self.pipeline_parallel,
        }
        for name, number in numbers.items():
            if number is not None and number < 1:
                fail(f"{name} {number}: write a number from 1 up", USAGE)
        try:
            rules = rules_of(self.map_)
        except BadMapping as error:
            fail(f"--map {safe_text(error, 300)}", USAGE)
        return Asked(
            source=self.source,
            rules=(*rules, *user.rules),
            num_experts=self.num_experts,
            top_k=self.top_k,
            pipeline_parallel=self.pipeline_parallel,
        )


DEFAULT_OPTIONS = SourceOptions()
