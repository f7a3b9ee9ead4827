"""Single-level search: weights and alphas descend the same loss on the same data, in one backward
pass.

The plain alternative to bilevel optimisation. Liu et al. 2019 (arXiv 1806.09055, section 3.3)
report it as worse than bilevel on their space, alphas overfitting the training data as weights do.
"""

from dataclasses import dataclass
from typing import ClassVar

from dartformer.strategies.alternate import Alternating
from dartformer.strategies.base import Traits
from dartformer.strategies.relax import SOFTMAX, Relaxation


@dataclass(frozen=True)
class SingleLevel(Alternating):
    """Weights and alphas descend one loss together, on all of train: half the price of `darts`, and
    easier to overfit.

    Attributes:
      warmup, spread, extras: see `Alternating`.
    """

    traits: ClassVar[Traits] = Traits(
        "arXiv 1806.09055, section 3.3", ("argmax", "masked_drop", "sample", "top_k"), halves=False
    )
    joint: ClassVar[bool] = True

    def relaxation(self) -> Relaxation:
        """Softmax, without chance."""
        return SOFTMAX
