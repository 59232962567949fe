"""The known formats, and the runs of any of them at a path.

The names of the formats are an API (``--source``). A format's module is imported when a file with a
matching name is found. A run log takes precedence: the folder that holds one is that run. A file
that the user names is recognised by its content, whatever its name; in a folder only files with a
name that a known writer uses are opened.
"""

import hashlib
import itertools
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import ClassVar, NamedTuple

import msgspec

from microscope_tui.installed import missing, not_installed
from microscope_tui.runlog import (
    LOG_NAME,
    Glance,
    KnownLogs,
    NoRuns,
    RunFile,
    Source,
    Stamp,
    find_runs,
    safe_text,
)
from microscope_tui.runlog.discover import why_not_a_run
from microscope_tui.sources.keys import Keys, Rule
from microscope_tui.sources.reader import BUSY_S, DEFAULT, RecordReader, RowReader, SourceRequest

_MOST_FILES = 10_000  # of one folder that are looked at for its state
_MLFLOW_FOLDER = "meta.yaml"
_BETWEEN_S = 0.05
_ANY = (Rule("max_load", re.compile(r"(?!_).+", re.DOTALL)),)
"""With these rules a reader recognises every file of its format, whatever its keys."""


class _Seen(NamedTuple):
    state: tuple[int, float]
    runs: list[RunFile]
    known: bool
    """Whether they have readings of routers, or may get some."""


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """A format of another tool: one line of the table that ``sources`` prints."""

    name: str
    where: str
    """Module and class of its reader."""
    reads: str
    shows: str = "summaries per layer, and counts or shares where the keys have them"
    live: str = "as it grows"
    files: str = "(?!)"
    """Names of files that its writers use, as a regular expression."""
    folders: str = "(?!)"
    """The same where the run is the folder around the file."""

    @property
    def reader(self) -> type[RowReader] | type[RecordReader]:
        """The class that reads this format; its module is imported at the first use."""
        module, _, name = self.where.rpartition(".")
        found = getattr(import_module(f"microscope_tui.{module}"), name)
        return found  # type: ignore[no-any-return]

    def place_of(self, file: Path) -> Path | None:
        """Where the run of a file in a folder is: the file or its folder, or ``None``."""
        if re.fullmatch(self.folders, file.name):
            return file.parent
        return file if re.fullmatch(self.files, file.name) else None

    def open(self, path: Path, run: str, name: str, request: SourceRequest) -> RecordReader:
        """The reader of a run at ``path``.

        Args:
            path: The file or folder.
            run: One of ``Reader.runs``.
            name: The name of the run, if the source has none.
            request: What the user asked for.
        """
        from microscope_tui.sources.row_records import RowRecords

        reader = self.reader
        if issubclass(reader, RecordReader):
            return reader(path, name, request)
        return RowRecords(
            reader(path, Keys(request.rules, request.confirmed), run), name, self.name, request
        )


_FORMATS = (
    Format(
        name="wandb",
        where="sources.wandb.WandbReader",
        files=r"run-.+\.wandb",
        reads="W&B .wandb files, online or offline",
    ),
    Format(
        name="tensorboard",
        where="sources.tensorboard.TensorBoardReader",
        folders=r"events\.out\.tfevents\..+",
        reads="a folder of TensorBoard event files",
    ),
    Format(
        name="trackio",
        where="sources.databases.TrackioReader",
        files=r".+\.db",
        reads="Trackio databases",
    ),
    Format(
        name="mlflow",
        where="sources.databases.MlflowReader",
        files=r"(?:mlflow|mlruns)\.(?:db|sqlite)",
        reads="MLflow's database mlflow.db",
    ),
    Format(
        name="megatron",
        where="extensions.dumps.megatron.MegatronReader",
        folders=r"router_trace_rank\d+\.jsonl",
        reads="Megatron-LM routing traces, the folder of all ranks",
        shows="exact counts",
    ),
    Format(
        name="jsonl",
        where="sources.text_rows.JsonlReader",
        files=r"(?:metrics|training|train|log|logs|history|wandb-history)\.jsonl",
        reads="JSON lines with a step, as prime-rl writes them",
    ),
    Format(
        name="csv",
        where="sources.text_rows.CsvReader",
        files=r"(?:metrics|progress|log|history|training|wandb_export_.+)\.[ct]sv",
        reads="CSV with a column step: wide, or step,key,value",
    ),
    Format(
        name="sglang",
        where="extensions.dumps.sglang.SGLangReader",
        folders=r"expert_distribution_recorder_.+\.pt",
        reads="SGLang's expert distribution dumps, the folder of the recorder or one dump",
        shows="exact counts",
        live="new dumps appear",
    ),
    Format(
        name="tensorrt-llm",
        where="extensions.dumps.tensorrt_llm.TensorRTReader",
        folders=r"meta_info\.json|rank\d+(?:_raw)?\.safetensors",
        reads="TensorRT-LLM expert statistics, the folder of all ranks",
        shows="exact counts",
        live="no",
    ),
    Format(
        name="routed-experts",
        where="extensions.anatomy.routed_experts.RoutedReader",
        files=r"(?:data_|rollout_)?(?:eval_)?\d+\.pt|.*routed_experts.*\.(?:jsonl|npy)",
        reads="choices of vLLM, SGLang, prime-rl and NeMo-RL, rollout dumps of slime and miles",
        shows="exact counts, a step per response",
        live="no",
    ),
    Format(
        name="imatrix",
        where="extensions.dumps.imatrix.ImatrixReader",
        files=r"(?i:.*imatrix.*\.gguf)",
        reads="importance matrices of llama.cpp (GGUF)",
        shows="exact counts of one calibration",
        live="no",
    ),
    Format(
        name="streamlit",
        where="sources.streamlit.StreamlitReader",
        files=r"training_metrics\.json",
        reads="training_metrics.json of the older microscope",
        shows="shares of the first choice; its drop rates are simulated and not shown",
        live="when it is rewritten",
    ),
)
FORMATS: Mapping[str, Format] = {form.name: form for form in _FORMATS if not missing(form.where)}
"""The formats of this installation, in the order in which they are tried."""


