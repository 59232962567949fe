"""The formats that are understood: their names, files, and what each can and cannot show.

The names are an API (``--source``). A format's module is imported when a file with a fitting name
was found, not before.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from microscope_tui.sources.assemble import RowRecords
from microscope_tui.sources.header import Asked
from microscope_tui.sources.keys import Keys
from microscope_tui.sources.reader import RecordReader, RowReader


class Module(Protocol):
    """What the module of a format offers besides its reader."""

    def recognises(self, path: Path) -> bool:
        """Whether the content at ``path`` is of this format.

        Raises:
            OSError: it cannot be read.
        """

    def runs(self, path: Path) -> Sequence[str]:
        """Names of the runs at ``path``, where there may be several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format."""

    name: str
    module_name: str
    reader: str
    """Its class in the module: a ``RowReader``, or a ``RecordReader`` if ``counts`` is set."""
    files: str
    """Names of files that its writers use, as a regular expression."""
    reads: str
    shows: str
    live: str = "as it grows"
    is_folder: bool = False
    """Whether a run is the folder around such a file."""
    has_runs: bool = False
    """Whether one place may hold several runs."""
    exact: bool = False
    """Whether it holds counts of its own instead of named numbers."""

    @property
    def module(self) -> Module:
        """The module that reads it."""
        return cast(Module, import_module(f"microscope_tui.sources.{self.module_name}"))

    def recognises(self, path: Path) -> bool:
        """Whether the content at ``path`` is of this format.

        Raises:
            OSError: it cannot be read.
        """
        return self.module.recognises(path)

    def runs(self, path: Path) -> Sequence[str]:
        """Names of the runs at ``path``; one empty name where it is a run itself."""
        return self.module.runs(path) if self.has_runs else [""]

    def open(self, path: Path, run: str, name: str, asked: Asked) -> RecordReader:
        """The reader of a run at ``path``.

        Args:
            run: one of ``runs``.
            name: the run's name, where the source has none.
        """
        reader: Callable[..., Any] = getattr(self.module, self.reader)
        if self.exact:
            return cast(RecordReader, reader(path, name, asked))
        place = [path, Keys(asked.rules), *([run] if self.has_runs else [])]
        return RowRecords(cast(RowReader, reader(*place)), name, self.name, asked)


_NAMED = "summaries per layer, and counts or shares where the keys have them"
_FORMATS = (
    Format(
        name="wandb",
        module_name="wandb",
        reader="WandbReader",
        files=r"run-.+\.wandb",
        reads="W&B .wandb files, online or offline",
        shows=_NAMED,
    ),
    Format(
        name="tensorboard",
        module_name="tensorboard",
        reader="TensorBoardReader",
        files=r"events\.out\.tfevents\..+",
        reads="a folder of TensorBoard event files",
        shows=_NAMED,
        is_folder=True,
    ),
    Format(
        name="trackio",
        module_name="trackio",
        reader="TrackioReader",
        files=r".+\.db",
        reads="Trackio databases",
        shows=_NAMED,
        has_runs=True,
    ),
    Format(
        name="mlflow",
        module_name="mlflow",
        reader="MlflowReader",
        files=r"mlflow\.db|meta\.yaml",
        reads="MLflow run folders and mlflow.db",
        shows=_NAMED,
        has_runs=True,
    ),
    Format(
        name="megatron",
        module_name="megatron",
        reader="MegatronReader",
        files=r"router_trace_rank\d+\.jsonl",
        reads="Megatron-LM routing traces, the folder of all ranks",
        shows="exact counts",
        is_folder=True,
        exact=True,
    ),
    Format(
        name="jsonl",
        module_name="jsonl",
        reader="JsonlReader",
        files=r"metrics\.jsonl|training\.jsonl",
        reads="JSON lines with a step, as prime-rl writes them",
        shows=_NAMED,
    ),
    Format(
        name="csv",
        module_name="csv_table",
        reader="CsvReader",
        files=r"metrics\.csv",
        reads="CSV with a column step: wide, or step,key,value",
        shows=_NAMED,
    ),
    Format(
        name="sglang",
        module_name="sglang",
        reader="SGLangReader",
        files=r"expert_distribution_recorder_.+\.pt",
        reads="SGLang's expert distribution dumps, the folder of the recorder or one dump",
        shows="exact counts",
        live="new dumps appear",
        is_folder=True,
        exact=True,
    ),
    Format(
        name="tensorrt-llm",
        module_name="tensorrt_llm",
        reader="TensorRTReader",
        files=r"meta_info\.json|rank\d+(?:_raw)?\.safetensors",
        reads="TensorRT-LLM expert statistics, the folder of all ranks",
        shows="exact counts",
        live="no",
        is_folder=True,
        exact=True,
    ),
    Format(
        name="imatrix",
        module_name="imatrix",
        reader="ImatrixReader",
        files=r".*imatrix.*\.(?:gguf|dat)",
        reads="importance matrices of llama.cpp (GGUF)",
        shows="exact counts of one calibration",
        live="no",
        exact=True,
    ),
    Format(
        name="streamlit",
        module_name="streamlit",
        reader="StreamlitReader",
        files=r"training_metrics\.json",
        reads="training_metrics.json of the older microscope",
        shows="shares of the first choice; its drop rates are simulated and not shown",
        live="when it is rewritten",
        exact=True,
    ),
    Format(
        name="prometheus",
        module_name="prometheus",
        reader="PrometheusReader",
        files=r"(?!)",  # only an address, never a file
        reads="http(s)://HOST/metrics, only when given as the path",
        shows=_NAMED,
        live="every 15 s (--every)",
    ),
)
FORMATS: Mapping[str, Format] = {form.name: form for form in _FORMATS}
"""Every format, in the order in which they are tried."""
FILE_NAMES = re.compile("|".join(f"(?:{form.files})" for form in _FORMATS))
"""Names that a known writer uses: in a folder only such files are opened."""
