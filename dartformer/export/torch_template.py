"""A Transformer found by dartformer, in plain PyTorch: `load(".")(tokens, valid)` gives its logits.

Needs torch and safetensors, and neither dartformer nor JAX. It reads the weights that lie beside
it, every attention is written by its definition (O(N^2) in time and memory), and nothing is dropped
in training.

    model = load("folder of the export")       # an nn.Module, on the CPU: .to("cuda"), .compile(),
    fine-tune it logits = model(tokens, valid)              # tokens [B, N] integers, valid [B, N]
    bool
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE: dict[str, Any] = {}
"""Sizes and choices of the Transformer."""

GENOTYPE: list[list[tuple[list[int], str, dict[str, Any]]]] = []
"""For each layer its groups of heads: which heads, their attention, its options."""


class Heads(NamedTuple):
    """What an attention reads of its heads: q, k, v `[B, N, H, D]`, x `[B, N, E]`, valid `[B, N]`,
    ALiBi's slopes `[H]` or None; and its own parameters by name."""

    q: Tensor
    k: Tensor
    v: Tensor
    x: Tensor
    valid: Tensor
    slopes: Tensor | None
    own: Mapping[str, Tensor]
    causal: bool

    def distance(self) -> Tensor:
        """`[N, N]`: key position less query position."""
        position = torch.arange(self.q.shape[1], device=self.q.device)
        return position - position[:, None]

    def allowed(self) -> Tensor:
        """Which key each query may see, `[B, 1, N, N]`."""
        keys = self.valid[:, None, None, :]
        return (
            keys & (self.distance() <= 0)
            if self.causal
            else keys.expand(-1, 1, self.q.shape[1], -1)
        )

    def biased(self, scores: Tensor) -> Tensor:
        """Scores `[B, H, N, N]` less ALiBi's slope times the distance."""
        if self.slopes is None:
            return scores
        return scores - self.slopes[:, None, None] * self.distance().abs().to(scores.dtype)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled dot products `[B, H, N, N]`."""
        return self.biased(torch.einsum("bnhd,bkhd->bhnk", q, k) * q.shape[-1] ** -0.5)

    def masked(self, a: Tensor) -> Tensor:
        """`[B, N, H, D]` with zeros at tokens that are not valid."""
        return a * self.valid[:, :, None, None].to(a.dtype)


def softmax(scores: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Over the last axis, where allowed; zeros where nothing is."""
    if allowed is None:
        return torch.softmax(scores, -1)
    scores = torch.where(allowed, scores, torch.full_like(scores, -1e30))
    exponentials = torch.exp(scores - scores.amax(-1, keepdim=True).clamp(min=-1e29))
    total = exponentials.sum(-1, keepdim=True)
    return exponentials / torch.where(total == 0, torch.ones_like(total), total)


def mix(rows: Tensor, v: Tensor) -> Tensor:
    """`[B, H, N, N]` times `[B, N, H, D]`."""
    return torch.einsum("bhnk,bkhd->bnhd", rows, v)


def normalised(products: Tensor, allowed: Tensor) -> Tensor:
    """Products of features where allowed, rows divided by their sum; zeros where that is zero."""
    products = torch.where(allowed, products, torch.zeros_like(products))
    total = products.sum(-1, keepdim=True)
    return products / torch.where(total == 0, torch.ones_like(total), total)


def pattern_attention(heads: Heads, pattern: Tensor) -> Tensor:
    """Softmax attention over the keys that `pattern` `[N, N]` allows."""
    return mix(softmax(heads.scores(heads.q, heads.k), heads.allowed() & pattern), heads.v)


def full(heads: Heads) -> Tensor:
    """Softmax over all tokens."""
    return mix(softmax(heads.scores(heads.q, heads.k), heads.allowed()), heads.v)


def local(heads: Heads, window: int) -> Tensor:
    """Softmax over a sliding window."""
    return pattern_attention(heads, heads.distance().abs() <= window)


def strided(heads: Heads, stride: int) -> Tensor:
    """Softmax over every so many tokens."""
    return pattern_attention(heads, heads.distance() % stride == 0)


