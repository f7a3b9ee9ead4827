"""What transformers computes of checkpoints whose layers dartformer gave windows.

    build/oracles/bin/python tests/oracles/hybrids.py

Each folder of `hybrids/` holds a `config.json` as `df.save_pretrained` writes it for a checkpoint of
`checkpoints/`, whose weights it keeps, and gets `expected.npz`: ids `[2, 10]`, which of them are
valid, the logits, and how many tokens each layer's cache holds. It must not import dartformer."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent


def main() -> None:
    """Write `expected.npz` in all folders."""
    for folder in sorted((HERE / "hybrids").iterdir()):
        plain = HERE / "checkpoints" / folder.name
        with tempfile.TemporaryDirectory() as place:
            shutil.copy(folder / "config.json", place)
            shutil.copy(plain / "model.safetensors", place)
            model, loading = AutoModelForCausalLM.from_pretrained(place, output_loading_info=True)
        if any(loading.values()):
            raise SystemExit(f"{folder.name}: {loading}")
        given = np.load(plain / "expected.npz")
        ids, valid = torch.tensor(given["ids"]), torch.tensor(given["valid"]).long()
        with torch.no_grad():
            output = model.eval()(ids.long(), attention_mask=valid)
        kept = []
        for layer in output.past_key_values.layers:
            kept.append(layer.keys.shape[2])
        np.savez_compressed(
            folder / "expected.npz",
            ids=given["ids"],
            valid=given["valid"],
            outputs=output.logits.numpy(),
            kept=kept,
        )
        print(f"{folder.name}: {type(model).__name__}, {kept} tokens kept")


if __name__ == "__main__":
    main()
