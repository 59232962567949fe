"""The model that is probed: how to run it and how to read its tokens."""

import inspect
import json
import re
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from microscope_tui.extensions.anatomy.texts import Pieces, TokenizerPieces
from microscope_tui.probe.find_routers import text_config
from microscope_tui.probe.sites import is_size, setting


class CannotProbe(ValueError):
    """The model cannot be probed; the message says why and what to do, in one line."""


@dataclass(frozen=True, slots=True)
class ProbedModel:
    """A model in evaluation mode."""

    name: str
    model: nn.Module
    pieces: Pieces
    context: int | None
    """Tokens that it reads at most, if known."""
    forward: Callable[[Tensor, Tensor | None], Tensor | None]
    """``forward(ids_BS, real_BS)``: next-token logits ``[B, S, V]``, None if it has none."""
    write: Callable[[list[int], int], list[int]]
    """``write(ids, most)`` continues ids by at most ``most`` ≥ 1 tokens, with a fixed seed."""

    @property
    def device(self) -> torch.device:
        """Of the first weight; ids are moved there before a forward pass."""
        return next(self.model.parameters()).device


def choose_device(name: str) -> torch.device:
    """The device of ``--device``; ``auto`` is a GPU if there is one.

    ``CannotProbe``: there is no usable GPU.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise CannotProbe("--device cuda: torch finds no usable GPU; choose --device cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def out_of_memory(error: BaseException) -> bool:
    """Whether the error means that a GPU or the host lacks memory; torch raises several kinds."""
    text = str(error).lower()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError)
        and ("out of memory" in text or "can't allocate memory" in text or "not enough mem" in text)
    )


_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
FILES = ["config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json"]
"""All that is downloaded, from the model's own folder only: no code and no pickles."""


def folder_of(name: str, download: bool) -> Path:
    """The folder of the model ``org/name`` in the local cache.

    ``CannotProbe``: it is not there and ``download`` is false, or the download failed.
    """
    if not _NAME.fullmatch(name):
        raise CannotProbe(f"{name}: no such folder; name a model folder, or ORG/NAME --download")
    from huggingface_hub import HfApi, snapshot_download

    if not download:
        try:
            return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
        except Exception as error:  # the answer is the same for every reason
            raise CannotProbe(
                f"{name}: neither a folder nor in the local cache; add --download to fetch it"
            ) from error
    try:
        there = HfApi().model_info(name, files_metadata=True).siblings or []
        files = {
            one.rfilename: one.size or 0
            for one in there
            if "/" not in one.rfilename and any(fnmatch(one.rfilename, kind) for kind in FILES)
        }
        if any(one.endswith(".safetensors") for one in files):
            size = sum(files.values())
            sys.stderr.write(f"moe-microscope: fetching {name}: {size / 1e9:,.1f} GB\n")
            return Path(snapshot_download(name, allow_patterns=list(files)))
    except Exception as error:  # the network, a wrong name, a full disk
        raise CannotProbe(f"{name}: cannot be fetched ({type(error).__name__}: {error})") from error
    raise CannotProbe(f"{name}: has no safetensors; only those are loaded, no pickles")


CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
TOKENIZER, ADAPTER = "tokenizer.json", "adapter_config.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_MOST_JSON_BYTES = 64 << 20
_MOST_TOKENIZER_BYTES = 256 << 20


def load_published(folder: Path, name: str, dtype: str, device: torch.device) -> ProbedModel:
    """Load a folder of a published model, in evaluation mode; nothing in it is run as code.

    Args:
        folder: Holds config, tokenizer and weights as safetensors.
        name: As shown.
        dtype: A key of ``DTYPES``, or ``auto``: as stored.
        device: Where the weights go.

    Raises:
        CannotProbe: a file is missing or damaged, or it requires custom code or pickles.
    """
    fields = _config(folder)
    _refuse_pickles(folder)
    tokenizer = _tokenizer(folder)
    model = _model(folder, fields, dtype, device)
    names = ("max_position_embeddings", "max_seq_len", "n_positions")
    context = setting((text_config(model),), names, is_size)
    pieces = TokenizerPieces(tokenizer)
    return ProbedModel(name, model, pieces, context, _forward(model), _writer(model))


def _config(folder: Path) -> dict[str, Any]:
    if not (folder / CONFIG).exists():
        raise CannotProbe(
            f"{folder}: has neither {CONFIG} nor checkpoint.json; name the folder of a model"
        )
    if (folder / ADAPTER).exists():
        raise CannotProbe(f"{folder}: holds an adapter ({ADAPTER}); merge it into its model first")
    fields = _json(folder / CONFIG)
    kind = fields.get("model_type")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if "auto_map" in fields:
            raise CannotProbe(
                f"{folder}: requires custom code (auto_map in {CONFIG}), which is never executed; "
                "probe it in your own code with microscope_tui.probe.attach"
            )
        raise CannotProbe(
            f"{folder}: model_type {kind!r} is not in this transformers; update it, or correct "
            f"{CONFIG}"
        )
    return _without_kernels(fields)  # type: ignore[no-any-return]  # of an object, an object