def block(heads: Heads, size: int) -> Tensor:
    """Softmax within blocks."""
    number = torch.arange(heads.q.shape[1], device=heads.q.device) // size
    return pattern_attention(heads, number[:, None] == number)


def sparse(heads: Heads, stride: int, summary: int | None, pattern: str) -> Tensor:
    """Softmax over a block and summaries, or over a window and columns."""
    j = torch.arange(heads.q.shape[1], device=heads.q.device)
    if pattern == "strided":
        return pattern_attention(
            heads, (heads.distance().abs() <= stride) | (heads.distance() % stride == 0)
        )
    columns = max(1, stride // 16) if summary is None else summary
    return pattern_attention(
        heads, (j[:, None] // stride == j // stride) | (j % stride >= stride - columns)
    )


def sink(heads: Heads, window: int, sinks: int) -> Tensor:
    """Softmax over a sliding window and the first tokens."""
    j = torch.arange(heads.q.shape[1], device=heads.q.device)
    return pattern_attention(heads, (heads.distance().abs() <= window) | (j < sinks))


def linear(heads: Heads, feature: str) -> Tensor:
    """Positive features in place of the softmax."""
    q, k, allowed = heads.q, heads.k, heads.allowed()
    if feature in ("exp", "softmax"):
        k = k.log_softmax(-1) if feature == "softmax" else k
        logarithms = torch.logsumexp(q[:, :, None] + k[:, None], -1).permute(0, 3, 1, 2)
        return mix(softmax(logarithms, allowed), heads.v)
    q, k = (F.elu(a) + 1 if feature == "elu" else F.relu(a) for a in (q, k))
    return mix(normalised(torch.einsum("bnhd,bkhd->bhnk", q, k), allowed), heads.v)


def cosformer(heads: Heads, horizon: int) -> Tensor:
    """ReLU features, weighed by the cosine of the distance."""
    length = heads.q.shape[1]
    position = torch.arange(length, device=heads.q.device, dtype=heads.q.dtype)[None]
    if horizon:
        angle = position / horizon * (math.pi / 2)
    else:
        inside = heads.valid
        start = torch.where(inside, position, torch.full_like(position, length - 1)).amin(
            1, keepdim=True
        )
        last = torch.where(inside, position, torch.zeros_like(position)).amax(1, keepdim=True)
        angle = (position - start) / (last - start + 1).clamp(min=1) * (math.pi / 2)
    products = torch.einsum("bnhd,bkhd->bhnk", F.relu(heads.q), F.relu(heads.k))
    products = products * torch.cos(angle[:, :, None] - angle[:, None])[:, None]
    return mix(normalised(products, heads.allowed()), heads.v)


def linformer(heads: Heads, rank: int, sharing: str) -> Tensor:
    """Softmax over a few learned slots in place of tokens."""
    length = heads.q.shape[1]
    e = heads.own["E"][..., :length]
    f = heads.own["F"][..., :length] if "F" in heads.own else e
    k, v = (
        torch.einsum("hmn,bnhd->bhmd", w, heads.masked(a)) for w, a in ((e, heads.k), (f, heads.v))
    )
    rows = softmax(torch.einsum("bnhd,bhmd->bhnm", heads.q, k) * heads.q.shape[-1] ** -0.5)
    return torch.einsum("bhnm,bhmd->bnhd", rows, v)


def synthesizer(heads: Heads, mode: str, rank: int | None) -> Tensor:
    """Softmax of scores that no pair of tokens makes."""
    length, own = heads.q.shape[1], heads.own
    if mode == "dense":
        hidden = F.relu(torch.einsum("bne,hem->bhnm", heads.x, own["W1"]))
        scores = torch.einsum("bhnm,hmk->bhnk", hidden, own["W2"][..., :length])
    elif mode == "random":
        scores = own["R"][None, :, :length, :length]
    else:
        scores = torch.einsum("hnm,hkm->hnk", own["R1"][:, :length], own["R2"][:, :length])[None]
    scores = heads.biased(scores).expand(heads.q.shape[0], -1, -1, -1)
    return mix(softmax(scores, heads.allowed()), heads.v)


def differential(heads: Heads, lambda_init: float) -> Tensor:
    """Difference of two softmaxes."""
    half, own = heads.q.shape[-1] // 2, heads.own
    first, second = (
        softmax(heads.scores(heads.q[..., part], heads.k[..., part]), heads.allowed())
        for part in (slice(half), slice(half, None))
    )
    share = (
        torch.exp((own["lambda_q1"] * own["lambda_k1"]).sum(-1))
        - torch.exp((own["lambda_q2"] * own["lambda_k2"]).sum(-1))
        + lambda_init
    )
    return mix(first - share[:, None, None] * second, heads.v)


def conv(heads: Heads, width: int) -> Tensor:
    """Depthwise convolution."""
    before = width - 1 if heads.causal else width // 2
    v, kernel = (
        F.pad(heads.masked(heads.v), (0, 0, 0, 0, before, width - 1 - before)),
        heads.own["kernel"],
    )
    return torch.stack([v[:, t : t + heads.v.shape[1]] * kernel[:, t] for t in range(width)]).sum(0)


def uniform(heads: Heads) -> Tensor:
    """The mean of the tokens seen."""
    return mix(normalised(heads.allowed().to(heads.v.dtype), heads.allowed()), heads.v)


def identity(heads: Heads) -> Tensor:
    """Each token itself."""
    return heads.v


ATTENTIONS = {
    one.__name__: one
    for one in (
        full,
        local,
        strided,
        block,
        sparse,
        sink,
        linear,
        cosformer,
        linformer,
        synthesizer,
        differential,
        conv,
        uniform,
        identity,
    )
}
"""The types that can be written here; `parallel` is made of them."""


def rms_norm(y: Tensor, gain: Tensor | None = None) -> Tensor:
    """`gain y / sqrt(mean(y^2) + 1e-6)` over the last axis."""
    y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + 1e-6)
    return y if gain is None else y * gain


def rotate(x: Tensor) -> Tensor:
    """Rotary positions: the pairs (i, i + D/2) of token n turned by n / 10000^(2 i / D)."""
    half = x.shape[-1] // 2
    rate = 10_000.0 ** (torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[1], device=x.device, dtype=torch.float64)[:, None] / rate
    cos, sin = (f(angle).to(x.dtype)[:, None] for f in (torch.cos, torch.sin))
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def sinusoids(length: int, width: int) -> Tensor:
    """Sinusoidal positions `[N, E]`: sines first, then cosines."""
    half = (width + 1) // 2
    rate = 10_000.0 ** (torch.arange(half, dtype=torch.float64) / max(half - 1, 1))
    angle = torch.arange(length, dtype=torch.float64)[:, None] / rate
    return torch.cat([torch.sin(angle), torch.cos(angle)], 1)[:, :width].float()


class Model(nn.Module):
    """tokens `[B, N]` and valid `[B, N]` to logits `[B, C]`, or `[B, N, C]` of a model that labels
    tokens.

    Of two documents tokens and valid are `[B, 2, N]`; tokens that are numbers are `[B, N, F]`.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict(dict(weights))

    def dense(self, name: str, x: Tensor) -> Tensor:
        """A linear layer."""
        return x @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        """A layer norm."""
        return F.layer_norm(
            x, x.shape[-1:], self.weights[f"{name}/scale"], self.weights[f"{name}/bias"], 1e-6
        )

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """See `Model`."""
        w = self.weights
        if SHAPE["inputs"] == 2:
            tokens, valid = (a.reshape(-1, *a.shape[2:]) for a in (tokens, valid))
        x = (
            self.dense("embed", tokens)
            if SHAPE["features"]
            else w["embed/embedding"][tokens.long()]
        )
        if SHAPE["stem"] == "bigram":
            before = w["before/embedding"][tokens[:, :-1].long()] * valid[:, :-1, None].to(x.dtype)
            x = x + F.pad(before, (0, 0, 1, 0))
        if SHAPE["pooling"] == "cls":
            x = torch.cat([w["cls"].expand(x.shape[0], 1, -1), x], 1)
            valid = F.pad(valid, (1, 0), value=True)
        if SHAPE["positions"] == "learned":
            x = x + w["positions"][: x.shape[1]]
        elif SHAPE["positions"] == "sinusoidal":
            x = x + sinusoids(x.shape[1], x.shape[2]).to(x)
        for l in range(len(GENOTYPE)):
            x = x + self.heads(l, self.norm(f"blocks/{l}/norm_mixer", x), valid)
            hidden = F.gelu(
                self.dense(f"blocks/{l}/up", self.norm(f"blocks/{l}/norm_mlp", x)),
                approximate="tanh",
            )
            x = x + self.dense(f"blocks/{l}/down", hidden)
        x = self.pool(self.norm("norm", x), valid)
        if SHAPE["inputs"] == 2:
            u, v = x.reshape(-1, 2, x.shape[-1]).unbind(1)
            x = torch.cat([u, v, u * v, u - v] if SHAPE["pair"] == "interaction" else [u, v], -1)
        if SHAPE["classifier"] == "mlp":
            x = F.relu(self.dense("hidden", x))
            if SHAPE["inputs"] == 2:
                x = F.relu(self.dense("hidden_half", x))
        return self.dense("head", x)

    def heads(self, layer: int, x: Tensor, valid: Tensor) -> Tensor:
        """All heads of a layer, `[B, N, E]` to `[B, N, E]`."""
        at = f"blocks/{layer}/mixer/projections/0"
        q, k, v = (torch.einsum("bne,ehd->bnhd", x, self.weights[f"{at}/{name}"]) for name in "qkv")
        if SHAPE["qk_norm"]:
            q, k = (
                rms_norm(q, self.weights[f"{at}/q_norm"]),
                rms_norm(k, self.weights[f"{at}/k_norm"]),
            )
        if SHAPE["positions"] == "rotary":
            q, k = rotate(q), rotate(k)
        k, v = (a.repeat_interleave(q.shape[2] // a.shape[2], 2) for a in (k, v))
        slopes = (
            torch.tensor(SHAPE["slopes"], dtype=q.dtype, device=q.device)
            if SHAPE["slopes"]
            else None
        )
        out = torch.zeros_like(v)
        for g, (index, name, options) in enumerate(GENOTYPE[layer]):
            prefix = f"blocks/{layer}/mixer/own/{g}/"
            own = {
                key[len(prefix) :]: self.weights[key]
                for key in self.weights
                if key.startswith(prefix)
            }
            heads = Heads(
                q[:, :, index],
                k[:, :, index],
                v[:, :, index],
                x,
                valid,
                None if slopes is None else slopes[index],
                own,
                SHAPE["causal"],
            )
            out[:, :, index] = self.attend(name, options, heads)
        return torch.einsum("bnhd,hde->bne", out, self.weights[f"{at}/o"])

    def attend(self, name: str, options: dict[str, Any], heads: Heads) -> Tensor:
        """One attention on its heads, normalised if the model was; each member of a parallel
        one."""
        if name == "parallel":
            total = torch.zeros_like(heads.v)
            for m, (share, member, its) in enumerate(options["members"]):
                own = {
                    key[len(f"{m}/") :]: a
                    for key, a in heads.own.items()
                    if key.startswith(f"{m}/")
                }
                total = total + share * self.attend(member, its, heads._replace(own=own))
            return total
        y = heads.masked(ATTENTIONS[name](heads, **options))
        return rms_norm(y) if SHAPE["branch_norm"] else y

    def pool(self, x: Tensor, valid: Tensor) -> Tensor:
        """`[B, N, E]` to `[B, E]`; or all tokens, where each has a label."""
        if SHAPE["pooling"] == "mean":
            inside = valid[..., None].to(x.dtype)
            return (x * inside).sum(1) / inside.sum(1).clamp(min=1)
        if SHAPE["pooling"] == "cls":
            return x[:, 0]
        if SHAPE["pooling"] == "last":
            position = torch.arange(x.shape[1], device=x.device)
            last = torch.where(valid, position, torch.zeros_like(position)).amax(1)
            return x[torch.arange(x.shape[0], device=x.device), last]
        return x


def load(folder: str | Path = ".") -> Model:
    """The model of an exported folder, in evaluation mode, on the CPU."""
    return Model(load_file(Path(folder) / "weights.safetensors")).eval()
