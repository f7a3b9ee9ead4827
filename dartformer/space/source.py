"""A genotype as a few lines of source, to paste into your own model."""

from collections.abc import Sequence

from dartformer.attention import to_text
from dartformer.attention.base import Attention
from dartformer.attention.full import Full
from dartformer.attention.local import Local
from dartformer.errors import InputError, unknown

FRAMEWORKS = ("flax", "torch")

FLAX = '''\
import dartformer as df
from flax import nnx

ATTENTIONS = (  # of each head of each layer
{rows})


class Attentions(nnx.Module):
    """The attention of layer i is `attentions.layers[i](x, valid=valid)`, [B, N, E] to [B, N, E]."""

    def __init__(self, model_dim: int, *, rngs: nnx.Rngs, **options):
        layers = [df.nn.Attention(a, model_dim, {heads}, rngs=rngs, **options) for a in ATTENTIONS]
        self.layers = nnx.List(layers)
'''

TORCH = '''\
import torch
from torch import nn
from torch.nn import functional as F

WINDOWS = (  # of each head of each layer: how far it sees, None for everywhere
{rows})


class Attention(nn.Module):
    """Layer i is `Attention(model_dim, WINDOWS[i])`, [B, N, E] to [B, N, E]."""

    def __init__(self, model_dim, windows):
        super().__init__()
        self.windows = windows
        self.qkv = nn.Linear(model_dim, 3 * model_dim, bias=False)
        self.out = nn.Linear(model_dim, model_dim, bias=False)

    def forward(self, x, causal=False):
        n, heads = x.shape[1], len(self.windows)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        position = torch.arange(n, device=x.device)
        distance = position[:, None] - position
        sees = [distance.abs() <= (n if window is None else window) for window in self.windows]
        mask = torch.stack(sees) & ((distance >= 0) | (not causal))  # [H, N, N]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))
'''


def source(layers: Sequence[Sequence[Attention]], framework: str) -> str:
    """A module of attentions `layers[l][h]`, as source of "flax" or "torch".

    Raises `InputError` for another framework, or attentions that PyTorch has no call for."""
    if framework not in FRAMEWORKS:
        raise unknown("framework", framework, FRAMEWORKS)
    if framework == "flax":
        return _flax(layers)
    return _torch(layers)


def _flax(layers: Sequence[Sequence[Attention]]) -> str:
    rows = []
    for heads in layers:
        rows.append(_row([_quoted(to_text(head)) for head in heads]))
    return FLAX.format(rows="".join(rows), heads=len(layers[0]))


def _torch(layers: Sequence[Sequence[Attention]]) -> str:
    rows = []
    for heads in layers:
        rows.append(_row(list(map(_window, heads))))
    return TORCH.format(rows="".join(rows))


def _window(attention: Attention) -> str:
    """How far an attention sees, as Python."""
    if isinstance(attention, Full):
        return "None"
    if isinstance(attention, Local):
        return str(attention.window)
    raise InputError(
        f"{to_text(attention)!r} does not work with scaled_dot_product_attention, which computes "
        f"full and local. Use to_source('flax'), or export the model with the format torch."
    )


def _quoted(text: str) -> str:
    """A text in double quotes. Attentions are written with single ones."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _row(items: Sequence[str]) -> str:
    """A line of a tuple of tuples: short where all items are the same."""
    if len(set(items)) == 1:
        return f"    ({items[0]},) * {len(items)},\n"
    return f"    ({', '.join(items)}),\n"
