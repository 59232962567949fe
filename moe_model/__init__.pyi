# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .attention import (
    LatentCache as LatentCache,
    MultiHeadLatentAttention as MultiHeadLatentAttention,
    rotary_table as rotary_table,
    slowed_as_in_llama3 as slowed_as_in_llama3,
    softmax_scale as softmax_scale,
)
from .balance import (
    balance_loss as balance_loss,
    bias_rate_at as bias_rate_at,
    router_z_loss as router_z_loss,
    sequence_balance_loss as sequence_balance_loss,
    update_expert_bias as update_expert_bias,
)
from .command import (
    FAILED as FAILED,
    FINISHED as FINISHED,
    REPLACEMENT as REPLACEMENT,
    STOPPED_BY_SIGNAL as STOPPED_BY_SIGNAL,
    STOPPED_ON_COLLAPSE as STOPPED_ON_COLLAPSE,
    USAGE as USAGE,
    UsageError as UsageError,
    choose_device as choose_device,
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
    DropPolicy as DropPolicy,
    ModelConfig as ModelConfig,
    ModelType as ModelType,
    count as count,
    number as number,
    shown as shown,
)
from .decoder import FEW as FEW, Decoder as Decoder
from .experts import Experts as Experts, FeedForward as FeedForward
from .fused import rotate as rotate
from .generate import app as app, pieces as pieces
from .model import (
    DecoderLayer as DecoderLayer,
    LanguageModel as LanguageModel,
    MixtureOfExperts as MixtureOfExperts,
    ModelOutput as ModelOutput,
    summed_cross_entropy as summed_cross_entropy,
    valid_ahead as valid_ahead,
)
from .router import Router as Router, Routing as Routing
from .sampling import SamplingRules as SamplingRules
from .store import (
    DESCRIPTION as DESCRIPTION,
    MOST_BYTES as MOST_BYTES,
    TRAINING_STATE as TRAINING_STATE,
    WEIGHTS as WEIGHTS,
    Checkpoint as Checkpoint,
    CheckpointError as CheckpointError,
    file_facts as file_facts,
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
