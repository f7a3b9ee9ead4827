"""Search: alphas and weights move together; what comes out is a mixture."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dartformer import diagnostics, optimizer
from dartformer.attention import format as spec
from dartformer.search_space import SearchSpace
from dartformer.stages.base import Run
from dartformer.strategies import Problem, State
from dartformer.supernet import supernet
from dartformer.tasks.base import batches
from dartformer.train import (
    CompiledStep,
    Evaluator,
    Schedule,
    Together,
    classification_loss,
    fit,
    read_metrics,
)
from dartformer.transformer import Weights
from dartformer.workdir import read_json, write_json


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
      space: what was searched over.
      alphas: `[1 or L, 1 or H, K]`, after the last step.
      mixture: `[L, H, K]`, the point on the simplex they stand for.
      history: lines of `search/metrics.jsonl`.
      diagnostics: numbers and verdicts (see `dartformer.diagnostics`).
      seconds, compile_seconds: time spent training, and compiling.
      weights: of the supernet (None where the result was read from a workdir).
      tie_margin: derivation calls candidates tied whose mixture weights are closer than this.
      folder: the workdir.
    """

    space: SearchSpace
    alphas: np.ndarray
    mixture: np.ndarray
    history: list[dict[str, Any]]
    diagnostics: dict[str, Any]
    seconds: float
    compile_seconds: float
    tie_margin: float
    weights: Weights | None = None
    folder: Path | None = None


def search(run: Run) -> SearchResult:
    """Run (or continue) the search of a run, and write `search/alphas.json`."""
    config, space = run.config, run.space
    net = supernet(run.model, space, config.search.projections)
    weights_optimizer = optimizer.build(config.search.weights, config.search.steps)
    alphas_optimizer = optimizer.build(config.search.alphas, config.search.steps)
    strategy = run.strategy(Problem(
        loss=classification_loss(net), alphas_shape=space.alphas_shape, mixture_shape=space.mixture_shape,
        weights_optimizer=weights_optimizer, alphas_optimizer=alphas_optimizer, steps=config.search.steps))
    weights_key, key = jax.random.split(jax.random.key(config.seed))
    state: State = strategy.init(key, net.init(weights_key))
    evaluator = Evaluator(net, config.data.eval_batch_size)
    mixture_of = jax.jit(strategy.mixture)

    def evaluate(state: State) -> dict[str, float]:
        return evaluator(state.weights, run.parts["valid"], mixture_of(state))

    def describe(state: State) -> dict[str, Any]:
        mixture = np.asarray(mixture_of(state))
        rows = diagnostics.rows(mixture, space)
        return {"entropy": float(rows["entropy"].mean()), "margin": float(rows["margin"].mean()),
                "mixture": mixture.tolist()}

    stream = Together(batches(run.parts["weights"], config.data.batch_size, config.seed),
                      batches(run.parts["alphas"], config.data.batch_size, config.seed + 1))
    fitted = fit(
        "search", CompiledStep(lambda s, b: strategy.step(s, *b)), state, stream,
        Schedule(config.search.steps, config.log.every, config.log.eval_every, config.log.checkpoint_every),
        run.file("search"), evaluate=evaluate, describe=describe,
        rates={"weights_rate": optimizer.schedule(config.search.weights, config.search.steps),
               "alphas_rate": optimizer.schedule(config.search.alphas, config.search.steps)})
    mixture = np.asarray(mixture_of(fitted.state))
    report = diagnostics.of_search(
        mixture, space, lambda m: evaluator(fitted.state.weights, run.parts["valid"], m), config.derive.tie_margin)
    run.record(diagnostics=report, seconds={**run.results().get("seconds", {}), "search": fitted.seconds,
                                            "search.compile": fitted.compile_seconds})
    # Last, because it says that the search is finished.
    write_json(run.file("search/alphas.json"), {
        "candidates": [spec(a) for a in space.candidates], "granularity": space.granularity,
        "alphas": fitted.state.alphas, "mixture": mixture, "diagnostics": report,
        "seconds": fitted.seconds, "compile_seconds": fitted.compile_seconds})
    return SearchResult(space, np.asarray(fitted.state.alphas), mixture, read_metrics(run.file("search/metrics.jsonl")),
                        report, fitted.seconds, fitted.compile_seconds, config.derive.tie_margin,
                        fitted.state.weights)


def read(run: Run) -> SearchResult | None:
    """The finished search of a workdir, without its weights; None if it is not finished."""
    file = run.file("search/alphas.json")
    if not file.exists():
        return None
    data = read_json(file)
    return SearchResult(run.space, np.array(data["alphas"], np.float32), np.array(data["mixture"], np.float32),
                        read_metrics(run.file("search/metrics.jsonl")), data["diagnostics"], data["seconds"],
                        data["compile_seconds"], run.config.derive.tie_margin)
