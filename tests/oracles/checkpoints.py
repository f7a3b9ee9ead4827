"""Tiny checkpoints of every family that dartformer imports, as transformers saves them.

    build/oracles/bin/python tests/oracles/checkpoints.py

Each folder of `checkpoints/` holds `config.json` and `model.safetensors` with random weights, and
`expected.npz`: ids `[2, 10]`, which of them are valid, and the logits of transformers, or the last
hidden states where the model has no head. It must not import dartformer."""

import shutil
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MinistralConfig,
    MinistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    RobertaConfig,
    RobertaModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

FOLDER = Path(__file__).with_name("checkpoints")

VOCABULARY, LENGTH = 48, 10

WEIGHTS = 0.3
"""Standard deviation, large enough that no part of a model is lost in rounding."""

ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}
DECODER = {
    **ENCODER,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def models() -> dict[str, PreTrainedModel]:
    """One of each family."""
    return {
        "bert": BertModel(BertConfig(**ENCODER, max_position_embeddings=16)),
        "roberta": RobertaModel(
            RobertaConfig(
                **ENCODER,
                max_position_embeddings=18,
                type_vocab_size=1,
                pad_token_id=1,
                layer_norm_eps=1e-5,
            )
        ),
        "gpt2": GPT2LMHeadModel(
            GPT2Config(
                vocab_size=VOCABULARY,
                n_embd=24,
                n_layer=2,
                n_head=4,
                n_inner=40,
                n_positions=16,
                bos_token_id=1,
                eos_token_id=2,
            )
        ),
        "llama": LlamaForCausalLM(
            LlamaConfig(
                **DECODER,
                tie_word_embeddings=False,
                rms_norm_eps=1e-5,
                rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
            )
        ),
        "qwen2": Qwen2ForCausalLM(Qwen2Config(**DECODER, tie_word_embeddings=True)),
        # A head that is not the width divided by the heads.
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**DECODER, head_dim=8, tie_word_embeddings=True)),
        "ministral": MinistralForCausalLM(
            MinistralConfig(
                **DECODER,
                head_dim=6,
                sliding_window=3,
                layer_types=["sliding_attention", "full_attention"],
                tie_word_embeddings=False,
            )
        ),
        "smollm3": SmolLM3ForCausalLM(
            SmolLM3Config(
                **DECODER,
                use_sliding_window=True,
                sliding_window=3,
                layer_types=["sliding_attention", "full_attention"],
                no_rope_layers=[1, 0],
                tie_word_embeddings=True,
            )
        ),
    }


def draw(model: PreTrainedModel, seed: int) -> None:
    """Random weights, gains around 1, and biases that are not zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator) * WEIGHTS
            is_gain = "norm" in name.lower() or ".ln_" in name
            if is_gain and name.endswith("weight"):
                noise += 1
            weight.copy_(noise)


def main() -> None:
    """Write all folders."""
    transformers.logging.set_verbosity_error()
    for seed, (name, model) in enumerate(models().items()):
        model.eval()
        draw(model, seed)
        # The second example is padded at its end. RoBERTa reads positions off the padding's id.
        padding = getattr(model.config, "pad_token_id", None) or 0
        ids = np.random.default_rng(seed).integers(3, VOCABULARY, (2, LENGTH))
        valid = np.arange(LENGTH) < np.array([[LENGTH], [6]])
        ids = np.where(valid, ids, padding)
        with torch.no_grad():
            output = model(torch.tensor(ids), attention_mask=torch.tensor(valid).long())
        found = output.get("logits", output.get("last_hidden_state"))
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        np.savez_compressed(
            folder / "expected.npz", ids=ids.astype(np.int32), valid=valid, outputs=found.numpy()
        )
        size = sum(file.stat().st_size for file in folder.iterdir())
        print(f"{name}: {size / 1000:.0f} kB, largest output {found.abs().max():.2f}")


if __name__ == "__main__":
    main()
