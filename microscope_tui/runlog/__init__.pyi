# What other packages import from here. Loaded when used (see lazy_loader).
from .compressed import ARCHIVE_SUFFIXES as ARCHIVE_SUFFIXES, CompressedLog as CompressedLog
from .decode import decode_line as decode_line
from .discover import (
    KnownLogs as KnownLogs,
    NoRuns as NoRuns,
    RunFile as RunFile,
    entries_of as entries_of,
    find_logs as find_logs,
    find_runs as find_runs,
)
from .index import Glance as Glance, glance as glance, sample as sample, step_at as step_at
from .piped import (
    MOST_BYTES as MOST_BYTES,
    PipedLog as PipedLog,
    Spool as Spool,
    SpooledLog as SpooledLog,
    take_over_stdin as take_over_stdin,
)
from .reader import (
    Course as Course,
    Entry as Entry,
    RunReader as RunReader,
    StepEntry as StepEntry,
    drop_from as drop_from,
)
from .records import (
    LOG_NAME as LOG_NAME,
    ROUTING_NAME as ROUTING_NAME,
    BadLine as BadLine,
    EventRecord as EventRecord,
    RouterInfo as RouterInfo,
    RouterSummary as RouterSummary,
    RunHeader as RunHeader,
    RunRecord as RunRecord,
    StepRecord as StepRecord,
    UnknownFormat as UnknownFormat,
    Values as Values,
    has_grown as has_grown,
    one_or_each as one_or_each,
)
from .safe_text import cells_of as cells_of, plural as plural, safe_text as safe_text
from .signals import on_stop_signals as on_stop_signals
from .tail import (
    EVERYTHING as EVERYTHING,
    QUIET_S as QUIET_S,
    Chunk as Chunk,
    Defects as Defects,
    LineSplitter as LineSplitter,
    Source as Source,
    Stamp as Stamp,
    Tail as Tail,
    open_regular_file as open_regular_file,
    opened as opened,
    read_at as read_at,
    stamp_of as stamp_of,
)
from .validate import LogValidator as LogValidator, Problem as Problem
from .writer import (
    BackgroundLog as BackgroundLog,
    RunLogWriter as RunLogWriter,
    encode_record as encode_record,
    rounded as rounded,
)