def _without_kernels(value: Any) -> Any:
    """Without attention or expert kernels, which transformers may download and run."""
    if isinstance(value, dict):
        if set(value) == {"__float__"}:  # how transformers writes what JSON lacks
            return float(value["__float__"])
        endings = ("attn_implementation", "experts_implementation")
        kept = {k: v for k, v in value.items() if k != "auto_map" and not k.endswith(endings)}
        return {key: _without_kernels(item) for key, item in kept.items()}
    return [_without_kernels(item) for item in value] if isinstance(value, list) else value


def _refuse_pickles(folder: Path) -> None:
    names = [WEIGHTS]
    if (folder / INDEX).exists():
        shards = _json(folder / INDEX).get("weight_map")
        names = sorted(set(shards.values())) if isinstance(shards, dict) else []
        if not names or not all(isinstance(n, str) and n == Path(n).name for n in names):
            raise CannotProbe(f"{folder / INDEX}: names no files, or files outside of the folder")
    elif not (folder / WEIGHTS).exists():
        pickles = sorted(path.name for kind in _PICKLES for path in folder.glob(kind))
        only = f"only {pickles[0]}, a pickle, which can run code" if pickles else "none"
        raise CannotProbe(
            f"{folder}: no safetensors ({only}); save the model with save_pretrained first"
        )
    for name in names:
        _regular(folder / name)


def _tokenizer(folder: Path) -> Any:
    path = folder / TOKENIZER
    if not path.exists():
        raise CannotProbe(
            f"{folder}: has no {TOKENIZER}; save the tokenizer beside the model with "
            "transformers: AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER)"
        )
    _regular(path, _MOST_TOKENIZER_BYTES)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(path.read_bytes().decode())
    except Exception as error:  # the library has no error class
        raise CannotProbe(f"{path}: not a tokenizer ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _model(folder: Path, fields: dict[str, Any], dtype: str, device: torch.device) -> Any:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    loud: Any = transformers.utils.logging  # what matters of its messages is checked here
    loud.set_verbosity_error()
    loud.disable_progress_bar()
    try:
        config = CONFIG_MAPPING[fields["model_type"]].from_dict(fields)
        model, report = _class(config).from_pretrained(
            folder,
            config=config,
            dtype=DTYPES.get(dtype, "auto"),
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        model = model.to(device).eval()
    except Exception as error:  # transformers raises anything for a folder that is not right
        if out_of_memory(error):
            raise CannotProbe(
                f"{folder}: out of memory while loading; choose --dtype bf16, or a device with "
                "more memory"
            ) from error
        reason = next(iter(str(error).strip().splitlines()), "")
        raise CannotProbe(
            f"{folder}: transformers {transformers.__version__} cannot load it "
            f"({type(error).__name__}: {reason})"
        ) from error
    missing = sorted(report["missing_keys"]) + sorted(map(str, report["mismatched_keys"]))
    if missing:
        raise CannotProbe(
            f"{folder}: {len(missing)} weights are missing or of another shape, the first is "
            f"{missing[0]}; use the {CONFIG} of these files"
        )
    return model


def _class(config: Any) -> Any:
    import transformers

    for name in config.architectures or ():
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModelForCausalLM


def _forward(model: Any) -> Any:
    """An encoder and its decoder both read the text; the decoder's logits are not next tokens."""
    names = inspect.signature(type(model).forward).parameters
    more = {"use_cache": False} if "use_cache" in names else {}
    two = bool(getattr(model.config, "is_encoder_decoder", False))

    def forward(ids_BS: Tensor, real_BS: Tensor | None) -> Tensor | None:
        mask_BS = torch.ones_like(ids_BS) if real_BS is None else real_BS.long()
        given = {"input_ids": ids_BS, "attention_mask": mask_BS, **more}
        if two:
            given |= {"decoder_input_ids": ids_BS, "decoder_attention_mask": mask_BS}
        logits_BSV = getattr(model(**given), "logits", None)
        return None if two or not isinstance(logits_BSV, Tensor) else logits_BSV

    return forward


def _writer(model: Any) -> Any:
    def write(ids: list[int], most: int) -> list[int]:
        if getattr(model.config, "is_encoder_decoder", False):
            raise CannotProbe(f"{type(model).__name__} has an encoder; leave --generate out")
        ids_BS = torch.tensor([ids], device=model.device)
        torch.manual_seed(0)
        try:
            whole = model.generate(
                input_ids=ids_BS,
                attention_mask=torch.ones_like(ids_BS),
                max_new_tokens=most,
                do_sample=True,
            )
        except (AttributeError, TypeError, ValueError) as error:
            raise CannotProbe(
                f"{type(model).__name__} cannot generate ({error}); leave --generate out"
            ) from error
        written: list[int] = whole[0].tolist()
        return written[len(ids) :]

    return write


def _json(path: Path) -> dict[str, Any]:
    _regular(path, _MOST_JSON_BYTES)
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise CannotProbe(f"{path}: cannot be read ({error})") from error
    if not isinstance(fields, dict):
        raise CannotProbe(f"{path}: not a JSON object")
    return fields


def _regular(path: Path, most_bytes: int = sys.maxsize) -> None:
    """Refuse what is not a regular file, or too large: a pipe or a device might never end."""
    try:
        found = path.stat()
    except OSError as error:
        raise CannotProbe(f"{path}: cannot be read ({error.strerror})") from error
    if not stat.S_ISREG(found.st_mode):
        raise CannotProbe(f"{path}: not a regular file")
    if found.st_size > most_bytes:
        raise CannotProbe(f"{path}: larger than {most_bytes:,} bytes")