@cache
def _file_names() -> re.Pattern[str]:
    """Names that a known writer uses: in a folder only such files are looked at."""
    names = [f"(?:{form.files}|{form.folders})" for form in _FORMATS]
    return re.compile("|".join([*names, re.escape(_MLFLOW_FOLDER)]))


class ForeignRun(RunFile, frozen=True, kw_only=True):
    """A run that another tool wrote: its records are translated."""

    foreign: ClassVar[bool] = True
    form: Format
    file: Path
    """The file or folder that holds it, without ``#RUN``."""
    run: str
    request: SourceRequest
    about: Mapping[str, str]
    """See ``Reader.about``."""

    def open(self) -> Source:
        from microscope_tui.sources.translated_log import TranslatedLog

        return TranslatedLog(self.form.open(self.file, self.run, self.name, self.request))

    def glance(self) -> Glance:
        """Only its state: the rest is known once all of it is read."""
        try:
            return Glance(identity=self.identity())
        except OSError as error:
            return Glance(error=error.strerror or str(error))

    def identity(self) -> Stamp:
        """The present state of the source, together with what the user asked for.

        A run that is read with another mapping is another one. ``OSError``: it cannot be read.
        """
        size, modified = _size_and_time(self.file)
        known = repr((self.form.name, os.fspath(self.file), self.run, self.request))
        return Stamp(
            0, 0, size, round(modified * 1e9), hashlib.sha256(known.encode()).hexdigest()[:16]
        )


