"""Grid: every homogeneous model trained alone, the best on valid: dear, and the ground truth for
all the others."""

from dataclasses import dataclass

import numpy as np

from dartformer.derivations.base import Derived, Rule, Trained, as_good, merit, names


@dataclass(frozen=True)
class Grid(Rule):
    """Trains each candidate everywhere, from scratch, as the baselines are trained; needs no
    supernet."""

    def __call__(self, trained: Trained) -> Derived:
        """Ties are models within the noise of the seeds they were trained with."""
        space = trained.space
        scores = {k: trained.standalone(g) for k, g in enumerate(space.homogeneous())}
        # Where numbers are predicted there is no accuracy.
        metric = "accuracy" if "accuracy" in scores[0] else "loss"
        merits = {k: merit(s, metric) for k, s in scores.items()}
        sign = 1 if metric == "accuracy" else -1
        best = max(merits, key=lambda k: merits[k].mean())
        equal = as_good(merits, best)
        ties = (
            [
                f"everywhere: {names(space, (best, *equal))} are tied (valid {metric} "
                f"{', '.join(f'{sign * merits[k].mean():.3f}' for k in (best, *equal))})"
            ]
            if equal
            else []
        )
        return Derived(
            space.genotype(np.array([[best]])),
            ties,
            {
                f"valid_{metric}": {
                    names(space, [k]): float(sign * m.mean()) for k, m in merits.items()
                }
            },
        )
