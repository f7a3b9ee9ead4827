"""The other side of peers.py: attentions of other packages, in the interpreter that has them.

Reads requests as lines of JSON, answers each with one: {"make": NAME, "sizes": [B, N, H, D],
"compile": bool, "limit": seconds} gives {"packages": ...}, and {"run": NAME, "compile": bool,
"cpu_time": bool} gives the seconds of a forward and backward pass. Where a module makes q, k and v of its input, the
projections are replaced by nothing, so that all three are its input: it does less than ours.
Options are those of the specs in peers.py."""

import contextlib
import importlib.metadata
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Made = tuple[list[torch.Tensor], Callable[..., torch.Tensor]]
"""What is differentiated by, and the function of the first of them that are no parameters."""

PEERS: dict[str, tuple[str, Callable[[int, int, int, int], Made]]] = {}


def peer(name: str, package: str) -> Callable[[Callable], Callable]:
    """Enter the decorated function as what makes the peer `name`, of a package."""

    def enter(make: Callable) -> Callable:
        PEERS[name] = package, make
        return make

    return enter


class Copies(nn.Module):
    """A stand-in for a projection: its input, several times side by side."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[..., E]` to `[..., count E]`."""
        return torch.cat(
            [x] * self.count, -1
        )  # a copy of one, too: some change what a projection made in place


def leaves(count: int, *sizes: int) -> list[torch.Tensor]:
    """Random tensors that are differentiated by."""
    return [torch.randn(sizes, requires_grad=True) for _ in range(count)]


@peer("torch", "torch")
def sdpa(b: int, n: int, h: int, d: int) -> Made:
    return leaves(3, b, h, n, d), functional.scaled_dot_product_attention


@peer("local-attention", "local-attention")
def local(b: int, n: int, h: int, d: int) -> Made:
    from local_attention import LocalAttention

    module = LocalAttention(64, autopad=True, exact_windowsize=True, use_rotary_pos_emb=False)
    return leaves(3, b, h, n, d), module


@peer("performer-pytorch", "performer-pytorch")
def performer(b: int, n: int, h: int, d: int) -> Made:
    from performer_pytorch import FastAttention

    return leaves(3, b, h, n, d), FastAttention(d, nb_features=128)


@peer("linformer", "linformer")
def linformer(b: int, n: int, h: int, d: int) -> Made:
    from linformer import LinformerSelfAttention

    module = LinformerSelfAttention(h * d, n, k=64, heads=h, dim_head=d)
    module.to_q, module.to_k, module.to_v, module.to_out = (Copies() for _ in range(4))
    return [*leaves(1, b, n, h * d), *module.parameters()], module


@peer("reformer-pytorch", "reformer-pytorch")
def reformer(b: int, n: int, h: int, d: int) -> Made:
    from reformer_pytorch import LSHAttention

    module = LSHAttention(bucket_size=64, n_hashes=4, attend_across_buckets=False)
    return leaves(2, b * h, n, d), lambda qk, v: module(qk, v)[0]


@peer("sinkhorn-transformer", "sinkhorn-transformer")
def sinkhorn(b: int, n: int, h: int, d: int) -> Made:
    from sinkhorn_transformer.sinkhorn_transformer import SinkhornAttention

    module = SinkhornAttention(
        64,
        h * d,
        d,
        h,
        n,
        temperature=0.75,
        non_permutative=False,
        sinkhorn_iter=5,
        use_simple_sort_net=True,
    )
    return [*leaves(3, b, h, n, d), *module.parameters()], module


@peer("nystrom-attention", "nystrom-attention")
def nystrom(b: int, n: int, h: int, d: int) -> Made:
    from nystrom_attention import NystromAttention

    module = NystromAttention(h * d, dim_head=d, heads=h, num_landmarks=64, residual=False)
    module.to_qkv, module.to_out = Copies(3), Copies()
    return leaves(1, b, n, h * d), module


@peer("transformers-longformer", "transformers")
def longformer(b: int, n: int, h: int, d: int) -> Made:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(
        hidden_size=h * d,
        num_attention_heads=h,
        attention_window=[128],
        num_hidden_layers=1,
        attention_probs_dropout_prob=0.0,
    )
    module = LongformerSelfAttention(config, 0)
    module.query, module.key, module.value = (Copies() for _ in range(3))
    mask = torch.zeros(b, n)
    mask[:, 0] = 10000.0
    options = {
        "attention_mask": mask,
        "is_index_masked": mask < 0,
        "is_index_global_attn": mask > 0,
        "is_global_attn": True,
    }
    return [*leaves(1, b, n, h * d), *module.parameters()], lambda x: module(x, **options)[0]


