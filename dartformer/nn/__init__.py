"""Attentions as layers of flax NNX, for models that are not this package's.

`Attention` is a layer of one type, or of one for each head; `MixedAttention` holds several
candidates and their mixture, which a search learns.
"""

from dartformer.nn.attention import Attention
from dartformer.nn.mixed import MixedAttention, Mixture

__all__ = ["Attention", "MixedAttention", "Mixture"]
