"""Derive: from what each seed of a search found to one genotype, with ties and a second opinion."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from dartformer import derivations, diagnostics
from dartformer.attention import to_text
from dartformer.cost.budget import Budget
from dartformer.data.batches import batches
from dartformer.data.splits import Subset
from dartformer.derivations import Derived, Trained
from dartformer.machine.workdir import write_text
from dartformer.models.transformer import Weights
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages import budget as resolve_stage
from dartformer.stages import retrain as retrain_stage
from dartformer.stages.search import SearchResult, read_states
from dartformer.stages.study import Run
from dartformer.training import optimizer
from dartformer.training.step import training_loss

FINE_TUNE_RATE = 0.1
"""Of the search's learning rate, falling to zero along a cosine: DARTS-PT fine-tunes so (arXiv
2108.04392)."""


def derive(found: SearchResult) -> Derived:
    """Apply the config's rule to every seed, choose, ask for a second opinion; write
    `genotype.json`.

    Of several seeds the genotype found most often is taken; of equally frequent ones the one with
    the lowest valid loss, with the weights it inherits. Everything is chosen on valid."""
    run, config = found.run, found.run.config.derive
    rule = derivations.parse(config.rule)
    given = _given(found)
    each = [rule(one) for one in given]
    counts = Counter(one.genotype for one in each)
    scores = [_inherited(one, d.genotype) for one, d in zip(given, each, strict=True)]
    chosen = min(
        range(len(each)), key=lambda i: (-counts[each[i].genotype], scores[i].get("loss", 0.0))
    )
    derived, ties = each[chosen], list(each[chosen].ties)
    details: dict[str, Any] = {"rule": config.rule, **derived.details}
    if len(each) > 1:
        accuracy = [s[run.metric.share] for s in scores]
        ties += disagreements(found.space, [d.genotype for d in each])
        mean, spread = float(np.mean(accuracy)), diagnostics.spread(accuracy)
        details["seeds"] = {
            "verdict": f"{counts[derived.genotype]} of {len(each)} seeds of the search found this genotype; what they "
            f"found scores {mean:.3f} on valid in their supernets, spread {spread:.3f} ({run.metric.share})",
            "seeds": [s.seed for s in found.seeds],
            "chosen": found.seeds[chosen].seed,
            "genotypes": [d.genotype.to_dict()["layers"] for d in each],
            "agreement": counts[derived.genotype] / len(each),
            f"valid_{run.metric.share}": {"mean": mean, "spread": spread, "per_seed": accuracy},
        }
    if config.second_opinion:
        other = derivations.parse(config.second_opinion)(given[chosen])
        details["second_opinion"] = opinion = _compare(
            derived.genotype, other, config.second_opinion
        )
        ties += opinion["differences"]
    genotype = derived.genotype
    if run.budget:
        genotype, details["budget"] = resolve_stage.enforce(
            run, given, genotype, _mean_inherited(run, given)
        )
        if not details["budget"]["kept"]:
            ties = details["budget"]["ties"]
    derived = Derived(genotype, ties, details)
    run.record(genotype=derived.genotype.to_dict(), ties=ties, derive=details)
    write_text(run.file("genotype.json"), derived.genotype.to_json())
    return derived


def derive_within(found: SearchResult, budget: Budget) -> dict[str, Any]:
    """The best genotype of a finished search within another budget, and the front of accuracy
    against cost.

    Writes `budget.json` and `pareto.json`, and `genotype.json` where nothing has been trained from
    it yet; returns what `resolve` does, with "written"."""
    run = found.run
    given = _given(found)
    data = resolve_stage.resolve(run, given, budget, _mean_inherited(run, given))
    data["written"] = not run.file("retrain").exists()
    if data["written"]:
        genotype = Genotype.from_dict({"format": 1, "layers": data["genotype"]})
        run.record(
            genotype=genotype.to_dict(),
            ties=data["ties"],
            derive={
                "rule": f"budget: {budget}",
                "budget": {k: v for k, v in data.items() if k != "front"},
            },
        )
        write_text(run.file("genotype.json"), genotype.to_json())
    return data


def _mean_inherited(run: Run, given: list[Trained]) -> Callable[[Genotype], dict[str, float]]:
    """genotype -> valid loss and the metric, with inherited weights, the mean over seeds."""

    def inherits(genotype: Genotype) -> dict[str, float]:
        scores = [_inherited(one, genotype) for one in given]
        return {k: float(np.mean([s[k] for s in scores])) for k in scores[0]}

    return inherits


def _given(found: SearchResult) -> list[Trained]:
    """What the rule is given for each seed."""
    run = found.run
    supernet = run.strategy.traits.supernet
    states = read_states(run) if supernet else [None]
    valid = run.parts["valid"]
    tune = fine_tuner(run)

    def evaluate(
        weights: Weights, mixture: np.ndarray, examples: int | None
    ) -> dict[str, np.ndarray]:
        part = (
            valid
            if examples is None or examples >= len(valid)
            else Subset(valid, np.arange(examples))
        )
        return run.supernet.evaluator.per_example(weights, part, mixture)

    def standalone(genotype: Genotype) -> dict[str, np.ndarray]:
        name = f"homogeneous.{to_text(genotype.layers[0][0])}"
        models = retrain_stage.retrain(run, genotype, retrain_stage.baseline_folder(name))
        return {
            k: np.array([m.valid[k] for m in models])
            for k in ("loss", "accuracy")
            if k in models[0].valid
        }

    return [
        Trained(
            run.space,
            seed.mixture,
            None if state is None else state.weights,
            evaluate,
            tune,
            standalone,
            np.random.default_rng([seed.seed, 1]),
            run.config.derive.tie_margin,
        )
        for seed, state in zip(found.seeds, states, strict=True)
    ]


def fine_tuner(run: Run) -> Callable[[Weights, np.ndarray, int, int], Weights]:
    """(weights, mixture, steps, seed) -> weights, trained on what the search trained them on, at a
    fixed mixture."""
    compiled: dict[int, tuple[optax.GradientTransformation, Any]] = {}

    def program(steps: int) -> tuple[optax.GradientTransformation, Any]:
        loss = training_loss(run.supernet.network, run.metric)
        weights = run.config.search.weights
        options = dataclasses.replace(
            weights,
            learning_rate=FINE_TUNE_RATE * weights.learning_rate,
            schedule="cosine",
            warmup=0.0,
            final=0.0,
        )
        chain = optimizer.build(options, steps)

        @jax.jit
        def step(
            weights: Weights, moments: optax.OptState, mixture: Any, batch: Any, key: jax.Array
        ) -> Any:
            gradient = jax.grad(lambda w: loss(w, mixture, batch, key)[0])(weights)
            updates, moments = chain.update(gradient, moments, weights)
            return optax.apply_updates(weights, updates), moments

        return chain, step

    def fine_tune(weights: Weights, mixture: np.ndarray, steps: int, seed: int) -> Weights:
        if steps not in compiled:
            compiled[steps] = program(steps)
        chain, step = compiled[steps]
        moments, key = chain.init(weights), jax.random.key(seed)
        part = "weights" if run.strategy.traits.halves else "train"
        stream = batches(run.parts[part], run.config.data.batch_size, seed, run.config.data.buckets)
        for i in range(steps):
            weights, moments = step(
                weights, moments, mixture, next(stream), jax.random.fold_in(key, i)
            )
        return weights

    return fine_tune


def _inherited(trained: Trained, genotype: Genotype) -> dict[str, float]:
    """Valid loss and accuracy of a genotype with the supernet's weights; nothing where there is no
    supernet."""
    if trained.weights is None:
        return {}
    scores = trained.evaluate(trained.weights, trained.space.mixture(genotype), None)
    return {k: float(np.mean(v)) for k, v in scores.items()}


def disagreements(space: SearchSpace, genotypes: list[Genotype]) -> list[str]:
    """A line for each place where the seeds chose differently: "layer 1: the seeds chose full (2),
    linear (1)"."""
    rows, columns, _ = space.alphas_shape
    if any(
        g.layers[l][h] != g.layers[l % rows][h % columns]
        for g in genotypes
        for l in range(space.layers)
        for h in range(space.heads)
    ):
        rows, columns = space.layers, space.heads  # spread over heads, whatever was searched
    lines = []
    for l, h in np.ndindex(rows, columns):
        counts = Counter(to_text(g.layers[l][h]) for g in genotypes)
        if len(counts) > 1:
            name = (
                space.place_name((l, h))
                if (rows, columns) == space.alphas_shape[:2]
                else f"layer {l}, head {h}"
            )
            lines.append(
                f"{name}: the seeds chose {', '.join(f'{a} ({n})' for a, n in counts.most_common())}"
            )
    return lines


def _compare(genotype: Genotype, other: Derived, rule: str) -> dict[str, Any]:
    """What the second opinion says, and a line for each layer where it differs."""
    differences = [
        f"layer {l}: {rule} would choose {other.genotype.describe_layer(l)}, not "
        f"{genotype.describe_layer(l)}"
        for l in range(len(genotype.layers))
        if genotype.layers[l] != other.genotype.layers[l]
    ]
    return {
        "rule": rule,
        "genotype": other.genotype.to_dict()["layers"],
        "agrees": not differences,
        "differences": differences,
        "ties": other.ties,
        **other.details,
    }
