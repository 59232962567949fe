# What other packages import from here. Loaded when used (see lazy_loader).
from .attention import (
    MultiHeadLatentAttention as MultiHeadLatentAttention,
    slowed_as_in_llama3 as slowed_as_in_llama3,
)
from .balance import (
    balance_loss as balance_loss,
    router_z_loss as router_z_loss,
    sequence_balance_loss as sequence_balance_loss,
)
from .command import (
    FAILED as FAILED,
    FINISHED as FINISHED,
    STOPPED_BY_SIGNAL as STOPPED_BY_SIGNAL,
    STOPPED_ON_COLLAPSE as STOPPED_ON_COLLAPSE,
    USAGE as USAGE,
    UsageError as UsageError,
    need_packages as need_packages,
    plain_text as plain_text,
    python_docs as python_docs,
    read_text as read_text,
    run_command as run_command,
    say as say,
    version as version,
)
from .config import (
    PRESETS as PRESETS,
    ModelConfig as ModelConfig,
    ModelType as ModelType,
    count as count,
    number as number,
    shown as shown,
)
from .experts import Experts as Experts
from .model import (
    DecoderLayer as DecoderLayer,
    LanguageModel as LanguageModel,
    MixtureOfExperts as MixtureOfExperts,
    ModelOutput as ModelOutput,
)
from .store import (
    DESCRIPTION as DESCRIPTION,
    TRAINING_STATE as TRAINING_STATE,
    WEIGHTS as WEIGHTS,
    Checkpoint as Checkpoint,
    CheckpointError as CheckpointError,
    force_to_disk as force_to_disk,
    fresh_folder as fresh_folder,
    read_checkpoint as read_checkpoint,
    read_plain_description as read_plain_description,
    write_description as write_description,
    write_tensors as write_tensors,
)
from .tokenizer import (
    FILES as FILES,
    SETTINGS as SETTINGS,
    SPECIAL_TOKENS as SPECIAL_TOKENS,
    TOKENIZER as TOKENIZER,
    CharTokenizer as CharTokenizer,
    PretrainedTokenizer as PretrainedTokenizer,
    Tokenizer as Tokenizer,
    character_files as character_files,
    files_of as files_of,
    json_object as json_object,
    read_small_file as read_small_file,
    stop_ids_of as stop_ids_of,
    without_code as without_code,
)
