"""Published models by name: from the local cache, or fetched where that was asked for."""

from __future__ import annotations

import re
import sys
from fnmatch import fnmatch
from pathlib import Path

from microscope_tui.probe.subject import CannotProbe

_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
FILES = ["config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json"]
"""All that is fetched, from the model's own folder only: no code and no pickles."""


def folder_of(name: str, download: bool) -> Path:
    """The folder of the model ``org/name``.

    Raises:
        CannotProbe: it is not in the cache and may not be fetched, or fetching failed.
    """
    if not _NAME.fullmatch(name):
        raise CannotProbe(f"{name}: no such folder; name a model folder, or ORG/NAME --download")
    from huggingface_hub import snapshot_download

    if not download:
        try:
            return Path(snapshot_download(name, allow_patterns=FILES, local_files_only=True))
        except Exception as error:  # whatever is lacking, the answer is the same
            raise CannotProbe(
                f"{name}: neither a folder nor in the local cache; add --download to fetch it"
            ) from error
    try:
        files = _wanted(name)
        size = sum(files.values())
        sys.stderr.write(f"moe-microscope: fetching {name}: {size / 1e9:,.1f} GB\n")
        return Path(snapshot_download(name, allow_patterns=list(files)))
    except CannotProbe:
        raise
    except Exception as error:  # the network, a wrong name, a full disk
        raise CannotProbe(f"{name}: cannot be fetched ({type(error).__name__}: {error})") from error


def _wanted(name: str) -> dict[str, int]:
    """Names and bytes of the files to fetch."""
    from huggingface_hub import HfApi

    files = HfApi().model_info(name, files_metadata=True).siblings or []
    wanted = {
        one.rfilename: one.size or 0
        for one in files
        if "/" not in one.rfilename and any(fnmatch(one.rfilename, kind) for kind in FILES)
    }
    if not any(one.endswith(".safetensors") for one in wanted):
        raise CannotProbe(f"{name}: has no safetensors; only those are loaded, no pickles")
    return wanted