@peer("transformers-bigbird", "transformers")
def bigbird(b: int, n: int, h: int, d: int) -> Made:
    from transformers import BigBirdConfig
    from transformers.models.big_bird.modeling_big_bird import (
        BigBirdBlockSparseAttention,
        BigBirdModel,
    )

    config = BigBirdConfig(
        hidden_size=h * d,
        num_attention_heads=h,
        block_size=64,
        num_random_blocks=3,
        max_position_embeddings=4096,
        attention_type="block_sparse",
        attention_probs_dropout_prob=0.0,
    )
    module = BigBirdBlockSparseAttention(config, seed=0).train()
    module.query, module.key, module.value = (Copies() for _ in range(3))
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(
        torch.ones(b, n), 64
    )
    options = {
        "band_mask": band,
        "from_mask": rows,
        "to_mask": columns,
        "from_blocked_mask": blocked,
        "to_blocked_mask": blocked,
    }
    return leaves(1, b, n, h * d), lambda x: module(x, **options)[0]


@peer("fla-linear-chunk", "flash-linear-attention")
def fla_linear(b: int, n: int, h: int, d: int) -> Made:
    from fla.ops.linear_attn.naive import naive_chunk_linear_attn

    return leaves(3, b, n, h, d), lambda q, k, v: naive_chunk_linear_attn(
        functional.elu(q) + 1, functional.elu(k) + 1, v, normalize=True
    )[0]


@peer("fla-retention", "flash-linear-attention")
def fla_retention(b: int, n: int, h: int, d: int) -> Made:
    from fla.ops.retention.naive import naive_retention

    return leaves(3, b, h, n, d), naive_retention


def decays(b: int, n: int, h: int, *more: int) -> torch.Tensor:
    """Logarithms of decays, given and not made of the input, as ours are."""
    return functional.logsigmoid(torch.randn(b, n, h, *more) + 4).detach().requires_grad_()


@peer("fla-simple-gla-chunk", "flash-linear-attention")
def fla_simple(b: int, n: int, h: int, d: int) -> Made:
    from fla.ops.simple_gla.naive import naive_chunk_simple_gla

    return [*leaves(3, b, n, h, d), decays(b, n, h)], lambda q, k, v, g: naive_chunk_simple_gla(
        q, k, v, g
    )[0]


@peer("fla-gla-recurrent", "flash-linear-attention")
def fla_gla(b: int, n: int, h: int, d: int) -> Made:
    from fla.ops.gla.naive import naive_recurrent_gla

    return [*leaves(3, b, n, h, d), decays(b, n, h, d)], lambda q, k, v, g: naive_recurrent_gla(
        q, k, v, g
    )[0]


@peer("fla-gated-delta-chunk", "flash-linear-attention")
def fla_delta(b: int, n: int, h: int, d: int) -> Made:
    from fla.ops.gated_delta_rule.naive import naive_chunk_gated_delta_rule

    beta = torch.rand(b, n, h, requires_grad=True)
    return [
        *leaves(3, b, n, h, d),
        decays(b, n, h),
        beta,
    ], lambda q, k, v, g, beta: naive_chunk_gated_delta_rule(
        functional.normalize(q, dim=-1), functional.normalize(k, dim=-1), v, g, beta
    )[0]


class Step:
    """A forward and a backward pass of one peer."""

    def __init__(self, name: str, sizes: list[int], compile: bool) -> None:
        torch.manual_seed(0)
        self.by, function = PEERS[name][1](*sizes)
        self.inputs = [t for t in self.by if not isinstance(t, nn.Parameter)]
        self.function = torch.compile(function) if compile else function
        with torch.no_grad():
            self.cotangent = torch.randn_like(function(*self.inputs))

    def __call__(self, cpu_time: bool = False) -> float:
        """Seconds of the wall, or of all threads."""
        clock = time.process_time if cpu_time else time.perf_counter
        started = clock()
        torch.autograd.grad(
            (self.function(*self.inputs) * self.cotangent).sum(), self.by, allow_unused=True
        )
        return clock() - started


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise TimeoutError in what takes longer."""

    def end(*_: Any) -> None:
        raise TimeoutError(f"more than {seconds} s")

    signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print must not stand between the answers
    torch.set_num_threads(int(sys.argv[1]))
    made: dict[tuple[str, bool], Step] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "make" in request:
                name, compile = request["make"], request["compile"]
                if not compile:
                    made.clear()  # the last peer's
                else:
                    torch.compile(torch.neg)(torch.ones(1))  # imports, which must not be cut short
                made[name, compile] = step = Step(name, request["sizes"], compile)
                with within(request["limit"]) if compile else contextlib.nullcontext():
                    step()
                answer: dict[str, Any] = {
                    "packages": {
                        p: importlib.metadata.version(p) for p in {PEERS[name][0], "torch"}
                    }
                }
            else:
                answer = {"seconds": made[request["run"], request["compile"]](request["cpu_time"])}
        except Exception as error:  # whatever a package raises, the others are still measured
            answer = {
                "error": f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[
                    :200
                ]
            }
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
