# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .catalogue import (
    FORMATS as FORMATS,
    ForeignRun as ForeignRun,
    Search as Search,
    split_run as split_run,
)
from .databases import MlflowReader as MlflowReader, TrackioReader as TrackioReader
from .dumps import SETTLED_S as SETTLED_S, opened as opened
from .histograms import choices as choices
from .keys import (
    BadMapping as BadMapping,
    Keys as Keys,
    Rule as Rule,
    Target as Target,
    config_number as config_number,
    rules_of as rules_of,
)
from .megatron import MegatronReader as MegatronReader
from .parts import MergedRun as MergedRun, merge as merge
from .reader import (
    Record as Record,
    RecordReader as RecordReader,
    Row as Row,
    RowReader as RowReader,
    Rows as Rows,
    SourceRequest as SourceRequest,
    Unreadable as Unreadable,
)
from .records import (
    SHARES_SUM as SHARES_SUM,
    counts_of_shares as counts_of_shares,
    run_record as run_record,
    step_record as step_record,
)
from .routed_experts import (
    CHOICE_SUFFIXES as CHOICE_SUFFIXES,
    convert_choices as convert_choices,
)
from .row_records import RowRecords as RowRecords
from .sglang import SGLangReader as SGLangReader
from .sqlite import Busy as Busy, Database as Database, Tables as Tables
from .tensorboard import (
    HEADER_BYTES as HEADER_BYTES,
    EventRows as EventRows,
    TensorBoardReader as TensorBoardReader,
    find_record as find_record,
    masked_crc32c as masked_crc32c,
)
from .tensorrt_llm import TensorRTReader as TensorRTReader
from .text_rows import CsvReader as CsvReader, JsonlReader as JsonlReader
from .torch_file import Tensor as Tensor
from .vllm_eplb import VllmReader as VllmReader
from .wandb import BLOCK_BYTES as BLOCK_BYTES, WandbReader as WandbReader
