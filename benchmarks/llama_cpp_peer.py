"""What runs inside the Python of the peers: write a model for llama.cpp, and read tokens with it.

    PEERS_PYTHON benchmarks/llama_cpp_peer.py write {F32,F16} CONFIG WEIGHTS.npz MODEL.gguf
    PEERS_PYTHON benchmarks/llama_cpp_peer.py read {F32,F16} THREADS LENGTH MODEL.gguf

Needs ``pip install llama-cpp-cffi cffi gguf``, and nothing of this project. CONFIG is our config as
JSON, the weights have Hugging Face's names, and the type behind ``read`` is that of the cache.
``read`` prints what it is, then answers every line of standard input with a line of JSON: ``start``
empties the cache, ``read ID …`` appends tokens and answers how many seconds that took, ``logits``
answers those of the last token.
"""

import ctypes
import json
import os
import sys
import time


def write(kind: str, config: str, weights: str, path: str) -> None:
    """Norms, router and its bias stay fp32, as in llama.cpp's own converter. No vocabulary."""
    import gguf
    import numpy as np

    fields = json.loads(config)
    layers = fields["num_hidden_layers"]
    writer = gguf.GGUFWriter(path, "deepseek2")
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(fields["vocab_size"])
    writer.add_context_length(fields["max_position_embeddings"])
    writer.add_block_count(layers)
    writer.add_leading_dense_block_count(fields["first_k_dense_replace"])
    writer.add_embedding_length(fields["hidden_size"])
    writer.add_feed_forward_length(fields["intermediate_size"])
    writer.add_layer_norm_rms_eps(fields["rms_norm_eps"])
    writer.add_head_count(fields["num_attention_heads"])
    writer.add_head_count_kv(fields["num_attention_heads"])
    writer.add_key_length(fields["qk_nope_head_dim"] + fields["qk_rope_head_dim"])
    writer.add_value_length(fields["v_head_dim"])
    writer.add_q_lora_rank(fields["q_lora_rank"])
    writer.add_kv_lora_rank(fields["kv_lora_rank"])
    writer.add_rope_dimension_count(fields["qk_rope_head_dim"])
    writer.add_rope_freq_base(fields["rope_theta"])
    writer.add_rope_scaling_yarn_log_mul(0.0)  # required; without YaRN, it changes nothing
    writer.add_expert_count(fields["n_routed_experts"])
    writer.add_expert_used_count(fields["num_experts_per_tok"])
    writer.add_expert_shared_count(fields["n_shared_experts"])
    writer.add_expert_feed_forward_length(fields["moe_intermediate_size"])
    writer.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID)
    writer.add_expert_weights_norm(fields["norm_topk_prob"])
    writer.add_expert_weights_scale(fields["routed_scaling_factor"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DEEPSEEK2, layers)
    parts = {}
    for name, weight in np.load(weights).items():
        if name.endswith("gate_up_proj"):
            gate, up = np.split(weight, 2, axis=1)
            parts[name.replace("gate_up", "gate") + ".weight"] = gate
            parts[name.replace("gate_up", "up") + ".weight"] = up
        else:
            name = name.replace("e_score_correction_bias", "e_score_correction.bias")
            parts[name if name.endswith(("weight", "bias")) else name + ".weight"] = weight
    for name, weight in parts.items():
        matrix = weight.ndim > 1 and not name.endswith("mlp.gate.weight")
        dtype = np.float16 if matrix and kind == "F16" else np.float32
        short = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(short, np.ascontiguousarray(weight, dtype=dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(kind: str, threads: str, length: str, path: str) -> None:
    os.environ |= {"LLAMA_CPP_BACKEND": "cpu", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    from llama import _llama_cpp_cpu as built
    from llama.llama_cpp import ffi, ggml_type, lib

    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    if model == ffi.NULL:
        raise SystemExit(f"llama.cpp does not load {path}")
    params = lib.llama_context_default_params()
    params.n_ctx = params.n_batch = int(length)
    params.n_threads = params.n_threads_batch = int(threads)
    params.type_k = params.type_v = ggml_type[kind].value
    context = lib.llama_init_from_model(model, params)
    batch = lib.llama_batch_init(int(length), 0, 1)
    symbols = ctypes.CDLL(built.__file__)
    commit = ctypes.c_char_p.in_dll(symbols, "LLAMA_COMMIT").value.decode()
    build = ctypes.c_int.in_dll(symbols, "LLAMA_BUILD_NUMBER").value
    print(f"llama.cpp b{build} ({commit}), {ffi.string(lib.llama_print_system_info()).decode()}")
    sys.stdout.flush()
    used = 0
    for line in sys.stdin:
        command, *ids = line.split()
        answer = None
        if command == "start":
            lib.llama_kv_self_clear(context)
            used = 0
        elif command == "logits":
            row = lib.llama_get_logits_ith(context, -1)
            answer = list(row[0 : lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))])
        else:
            for place, token in enumerate(ids):
                batch.token[place] = int(token)
                batch.pos[place] = used + place
                batch.n_seq_id[place] = 1
                batch.seq_id[place][0] = 0
                batch.logits[place] = 1
            batch.n_tokens = len(ids)
            started = time.perf_counter()
            if lib.llama_decode(context, batch):
                raise SystemExit(f"llama.cpp failed behind {used} tokens")
            answer = time.perf_counter() - started
            used += len(ids)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](*sys.argv[2:])
