# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .__main__ import app as app
from .config import published_fields as published_fields, read_config as read_config
from .read import (
    load_pretrained as load_pretrained,
    now_and_then as now_and_then,
    parts as parts,
    published_name as published_name,
    read_stop_ids as read_stop_ids,
    read_tokenizer as read_tokenizer,
)
from .write import (
    errors_in_one_line as errors_in_one_line,
    save_pretrained as save_pretrained,
    write_checkpoint as write_checkpoint,
)