class Search:
    """Finds the runs at one path; later searches open only what is new or has changed."""

    def __init__(self, root: Path, request: SourceRequest = DEFAULT) -> None:
        self.root = root
        self.request = request
        self._known = KnownLogs(others=_file_names())
        self._seen: dict[Path, _Seen] = {}
        self.busy = False
        """Whether the last search found a database that its writer kept busy."""

    def read_as(self, request: SourceRequest) -> None:
        """Read all files as ``request`` from the next search on."""
        self.request = request
        self._seen = {}

    @property
    def unreadable(self) -> list[str]:
        """The logs in a folder that could not be read at the last search, each with its reason."""
        return self._known.unreadable

    def runs(self, *, patient: bool = False) -> list[RunFile]:
        """The runs, newest first; empty while there is none yet.

        Args:
            patient: Try a database that its writer keeps busy again for 10 s.

        Raises:
            NoRuns: the path is a file of no known format, or cannot be read, or is a folder that
                holds only MLflow's folders, which are not read.
        """
        end = time.monotonic() + (BUSY_S if patient else 0.0)
        while True:
            self.busy = False
            try:
                found = self._runs()
            except NoRuns:
                if not self.busy or time.monotonic() > end:
                    raise
            else:
                if not self.busy or time.monotonic() > end:
                    return found
            time.sleep(_BETWEEN_S)

    def _runs(self) -> list[RunFile]:
        path, run = split_run(self.root)
        if path.exists() and not path.is_dir():
            found = self._of_file(path)
        else:
            found = self._of_folder(path)
        if not run:
            return found
        chosen = [one for one in found if one.path == self.root]
        if not chosen and found:
            there = ", ".join(sorted(one.name for one in found)[:8])
            raise NoRuns(f"{path}: has no run {safe_text(run, 60)!r}; there are {there}")
        return chosen

    def _of_file(self, path: Path) -> list[RunFile]:
        if not self.request.source and why_not_a_run(path) is None:
            return find_runs(path)
        try:
            found, _ = self._found(path, lambda form: path)
        except OSError as error:
            self.busy = isinstance(error, BlockingIOError)
            raise NoRuns(f"{path}: {error.strerror or error}") from error
        if found or not path.is_file():
            return found or find_runs(path)  # raises with the reason
        _refuse_missing(path)
        raise NoRuns(
            f"{path}: is not a run log ({why_not_a_run(path)}), and no file of a known format "
            f"({', '.join(FORMATS)}); `moe-microscope sources` lists the formats, --source "
            "selects one, --map adds keys"
        )

    def _of_folder(self, path: Path) -> list[RunFile]:
        logs = find_runs(path, self._known)
        if self.request.source:
            logs = []
        elif self._known.one_run:
            return logs
        folders = {log.path.parent for log in logs}
        seen = self._seen
        self._seen = {}
        for file in self._known.listed:
            if file.parent not in folders:
                self._look_at(file, seen)
        own = self._seen.get(path / LOG_NAME)
        if own is not None and own.known:
            return own.runs
        if any(log.part_of for log in logs):
            from microscope_tui.sources.parts import merged

            logs = merged(path, logs)
        # Those of one file were changed at the same time: their order stays.
        runs = sorted([*logs, *self._chosen(bool(logs))], key=lambda run: -run.modified)
        if not runs:
            self._refuse_mlflow_folders(path)
        return runs

    def _chosen(self, there_are_logs: bool) -> Iterable[RunFile]:
        """The runs of other tools, each once."""
        found = self._seen.values()
        # Without readings of routers it is better than nothing: the screen shows what the keys are.
        chosen = [one for one in found if one.known and one.runs]
        if not chosen and not there_are_logs:
            chosen = [*found]
        return {run.path: run for one in chosen for run in one.runs}.values()

    def _refuse_mlflow_folders(self, path: Path) -> None:
        mlflow = [file.parent for file in self._known.listed if file.name == _MLFLOW_FOLDER]
        if any((folder / "metrics").is_dir() for folder in mlflow):
            raise NoRuns(
                f"{path}: MLflow's folders are not read; make a database of them and open that: "
                "`mlflow migrate-filestore --source mlruns --target sqlite:///mlflow.db`"
            )

    def _look_at(self, file: Path, seen: Mapping[Path, _Seen]) -> None:
        """Opens ``file`` only if it has changed since the last search."""
        before = seen.get(file)
        try:
            state = _size_and_time(file)
            if before is not None and before.state == state:
                self._seen[file] = before
            else:
                found = self._found(file, lambda form: form.place_of(file))
                self._seen[file] = _Seen(state, *found)
        except BlockingIOError as error:
            self.busy = True
            if before is None:
                self._known.unreadable.append(str(error))
            else:
                self._seen[file] = before
        except OSError:
            return  # deleted since the listing, or not readable: tried again next time

    def _found(
        self, file: Path, place_of: Callable[[Format], Path | None]
    ) -> tuple[list[RunFile], bool]:
        named = self.request.source
        for rules in (self.request.rules, _ANY):
            for form in [FORMATS[named]] if named else FORMATS.values():
                place = place_of(form)
                told = named or (rules is _ANY and file.suffix == ".csv" and form.name == "csv")
                if place is not None and (told or form.reader.recognises(place, rules)):
                    return self._runs_of(form, place, rules), rules is not _ANY
        return [], False

    def _runs_of(self, form: Format, path: Path, rules: Sequence[Rule]) -> list[RunFile]:
        about = form.reader.about(path)
        name = about.get("name") or path.stem
        if path.is_dir() and not about.get("name"):
            name = path.name
        size, modified = _size_and_time(path)
        found: list[RunFile] = []
        for run in reversed(form.reader.runs(path, rules)):  # the newest first
            place = path
            if run:
                place = Path(f"{path}#{run}")
            shown = safe_text(run or name)
            found.append(
                ForeignRun(
                    shown,
                    place,
                    modified,
                    size,
                    form=form,
                    file=path,
                    run=run,
                    request=self.request,
                    about=about,
                )
            )
        return found


def _refuse_missing(path: Path) -> None:
    """``NotInstalled``: files of this name are of a format that this installation does not read."""
    for form in _FORMATS:
        if form.name not in FORMATS and form.place_of(path) is not None:
            raise not_installed(f"{path} ({form.name})", missing(form.where))


def source_named(name: str) -> Format | None:
    """The format of ``--source``; ``None`` for an unknown name.

    ``NotInstalled``: this installation does not read it.
    """
    for form in _FORMATS:
        if form.name == name and (extension := missing(form.where)):
            raise not_installed(f"--source {name}", extension)
    return FORMATS.get(name)


def split_run(path: Path) -> tuple[Path, str]:
    """``PATH#RUN`` as a path and a run; without a run if there is such a path."""
    file, mark, run = str(path).rpartition("#")
    if not mark or path.exists() or not Path(file).exists():
        return path, ""
    return Path(file), run


def _size_and_time(path: Path) -> tuple[int, float]:
    if not path.is_dir():
        status = path.stat()
        return status.st_size, status.st_mtime
    size, modified = 0, 0.0
    with os.scandir(path) as entries:
        for entry in itertools.islice(entries, _MOST_FILES):
            if entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                size, modified = size + status.st_size, max(modified, status.st_mtime)
    return size, modified
