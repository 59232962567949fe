"""Does a mixture learn text better? Code and prose that come with Python: the modules of the
standard library, and all .rst, .md, .txt and METADATA files of it and of the packages, in an order
as good as random; the last tenth is held out. Columns: losses of blocks of positions."""

import functools
import hashlib
import sysconfig
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.learning.training import RECIPE, losses, train
from moe_model.training.batches import Batch, TrainingBatches, held_out_batches
from moe_model.training.corpus import Corpus, Document, Documents, make_tokenizer

LENGTH = 128
_SIZES = {
    "hidden_size": 128, "num_hidden_layers": 4, "intermediate_size": 384, "num_experts_per_tok": 4,
    "kv_lora_rank": 64, "qk_nope_head_dim": 16, "qk_rope_head_dim": 16, "v_head_dim": 32,
    "initializer_range": 0.09, "vocab_size": 2048, "max_position_embeddings": LENGTH,
}  # fmt: skip
_RATES = {"lr": 3e-3, "router_lr": 1.0, "bias_update_rate": 3e-3, "batch_size": 32, "steps": 1500}
PLAN = [(RECIPE | _SIZES | _RATES, ("dense", "32", "4"), range(3))]


def measure(recipe: dict[str, Any], experts: int, seed: int) -> dict[str, float]:
    corpus = read_corpus(recipe["vocab_size"])
    batches = TrainingBatches([corpus.training], recipe["batch_size"], LENGTH, seed)
    drawn = (batches.draw().micro_batches[0] for _ in range(recipe["steps"]))
    model = train(recipe, experts, seed, map(_example, drawn))
    loss_S = losses(model, map(_example, held_out_batches(corpus.held_out, 64, LENGTH, 1024)))
    blocks = list(pairwise((0, 4, 16, 64, LENGTH)))
    means = {f"{first} to {end - 1}": loss_S[first:end].mean().item() for first, end in blocks}
    return {"loss": loss_S.mean().item(), **means, "tokens": len(corpus.training)}


def _example(batch: Batch) -> tuple[Tensor, Tensor]:
    return batch.tokens_BN[:, :-1], batch.targets(1, LENGTH)


@functools.cache
def read_corpus(vocabulary: int) -> Corpus:
    files = sorted(_files(), key=lambda file: hashlib.sha256(file.name.encode()).digest())
    documents = Documents("packaged text", lambda: files)
    characters = sum(len(document.text) for document in documents)
    print(f"{len(files):,} files, {characters / 1e6:.1f} million characters")
    return Corpus.build(documents, make_tokenizer("bpe", documents, vocabulary), LENGTH, 0)


def _files() -> Iterator[Document]:
    library, packages = (Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib"))
    for root in (library, packages):
        for path in root.rglob("*"):
            code = path.suffix == ".py" and root == library
            prose = path.name.endswith((".rst", ".md", ".txt", "METADATA"))
            name = str(path.relative_to(root))
            if (code or prose) and "site-packages" not in name and path.is_file():
                yield Document(name, path.read_text("utf-8", errors="replace"))
