# What several packages import from here. Loaded when used (see lazy_loader).
from .command import (
    FAILED as FAILED,
    FINISHED as FINISHED,
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
from .config import PRESETS as PRESETS, ModelConfig as ModelConfig, shown as shown
from .experts import Experts as Experts
from .model import (
    DecoderLayer as DecoderLayer,
    LanguageModel as LanguageModel,
    MixtureOfExperts as MixtureOfExperts,
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
    SETTINGS as SETTINGS,
    TOKENIZER as TOKENIZER,
    CharTokenizer as CharTokenizer,
    PretrainedTokenizer as PretrainedTokenizer,
    Tokenizer as Tokenizer,
    character_files as character_files,
    json_object as json_object,
    stop_ids_of as stop_ids_of,
)
