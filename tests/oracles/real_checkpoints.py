"""What transformers computes of two real checkpoints, stored for `tests/pretrained`.

    build/oracles/bin/python tests/pretrained/smollm2.py build/smollm2
    build/oracles/bin/python tests/oracles/real_checkpoints.py build/smollm2 MINILM_FOLDER

It must not import dartformer."""

import sys
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

FOLDER = Path(__file__).parents[1] / "pretrained"

TEXT = (
    "A Transformer reads a text token by token. In every layer each token looks at the others, and "
    "what it sees is added to what it was. Some layers look at all tokens, and 12 of them at the "
    "last 256 only, which is cheaper. Whether that costs anything depends on the text: a name that "
    "was given at the beginning must be found again, 4,096 tokens later."
)
PROMPT = "The capital of France is"
SENTENCES = [
    "A man is eating food.",
    "A man is eating a piece of bread.",
    "The girl carries a baby.",
]

COLUMNS = 256
"""Words of the vocabulary whose logits are stored."""

NEW_TOKENS = 32


def smollm2(folder: str) -> dict[str, np.ndarray]:
    """Logits at some words, the largest of all, and a greedy continuation."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    prompt = tokenizer(PROMPT, return_tensors="pt")
    with torch.no_grad():
        logits = model(ids).logits[0].numpy()
        continued = model.generate(**prompt, max_new_tokens=NEW_TOKENS, do_sample=False)
    columns = np.random.default_rng(0).choice(logits.shape[1], COLUMNS, replace=False)
    return {
        "ids": ids.numpy().astype(np.int32),
        "columns": columns.astype(np.int32),
        "logits": logits[:, columns],
        "largest": logits.max(-1),
        "best": logits.argmax(-1).astype(np.int32),
        "prompt": prompt["input_ids"].numpy().astype(np.int32),
        "continued": continued.numpy().astype(np.int32),
    }


def minilm(folder: str) -> dict[str, np.ndarray]:
    """The last hidden states of sentences."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**batch).last_hidden_state.numpy()
    return {
        "ids": batch["input_ids"].numpy().astype(np.int32),
        "valid": batch["attention_mask"].numpy().astype(bool),
        "states": states,
    }


if __name__ == "__main__":
    for name, arrays in (("smollm2", smollm2(sys.argv[1])), ("minilm", minilm(sys.argv[2]))):
        file = FOLDER / f"{name}.npz"
        np.savez_compressed(file, **arrays)
        print(f"{file}: {file.stat().st_size / 1000:.0f} kB")
