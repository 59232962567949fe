"""The formats that are understood: their names, files, and what each can and cannot show.

The names are an API (``--source``). A format's module is imported when a file with a fitting name
was found, not before.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from microscope_tui.sources.assemble import RowRecords
from microscope_tui.sources.header import Asked
from microscope_tui.sources.keys import Keys
from microscope_tui.sources.reader import RecordReader, RowReader

Arguments = Callable[[Path, str, Asked], Sequence[object]]
"""From a path, a run in it and the options to the arguments of a ``RowReader``."""


def _of_path(path: Path, run: str, asked: Asked) -> Sequence[object]:
    return path, Keys(asked.rules)


def _of_run(path: Path, run: str, asked: Asked) -> Sequence[object]:
    return path, Keys(asked.rules), run


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """One format."""

    name: str
    module_name: str
    reader: str
    """Its class in the module: a ``RowReader``, or a ``RecordReader`` without ``arguments``."""
    reads: str
    shows: str
    live: str = "as it grows"
    files: str = "(?!)"
    """Names of files that its writers use, as a regular expression."""
    folders: str = "(?!)"
    """The same where the run is the folder around the file."""
    arguments: Arguments | None = None
    by_mapping: bool = False
    """Whether the rules of the user decide what is of this format."""
    has_runs: bool = False
    """Whether one file may hold several runs."""

    @property
    def module(self) -> Any:
        """The module that reads it."""
        return import_module(f"microscope_tui.sources.{self.module_name}")

    def place_of(self, file: Path) -> Path | None:
        """Where the run of a file in a folder is: the file or its folder; ``None``: not ours."""
        if re.fullmatch(self.folders, file.name):
            return file.parent
        return file if re.fullmatch(self.files, file.name) else None

    def recognises(self, path: Path, asked: Asked) -> bool:
        """Whether the content at ``path`` is of this format.

        Raises:
            OSError: it cannot be read.
        """
        return bool(self.module.recognises(path, *([asked.rules] if self.by_mapping else [])))

    def runs(self, path: Path, asked: Asked) -> Sequence[str]:
        """Names of the runs at ``path``; one empty name where it is a run itself.

        Raises:
            OSError: it cannot be read.
        """
        return cast(Sequence[str], self.module.runs(path, asked.rules)) if self.has_runs else [""]

    def open(self, path: Path, run: str, name: str, asked: Asked) -> RecordReader:
        """The reader of a run at ``path``.

        Args:
            run: one of ``runs``.
            name: the run's name, where the source has none.
        """
        reader = getattr(self.module, self.reader)
        if self.arguments is None:
            return cast(RecordReader, reader(path, name, asked))
        rows = cast(RowReader, reader(*self.arguments(path, run, asked)))
        return RowRecords(rows, name, self.name, asked)


_NAMED = "summaries per layer, and counts or shares where the keys have them"
_FORMATS = (
    Format(
        name="wandb",
        module_name="wandb",
        reader="WandbReader",
        files=r"run-.+\.wandb",
        reads="W&B .wandb files, online or offline",
        shows=_NAMED,
        arguments=_of_path,
    ),
    Format(
        name="tensorboard",
        module_name="tensorboard",
        reader="TensorBoardReader",
        folders=r"events\.out\.tfevents\..+",
        reads="a folder of TensorBoard event files",
        shows=_NAMED,
        arguments=_of_path,
    ),
    Format(
        name="trackio",
        module_name="trackio",
        reader="TrackioReader",
        files=r".+\.db",
        reads="Trackio databases",
        shows=_NAMED,
        has_runs=True,
        arguments=_of_run,
        by_mapping=True,
    ),
    Format(
        name="mlflow",
        module_name="mlflow",
        reader="MlflowDatabaseReader",
        files=r"(?:mlflow|mlruns)\.(?:db|sqlite)",
        reads="MLflow's database mlflow.db",
        shows=_NAMED,
        has_runs=True,
        arguments=_of_run,
        by_mapping=True,
    ),
    Format(
        name="megatron",
        module_name="megatron",
        reader="MegatronReader",
        folders=r"router_trace_rank\d+\.jsonl",
        reads="Megatron-LM routing traces, the folder of all ranks",
        shows="exact counts",
    ),
    Format(
        name="jsonl",
        module_name="jsonl",
        reader="JsonlReader",
        files=r"(?:metrics|training|train|log|logs|history|wandb-history)\.jsonl",
        reads="JSON lines with a step, as prime-rl writes them",
        shows=_NAMED,
        arguments=_of_path,
        by_mapping=True,
    ),
    Format(
        name="csv",
        module_name="csv_table",
        reader="CsvReader",
        files=r"(?:metrics|progress|log|history|training)\.[ct]sv",
        reads="CSV with a column step: wide, or step,key,value",
        shows=_NAMED,
        arguments=_of_path,
        by_mapping=True,
    ),
    Format(
        name="sglang",
        module_name="sglang",
        reader="SGLangReader",
        folders=r"expert_distribution_recorder_.+\.pt",
        reads="SGLang's expert distribution dumps, the folder of the recorder or one dump",
        shows="exact counts",
        live="new dumps appear",
    ),
    Format(
        name="tensorrt-llm",
        module_name="tensorrt_llm",
        reader="TensorRTReader",
        folders=r"meta_info\.json|rank\d+(?:_raw)?\.safetensors",
        reads="TensorRT-LLM expert statistics, the folder of all ranks",
        shows="exact counts",
        live="no",
    ),
    Format(
        name="imatrix",
        module_name="imatrix",
        reader="ImatrixReader",
        files=r"(?i:.*imatrix.*\.(?:gguf|dat))",
        reads="importance matrices of llama.cpp (GGUF)",
        shows="exact counts of one calibration",
        live="no",
    ),
    Format(
        name="streamlit",
        module_name="streamlit",
        reader="StreamlitReader",
        files=r"training_metrics\.json",
        reads="training_metrics.json of the older microscope",
        shows="shares of the first choice; its drop rates are simulated and not shown",
        live="when it is rewritten",
    ),
)
FORMATS: Mapping[str, Format] = {form.name: form for form in _FORMATS}
"""Every format, in the order in which they are tried."""
OF_AN_MLFLOW_FOLDER = "meta.yaml"
FILE_NAMES = re.compile(
    "|".join(f"(?:{form.files}|{form.folders})" for form in _FORMATS) + r"|meta\.yaml"
)
"""Names that a known writer uses: in a folder only such files are looked at."""
