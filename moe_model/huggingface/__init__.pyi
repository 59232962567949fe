# What other packages import from here. Loaded when used (see lazy_loader).
from .read import (
    published_name as published_name,
    read_stop_ids as read_stop_ids,
    read_tokenizer as read_tokenizer,
)
from .write import errors_in_one_line as errors_in_one_line, write_checkpoint as write_checkpoint
