# What other packages and the tests import from here. Loaded when used (see lazy_loader).
from .__main__ import app as app
from .config import HuggingFaceError as HuggingFaceError
from .config import published_fields as published_fields
from .config import read_config as read_config
from .read import load_pretrained as load_pretrained
from .read import now_and_then as now_and_then
from .read import parts as parts
from .read import published_name as published_name
from .read import read_stop_ids as read_stop_ids
from .read import read_tokenizer as read_tokenizer
from .write import save_pretrained as save_pretrained
from .write import write_checkpoint as write_checkpoint
