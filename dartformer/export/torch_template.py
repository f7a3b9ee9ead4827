"""A Transformer found by dartformer, in plain PyTorch: `load(".")(tokens, valid)` gives its logits.

Needs torch and safetensors, and neither dartformer nor JAX. It reads the weights that lie beside
it, every attention is written by its definition (O(N^2) in time and memory), and nothing is dropped
in training.

    # An nn.Module, on the CPU: .to("cuda"), .compile(), fine-tune it.
    model = load("folder of the export")
    # tokens [B, N] integers, valid [B, N] bool.
    logits = model(tokens, valid)
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

Options: TypeAlias = dict[str, Any]
"""The options of an attention, by name."""

SHAPE: dict[str, Any] = {}
"""Sizes and choices of the Transformer, the fields of `Sizes`."""

GENOTYPE: list[list[tuple[list[int], str, Options]]] = []
"""For each layer its groups of heads: which heads, their attention, its options."""


class Sizes(NamedTuple):
    """Sizes and choices of the Transformer, see the section `model` of `config.json`.

    `inputs` documents make an example; tokens have `features` numbers, or are ids if that is 0.
    """

    inputs: int = 1
    features: int = 0
    stem: str = "none"
    pooling: str = "mean"
    positions: str = "learned"
    pair: str = "interaction"
    classifier: str = "linear"
    qk_norm: bool = False
    branch_norm: bool = True
    causal: bool = False
    slopes: list[float] | None = None
    norm: str = "layer"
    norm_eps: float = 1e-6
    norm_place: str = "before"
    embed_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    activation: str = "gelu_tanh"
    gated_mlp: bool = False
    rope_theta: float = 10_000.0
    nope_layers: tuple[int, ...] = ()
    position_offset: int = 0
    token_types: int = 0
    tie_embeddings: bool = False
    output_gate: str = "none"
    short_conv: int = 0


SIZES = Sizes(**SHAPE)


class Heads(NamedTuple):
    """What an attention reads of its heads.

    q, k, v `[B, N, H, D]`, x `[B, N, E]`, valid `[B, N]`, ALiBi's slopes `[H]` or None, and the
    parameters of the attention by name.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    x: Tensor
    valid: Tensor
    slopes: Tensor | None
    parameters: Mapping[str, Tensor]
    causal: bool

    def distance(self) -> Tensor:
        """`[N, N]`: key position less query position."""
        position = torch.arange(self.q.shape[1], device=self.q.device)
        return position - position[:, None]

    def allowed(self) -> Tensor:
        """Which key each query may see, `[B, 1, N, N]`."""
        keys = self.valid[:, None, None, :]  # [B, 1, 1, N]
        if self.causal:
            return keys & (self.distance() <= 0)
        return keys.expand(-1, 1, self.q.shape[1], -1)

    def biased(self, scores: Tensor) -> Tensor:
        """Scores `[B, H, N, N]` less ALiBi's slope times the distance."""
        if self.slopes is None:
            return scores
        distance = self.distance().abs().to(scores.dtype)
        return scores - self.slopes[:, None, None] * distance  # [H, 1, 1] times [N, N]

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled dot products `[B, H, N, N]`."""
        products = torch.einsum("bnhd,bkhd->bhnk", q, k)
        return self.biased(products * q.shape[-1] ** -0.5)

    def masked(self, a: Tensor) -> Tensor:
        """`[B, N, H, D]` with zeros at tokens that are not valid."""
        return a * self.valid[:, :, None, None].to(a.dtype)


def softmax(scores: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Over the last axis, where allowed; zeros where nothing is."""
    if allowed is None:
        return torch.softmax(scores, -1)
    scores = torch.where(allowed, scores, torch.full_like(scores, -1e30))
    # In a row where nothing is allowed the largest score is -1e30. Less that, its scores would be
    # 0 and its weights uniform; less -1e29 they vanish.
    largest = scores.amax(-1, keepdim=True).clamp(min=-1e29)
    exponentials = torch.exp(scores - largest)
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
    # Child et al. 2019, arXiv:1904.10509: "strided" and "fixed" attention.
    if pattern == "strided":
        distance = heads.distance()
        window = distance.abs() <= stride
        columns = distance % stride == 0
        return pattern_attention(heads, window | columns)
    if summary is None:
        summary = max(1, stride // 16)
    j = torch.arange(heads.q.shape[1], device=heads.q.device)
    same_block = j[:, None] // stride == j // stride
    summaries = j % stride >= stride - summary  # the last tokens of each block
    return pattern_attention(heads, same_block | summaries)


def sink(heads: Heads, window: int, sinks: int) -> Tensor:
    """Softmax over a sliding window and the first tokens."""
    j = torch.arange(heads.q.shape[1], device=heads.q.device)
    return pattern_attention(heads, (heads.distance().abs() <= window) | (j < sinks))


def learned_feature(x: Tensor, w: Tensor) -> Tensor:
    """[softmax(W x), softmax(-W x)] of each head, at least 1e-12."""
    scores = torch.einsum("bnhd,hdm->bnhm", x, w)
    return torch.cat([scores.softmax(-1), (-scores).softmax(-1)], -1).clamp(min=1e-12)


def linear(heads: Heads, feature: str) -> Tensor:
    """Positive features in place of the softmax."""
    q, k, allowed = heads.q, heads.k, heads.allowed()
    if feature in ("exp", "softmax"):
        if feature == "softmax":
            k = k.log_softmax(-1)
        # Logarithms of the products of features, as exponentials may overflow.
        logarithms = torch.logsumexp(q[:, :, None] + k[:, None], -1)  # [B, N, N, H]
        return mix(softmax(logarithms.permute(0, 3, 1, 2), allowed), heads.v)
    if feature == "elu":
        q, k = F.elu(q) + 1, F.elu(k) + 1  # positive, as features of a kernel must be
    elif feature == "hedgehog":
        q = learned_feature(q, heads.parameters["W_q"])
        k = learned_feature(k, heads.parameters["W_k"])
    else:
        q, k = F.relu(q), F.relu(k)
    products = torch.einsum("bnhd,bkhd->bhnk", q, k)
    return mix(normalised(products, allowed), heads.v)


def cosformer(heads: Heads, horizon: int) -> Tensor:
    """ReLU features, weighed by the cosine of the distance."""
    length = heads.q.shape[1]
    position = torch.arange(length, device=heads.q.device, dtype=heads.q.dtype)[None]  # [1, N]
    if horizon:
        angle = position / horizon * (math.pi / 2)
    else:
        # A quarter turn from the first valid token of an example to its last.
        lowest, highest = torch.zeros_like(position), torch.full_like(position, length - 1)
        start = torch.where(heads.valid, position, highest).amin(1, keepdim=True)
        last = torch.where(heads.valid, position, lowest).amax(1, keepdim=True)
        angle = (position - start) / (last - start + 1).clamp(min=1) * (math.pi / 2)  # [B, N]
    products = torch.einsum("bnhd,bkhd->bhnk", F.relu(heads.q), F.relu(heads.k))
    cosines = torch.cos(angle[:, :, None] - angle[:, None])  # [B, N, N]
    products = products * cosines[:, None]
    return mix(normalised(products, heads.allowed()), heads.v)


def linformer(heads: Heads, rank: int, sharing: str) -> Tensor:
    """Softmax over a few learned slots in place of tokens."""
    length = heads.q.shape[1]
    # Weights for the longest input; a shorter one has the first columns. [H, M, N]
    e = heads.parameters["E"][..., :length]
    f = heads.parameters.get("F", e)[..., :length]
    k = torch.einsum("hmn,bnhd->bhmd", e, heads.masked(heads.k))
    v = torch.einsum("hmn,bnhd->bhmd", f, heads.masked(heads.v))
    products = torch.einsum("bnhd,bhmd->bhnm", heads.q, k)
    rows = softmax(products * heads.q.shape[-1] ** -0.5)  # all slots exist: nothing to mask
    return torch.einsum("bhnm,bhmd->bnhd", rows, v)


def synthesizer(heads: Heads, mode: str, rank: int | None) -> Tensor:
    """Softmax of scores that no pair of tokens makes."""
    length, weights = heads.q.shape[1], heads.parameters
    # Tables are for the longest input; a shorter one has the first rows and columns.
    if mode == "dense":
        hidden = F.relu(torch.einsum("bne,hem->bhnm", heads.x, weights["W1"]))
        scores = torch.einsum("bhnm,hmk->bhnk", hidden, weights["W2"][..., :length])
    elif mode == "random":
        scores = weights["R"][None, :, :length, :length]
    else:
        rows, columns = weights["R1"][:, :length], weights["R2"][:, :length]
        scores = torch.einsum("hnm,hkm->hnk", rows, columns)[None]
    # The same scores for every example, but each has its own mask.
    scores = heads.biased(scores).expand(heads.q.shape[0], -1, -1, -1)
    return mix(softmax(scores, heads.allowed()), heads.v)


def differential(heads: Heads, lambda_init: float) -> Tensor:
    """Difference of two softmaxes."""
    # Ye et al. 2024, arXiv:2410.05258: each head is two of half the width.
    half, weights = heads.q.shape[-1] // 2, heads.parameters
    allowed = heads.allowed()
    first = softmax(heads.scores(heads.q[..., :half], heads.k[..., :half]), allowed)
    second = softmax(heads.scores(heads.q[..., half:], heads.k[..., half:]), allowed)
    added = torch.exp((weights["lambda_q1"] * weights["lambda_k1"]).sum(-1))
    removed = torch.exp((weights["lambda_q2"] * weights["lambda_k2"]).sum(-1))
    share = added - removed + lambda_init  # [H]
    return mix(first - share[:, None, None] * second, heads.v)


def conv(heads: Heads, width: int) -> Tensor:
    """Depthwise convolution."""
    before = width // 2
    if heads.causal:
        before = width - 1  # no tap on a later token
    length, kernel = heads.v.shape[1], heads.parameters["kernel"]
    # Padded along N, the third axis from the last.
    v = F.pad(heads.masked(heads.v), (0, 0, 0, 0, before, width - 1 - before))
    taps = [v[:, t : t + length] * kernel[:, t] for t in range(width)]
    return torch.stack(taps).sum(0)


def uniform(heads: Heads) -> Tensor:
    """The mean of the tokens seen."""
    allowed = heads.allowed()
    return mix(normalised(allowed.to(heads.v.dtype), allowed), heads.v)


def identity(heads: Heads) -> Tensor:
    """Each token itself."""
    return heads.v


ATTENTIONS = {
    "full": full,
    "local": local,
    "strided": strided,
    "block": block,
    "sparse": sparse,
    "sink": sink,
    "linear": linear,
    "cosformer": cosformer,
    "linformer": linformer,
    "synthesizer": synthesizer,
    "differential": differential,
    "conv": conv,
    "uniform": uniform,
    "identity": identity,
}
"""The types that can be written here; `parallel` is made of them."""


GATES = {"sigmoid": torch.sigmoid, "silu": F.silu}
"""The activations of the gate of the heads' outputs."""


def activated(x: Tensor) -> Tensor:
    """The activation of the feed-forward layers."""
    if SIZES.activation == "silu":
        return F.silu(x)
    if SIZES.activation == "relu":
        return F.relu(x)
    # The default of JAX is the tanh form, that of PyTorch is the other.
    approximate = "none"
    if SIZES.activation == "gelu_tanh":
        approximate = "tanh"
    return F.gelu(x, approximate=approximate)


def convolved(x: Tensor, valid: Tensor, kernel: Tensor) -> Tensor:
    """SiLU of a causal convolution of `[B, N, H, D]` with `[W, H, D]`, the token itself first."""
    x = x * valid[:, :, None, None].to(x.dtype)
    total = torch.zeros_like(x)
    for j in range(len(kernel)):
        total[:, j:] = total[:, j:] + x[:, : x.shape[1] - j] * kernel[j]
    return F.silu(total)


def rms_norm(y: Tensor, gain: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """`gain y / sqrt(mean(y^2) + eps)` over the last axis."""
    y = y * torch.rsqrt((y * y).mean(-1, keepdim=True) + eps)
    if gain is None:
        return y
    return y * gain


def rotate(x: Tensor) -> Tensor:
    """Rotary positions: the pairs (i, i + D/2) of token n turned by n / theta^(2 i / D)."""
    half = x.shape[-1] // 2
    # Angles in float64: the sine of a large float32 has lost the digits that tell tokens apart.
    rate = SIZES.rope_theta ** (torch.arange(half, device=x.device, dtype=torch.float64) / half)
    angle = torch.arange(x.shape[1], device=x.device, dtype=torch.float64)[:, None] / rate
    angle = angle[:, None]  # [N, 1, D/2]
    cos, sin = torch.cos(angle).to(x.dtype), torch.sin(angle).to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def sinusoids(length: int, width: int) -> Tensor:
    """Sinusoidal positions `[N, E]`: sines first, then cosines."""
    half = (width + 1) // 2
    rate = 10_000.0 ** (torch.arange(half, dtype=torch.float64) / max(half - 1, 1))
    angle = torch.arange(length, dtype=torch.float64)[:, None] / rate
    return torch.cat([torch.sin(angle), torch.cos(angle)], 1)[:, :width].float()


def within(parameters: Mapping[str, Tensor] | nn.ParameterDict, prefix: str) -> dict[str, Tensor]:
    """The parameters whose names begin with a prefix, by the rest of the name."""
    below = {}
    for name in parameters:
        if name.startswith(prefix):
            below[name.removeprefix(prefix)] = parameters[name]
    return below


class Model(nn.Module):
    """The Transformer: tokens `[B, N]` and valid `[B, N]` to logits `[B, C]`.

    Logits are `[B, N, C]` of a model that labels tokens. Of two documents tokens and valid are
    `[B, 2, N]`; tokens that are numbers are `[B, N, F]`.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict(dict(weights))

    def dense(self, name: str, x: Tensor) -> Tensor:
        """A linear layer, with or without a bias."""
        x = x @ self.weights[f"{name}/kernel"]
        if f"{name}/bias" in self.weights:
            x = x + self.weights[f"{name}/bias"]
        return x

    def norm(self, name: str, x: Tensor) -> Tensor:
        """A layer norm or an RMS norm."""
        scale = self.weights[f"{name}/scale"]
        if SIZES.norm == "rms":
            return rms_norm(x, scale, SIZES.norm_eps)
        return F.layer_norm(x, x.shape[-1:], scale, self.weights[f"{name}/bias"], SIZES.norm_eps)

    def forward(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """See `Model`."""
        if SIZES.inputs == 2:
            # One encoder reads both documents: [B, 2, N] as [2 B, N].
            tokens = tokens.reshape(-1, *tokens.shape[2:])
            valid = valid.reshape(-1, *valid.shape[2:])
        x = self.embed(tokens, valid)
        if SIZES.pooling == "cls":
            x = torch.cat([self.weights["cls"].expand(x.shape[0], 1, -1), x], 1)
            valid = F.pad(valid, (1, 0), value=True)
        # After the learned token is put in front, which has a position too.
        if SIZES.positions == "learned":
            offset = SIZES.position_offset
            x = x + self.weights["positions"][offset : offset + x.shape[1]]
        elif SIZES.positions == "sinusoidal":
            x = x + sinusoids(x.shape[1], x.shape[2]).to(x)
        if SIZES.token_types:
            x = x + self.weights["types"][0]
        if SIZES.embed_norm:
            x = self.norm("embed_norm", x)
        for layer in range(len(GENOTYPE)):
            x = self.block(layer, x, valid)
        if SIZES.norm_place == "before":
            x = self.norm("norm", x)
        return self.classify(self.pool(x, valid))

    def embed(self, tokens: Tensor, valid: Tensor) -> Tensor:
        """Tokens to `[B, N, E]`, before positions."""
        if SIZES.features:
            x = self.dense("embed", tokens)
        else:
            x = self.weights["embed/embedding"][tokens.long()]
        if SIZES.stem == "bigram":
            exists = valid[:, :-1, None].to(x.dtype)
            before = self.weights["before/embedding"][tokens[:, :-1].long()] * exists
            x = x + F.pad(before, (0, 0, 1, 0))  # nothing stands before the first token
        return x

    def block(self, layer: int, x: Tensor, valid: Tensor) -> Tensor:
        """A layer: attention, then feed-forward, with norms and residuals around them."""
        name = f"blocks/{layer}"
        if SIZES.norm_place == "after":
            x = self.norm(f"{name}/norm_mixer", x + self.heads(layer, x, valid))
            return self.norm(f"{name}/norm_mlp", x + self.feed_forward(name, x))
        x = x + self.heads(layer, self.norm(f"{name}/norm_mixer", x), valid)
        return x + self.feed_forward(name, self.norm(f"{name}/norm_mlp", x))

    def feed_forward(self, name: str, x: Tensor) -> Tensor:
        """The MLP of a layer."""
        up = self.dense(f"{name}/up", x)
        if SIZES.gated_mlp:
            hidden = activated(self.dense(f"{name}/gate", x)) * up
        else:
            hidden = activated(up)
        return self.dense(f"{name}/down", hidden)

    def classify(self, x: Tensor) -> Tensor:
        """What was pooled to logits."""
        if SIZES.inputs == 2:
            u, v = x.reshape(-1, 2, x.shape[-1]).unbind(1)
            parts = [u, v]
            if SIZES.pair == "interaction":
                parts += [u * v, u - v]
            x = torch.cat(parts, -1)
        if SIZES.classifier == "mlp":
            x = F.relu(self.dense("hidden", x))
            if SIZES.inputs == 2:
                x = F.relu(self.dense("hidden_half", x))
        if SIZES.classifier == "none":
            return x
        if not SIZES.tie_embeddings:
            return self.dense("head", x)
        x = x @ self.weights["embed/embedding"].T
        if "head_bias" in self.weights:
            x = x + self.weights["head_bias"]
        return x

    def heads(self, layer: int, x: Tensor, valid: Tensor) -> Tensor:
        """All heads of a layer, `[B, N, E]` to `[B, N, E]`."""
        name = f"blocks/{layer}/mixer/projections/0"
        rotary = SIZES.positions == "rotary" and layer not in SIZES.nope_layers
        q, k, v = self.projected(name, x, valid, rotary)
        slopes = None
        if SIZES.slopes:
            slopes = torch.tensor(SIZES.slopes, dtype=q.dtype, device=q.device)
        out = torch.zeros_like(v)
        for g, (index, attention, options) in enumerate(GENOTYPE[layer]):
            heads = Heads(
                q[:, :, index],
                k[:, :, index],
                v[:, :, index],
                x,
                valid,
                slopes=None,
                parameters=within(self.weights, f"blocks/{layer}/mixer/own/{g}/"),
                causal=SIZES.causal,
            )
            if slopes is not None:
                heads = heads._replace(slopes=slopes[index])
            out[:, :, index] = self.attend(attention, options, heads)
        if SIZES.output_gate != "none":
            gate = torch.einsum("bne,ehd->bnhd", x, self.weights[f"{name}/gate"])
            out = out * GATES[SIZES.output_gate](gate)
        y = torch.einsum("bnhd,hde->bne", out, self.weights[f"{name}/o"])
        if SIZES.out_bias:
            y = y + self.weights[f"blocks/{layer}/out_bias"]
        return y

    def projected(
        self, name: str, x: Tensor, valid: Tensor, rotary: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        """q, k and v of all heads, `[B, N, H, D]`."""
        projected = []
        for letter in "qkv":
            y = torch.einsum("bne,ehd->bnhd", x, self.weights[f"{name}/{letter}"])
            if SIZES.qkv_bias:
                y = y + self.weights[f"{name}/{letter}_bias"]
            if SIZES.short_conv:
                y = convolved(y, valid, self.weights[f"{name}/{letter}_conv"])
            projected.append(y)
        q, k, v = projected
        if SIZES.qk_norm:
            q = rms_norm(q, self.weights[f"{name}/q_norm"], SIZES.norm_eps)
            k = rms_norm(k, self.weights[f"{name}/k_norm"], SIZES.norm_eps)
        if rotary:
            q, k = rotate(q), rotate(k)
        # Keys and values may be fewer than queries: neighbouring heads share them.
        sharing = q.shape[2] // k.shape[2]
        return q, k.repeat_interleave(sharing, 2), v.repeat_interleave(sharing, 2)

    def attend(self, name: str, options: Options, heads: Heads) -> Tensor:
        """One attention on its heads, normalised if the model was.

        Of a parallel one, the weighted sum of its members.
        """
        if name == "parallel":
            total = torch.zeros_like(heads.v)
            for m, (share, member, member_options) in enumerate(options["members"]):
                parameters = within(heads.parameters, f"{m}/")
                y = self.attend(member, member_options, heads._replace(parameters=parameters))
                total = total + share * y
            return total
        # A token that is not valid must add nothing to the residual stream.
        attention = cast(Callable[..., Tensor], ATTENTIONS[name])
        y = heads.masked(attention(heads, **options))
        if SIZES.branch_norm:
            return rms_norm(y)
        return y

    def pool(self, x: Tensor, valid: Tensor) -> Tensor:
        """`[B, N, E]` to `[B, E]`; or a vector for each token, where each has a label."""
        if SIZES.pooling == "mean":
            inside = valid[..., None].to(x.dtype)
            return (x * inside).sum(1) / inside.sum(1).clamp(min=1)
        if SIZES.pooling == "cls":
            return x[:, 0]
        if SIZES.pooling in ("last", "decode"):
            position = torch.arange(x.shape[1], device=x.device)
            last = torch.where(valid, position, torch.zeros_like(position)).amax(1)
            vector = x[torch.arange(x.shape[0], device=x.device), last]
            if SIZES.pooling == "last":
                return vector
            return vector[:, None] + sinusoids(x.shape[1], x.shape[2]).to(x)
        return x


def load(folder: str | Path = ".") -> Model:
    """The model of an exported folder, in evaluation mode, on the CPU."""
    return Model(load_file(Path(folder) / "weights.safetensors")).eval()
