"""Single-level search: weights and alphas descend one loss on one batch, in one backward pass.

The plain alternative to bilevel optimization. Liu et al. 2019 (arXiv 1806.09055, section 3.3)
report that it is worse than bilevel on their space, because alphas overfit the training data as
weights do.
"""

from dataclasses import dataclass
from typing import ClassVar

from dartformer.strategies.alternate import Alternating
from dartformer.strategies.base import Traits
from dartformer.strategies.relax import SOFTMAX, Relaxation


@dataclass(frozen=True)
class SingleLevel(Alternating):
    """Moves weights and alphas together on all of train: half the cost of `darts`, overfits sooner.

    Attributes:
      warmup, spread, extras: see `Alternating`.
    """

    traits: ClassVar[Traits] = Traits(
        "arXiv 1806.09055, section 3.3", ("argmax", "masked_drop", "sample", "top_k"), halves=False
    )
    joint: ClassVar[bool] = True

    def relaxation(self) -> Relaxation:
        """Softmax, without samples."""
        return SOFTMAX
