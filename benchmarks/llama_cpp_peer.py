"""What runs inside the Python of the peers: write a model for llama.cpp, and read tokens with it.

    PEERS_PYTHON benchmarks/llama_cpp_peer.py check
    PEERS_PYTHON benchmarks/llama_cpp_peer.py write {F32,F16} CONFIG WEIGHTS.npz MODEL.gguf
    PEERS_PYTHON benchmarks/llama_cpp_peer.py read {F32,F16} THREADS LENGTH MODEL.gguf

Needs ``pip install llama-cpp-cffi==0.4.42 cffi gguf``, nothing of this project. ``check`` fails
where these are missing or older. CONFIG is JSON, the weights have Hugging Face's names, and the
type behind ``read`` is that of the cache. ``read`` prints its build, then a line of JSON for each
line of standard input: for ``read ID …`` the seconds that these tokens took, for ``logits`` those
of the last one; ``start`` empties the cache.
"""

import ctypes
import json
import os
import sys
import time

FIELDS = {
    "vocab_size": "vocab_size", "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers", "leading_dense_block_count": "first_k_dense_replace",
    "embedding_length": "hidden_size", "feed_forward_length": "intermediate_size",
    "layer_norm_rms_eps": "rms_norm_eps", "head_count": "num_attention_heads",
    "head_count_kv": "num_attention_heads", "value_length": "v_head_dim",
    "q_lora_rank": "q_lora_rank", "kv_lora_rank": "kv_lora_rank",
    "rope_dimension_count": "qk_rope_head_dim", "rope_freq_base": "rope_theta",
    "expert_count": "n_routed_experts", "expert_used_count": "num_experts_per_tok",
    "expert_shared_count": "n_shared_experts", "expert_weights_norm": "norm_topk_prob",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_weights_scale": "routed_scaling_factor",
}  # fmt: skip
"""Field of a gguf file → ours."""
FUNCTIONS = (
    "llama_model_load_from_file", "llama_model_default_params", "llama_context_default_params",
    "llama_init_from_model", "llama_print_system_info", "llama_kv_self_clear",
    "llama_get_logits_ith", "llama_vocab_n_tokens", "llama_model_get_vocab", "llama_decode",
    "llama_batch_get_one",
)  # fmt: skip
"""Of the library, as version 0.4.42 names them."""


def check() -> None:
    """Fail unless there is all that ``write`` and ``read`` use."""
    from gguf import MODEL_ARCH, ExpertGatingFuncType, GGUFWriter, get_tensor_name_map  # noqa: F401
    from llama import _llama_cpp_cpu  # noqa: F401
    from llama.llama_cpp import ffi, ggml_type, lib  # noqa: F401

    for name in FUNCTIONS:
        getattr(lib, name)


def write(kind: str, config: str, weights: str, path: str) -> None:
    """Norms, router and its bias stay fp32, as in llama.cpp's own converter. No vocabulary."""
    import gguf
    import numpy as np

    fields = json.loads(config)
    writer = gguf.GGUFWriter(path, "deepseek2")
    for theirs, name in FIELDS.items():
        getattr(writer, f"add_{theirs}")(fields[name])
    writer.add_tokenizer_model("no_vocab")
    writer.add_key_length(fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"])
    writer.add_rope_scaling_yarn_log_mul(0.0)  # required; without YaRN it changes nothing
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, fields["num_hidden_layers"])
    for name, weight in np.load(weights).items():
        parts = {name.replace("correction_bias", "correction.bias"): weight}
        if name.endswith("gate_up_proj"):
            gate, up = np.split(weight, 2, axis=1)
            parts = {name.replace("gate_up", "gate"): gate, name.replace("gate_up", "up"): up}
        half = kind == "F16" and weight.ndim > 1 and not name.endswith("mlp.gate.weight")
        suffix = ".weight" if ".experts." in name else ""  # a stack is one parameter for us
        for part, values in parts.items():
            short = names.get_name(part, try_suffixes=(".weight", ".bias"))
            writer.add_tensor(short + suffix, values.astype(np.float16 if half else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(kind: str, threads: str, length: str, path: str) -> None:
    os.environ |= {"LLAMA_CPP_BACKEND": "cpu", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    from llama import _llama_cpp_cpu as built
    from llama.llama_cpp import ffi, ggml_type, lib

    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = int(length)
    params.n_threads = params.n_threads_batch = int(threads)
    params.logits_all = True  # as we and transformers do for a prompt
    params.type_k = params.type_v = ggml_type[kind].value
    context = lib.llama_init_from_model(model, params)
    symbols = ctypes.CDLL(built.__file__)
    commit = ctypes.c_char_p.in_dll(symbols, "LLAMA_COMMIT").value.decode()
    build = ctypes.c_int.in_dll(symbols, "LLAMA_BUILD_NUMBER").value
    system = ffi.string(lib.llama_print_system_info()).decode().strip(" |")
    print(f"llama.cpp b{build} ({commit}), {system}", flush=True)
    for line in sys.stdin:
        command, *ids = line.split()
        answer = None
        if command == "start":
            lib.llama_kv_self_clear(context)
        elif command == "logits":
            row = lib.llama_get_logits_ith(context, -1)
            answer = list(row[0 : lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))])
        else:
            tokens = ffi.new("int32_t[]", [int(token) for token in ids])
            started = time.perf_counter()
            if lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids))):
                raise SystemExit(f"llama.cpp does not append {len(ids)} tokens")
            answer = time.perf_counter() - started
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    {"check": check, "write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
