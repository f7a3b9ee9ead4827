"""Tokens a second of a checkpoint that is decoded, beside transformers on the same machine.

    python tests/pretrained/smollm2.py build/smollm2
    python experiments/benchmarks/generate.py build/smollm2 --peer=PYTHON

Both continue the same prompt by the most probable token, one row, with a key-value cache; the prompt
and compiling are not timed. PYTHON is an interpreter that has torch and transformers. The floor is
the time in which the weights pass through memory once, at the speed of a sum over a large array.
"""

import argparse
import json
import subprocess
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from measure import machine, say

import dartformer as df
from dartformer.models.decode import decoding

PROMPT = "The history of the steam engine begins"

PEER = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, prompt, count, dtype = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
torch.set_num_threads(int(sys.argv[5]))
model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
ids = AutoTokenizer.from_pretrained(folder)(prompt, return_tensors="pt").input_ids
seconds = []
with torch.no_grad():
    for round in range(3):
        times = []
        class Clock:
            def put(self, value): times.append(time.perf_counter())
            def end(self): pass
        out = model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False,
                             streamer=Clock())
        # The first call is the prompt, and the second the token that follows it.
        seconds.append((times[-1] - times[1]) / (len(times) - 2))
print(json.dumps({"seconds": seconds, "ids": out[0, ids.shape[1]:].tolist()}))
"""


def ours(folder: str, count: int, dtype: str, by_layer: bool = True) -> dict[str, Any]:
    """Seconds a token in each of three rounds, the tokens, and CPU seconds to start.

    A start compiles the programs and gives two tokens. With `by_layer` equal layers share a program,
    as they do in `dartformer generate`; without it a program has all layers.
    """
    model = df.load_pretrained(folder, dtype=dtype)
    weights = model.weights
    if dtype != "float32":
        # In memory as they are computed with.
        weights = jax.tree.map(lambda leaf: leaf.astype(dtype), weights)
    run = decoding(model.config, model.genotype, by_layer=by_layer)
    tokens, valid = model.encode([PROMPT])
    exists = jnp.ones((1, 1), bool)

    def first(weights, cache):
        logits, cache = run.prefill(weights, tokens, valid, cache)
        return logits.argmax(-1), cache

    def step(weights, token, cache):
        logits, cache = run.step(weights, token[:, None], exists, cache)
        return logits.argmax(-1), cache

    if not by_layer:
        first, step = jax.jit(first, donate_argnums=1), jax.jit(step, donate_argnums=2)
    began = time.process_time()
    token, cache = first(weights, run.init_cache(1, tokens.shape[1] + count, dtype))
    step(weights, token, cache)[0].block_until_ready()
    start = time.process_time() - began
    seconds, ids = [], []
    for _ in range(3):
        cache = run.init_cache(1, tokens.shape[1] + count, dtype)
        token, cache = first(weights, cache)
        ids = [int(token[0])]
        started = time.perf_counter()
        for _ in range(count - 1):
            token, cache = step(weights, token, cache)
            # Each token is read, as one that is shown.
            ids.append(int(token[0]))
        seconds.append((time.perf_counter() - started) / (count - 1))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(weights))
    return {"seconds": seconds, "ids": ids, "bytes": size, "start": start}


def bandwidth() -> float:
    """Bytes a second that one sum over a large array reads."""
    array = jnp.ones(2**27, jnp.float32)
    total = jax.jit(jnp.sum)
    total(array).block_until_ready()
    best = np.inf
    for _ in range(5):
        started = time.perf_counter()
        total(array).block_until_ready()
        best = min(best, time.perf_counter() - started)
    return array.nbytes / best


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="of a decoder, such as SmolLM2-135M-Instruct")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--peer", default="", help="an interpreter that has transformers")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--threads", type=int, default=2, help="of the peer")
    arguments = parser.parse_args()
    machine()
    speed = bandwidth()
    say(name="bandwidth", gigabytes_a_second=speed / 1e9)
    for dtype in arguments.dtypes.split(","):
        decoded = ours(arguments.folder, arguments.tokens, dtype)
        mine = min(decoded["seconds"])
        row = {
            "tokens_a_second": 1 / mine,
            "floor_tokens_a_second": speed / decoded["bytes"],
            "megabytes_a_token": decoded["bytes"] / 1e6,
        }
        if dtype == "float32":
            whole = ours(arguments.folder, arguments.tokens, dtype, by_layer=False)
            row["start_cpu_seconds"] = decoded["start"]
            row["one_program_start_cpu_seconds"] = whole["start"]
            row["one_program_tokens_a_second"] = 1 / min(whole["seconds"])
            row["one_program_same_tokens"] = whole["ids"] == decoded["ids"]
        if arguments.peer:
            values = (arguments.folder, PROMPT, arguments.tokens, dtype, arguments.threads)
            command = [arguments.peer, "-c", PEER, *map(str, values)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True)
            peer = json.loads(answer.stdout.splitlines()[-1])
            same = np.array(peer["ids"]) == np.array(decoded["ids"])
            row["transformers_tokens_a_second"] = 1 / min(peer["seconds"])
            row["ratio"] = min(peer["seconds"]) / mine
            row["same_tokens"] = int(np.cumprod(same).sum())
        say(name="decode", dtype=dtype, tokens=arguments.tokens, **row)


if __name__ == "__main__":
    main()
