"""The options of ``probe``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from microscope_tui.console import USAGE, fail

DEFAULT_WINDOW = 2048
_SWITCH = Parameter(negative=())


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
    generate: Annotated[bool, _SWITCH] = False
    download: Annotated[bool, _SWITCH] = False
    window: int | None = None
    batch_size: int | None = None
    output: Annotated[Path | None, Parameter(name=["-o", "--output"])] = None

    def refuse_nonsense(self) -> None:
        """Exit with a usage error if a number is out of range or the folder exists."""
        numbers = (
            ("tokens", self.tokens),
            ("window", self.window),
            ("batch-size", self.batch_size),
        )
        for name, value in numbers:
            if value is not None and value < 1:
                fail(f"--{name} {value}: choose 1 or more", USAGE)
        if self.output is not None and self.output.exists():
            fail(f"{self.output}: exists already; name another -o, or remove it", USAGE)


DEFAULT_PROBE = ProbeOptions()
