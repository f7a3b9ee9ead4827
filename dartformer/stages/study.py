"""What every stage needs, made once from a config: a run."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import optax
from ml_collections import ConfigDict

from dartformer import config as configs
from dartformer.attention import to_text
from dartformer.config import Config
from dartformer.cost import device
from dartformer.cost.budget import Budget, Price, ratios, require_possible
from dartformer.cost.prices import prices
from dartformer.data.splits import Split
from dartformer.errors import InputError
from dartformer.kernels.flash import without_cudnn
from dartformer.machine import compile_cache
from dartformer.machine.workdir import Workdir, read_json, write_json
from dartformer.models.supernet import supernet
from dartformer.models.transformer import Network, transformer
from dartformer.space.genotype import Genotype
from dartformer.strategies import Constraint, Problem, Strategy
from dartformer.tasks.base import Checks, Learns, Task, parts
from dartformer.training import metric, optimizer
from dartformer.training.devices import DataParallel, data_parallel
from dartformer.training.evaluate import Evaluator
from dartformer.training.step import CompiledStep, TrainState, plain_step, training_loss


class Program(NamedTuple):
    """A genotype's network with all that is compiled for it, shared by seeds and stages."""

    network: Network
    optimizer: optax.GradientTransformation
    step: CompiledStep[TrainState]
    evaluator: Evaluator


class Supernet(NamedTuple):
    """The supernet of a run with the strategy that trains it, shared by the stages.

    Whatever `search.remat` says of the strategy's steps, `network` and `evaluator` pass over what
    has no weight: a genotype is evaluated, fine-tuned and looked at for the price of what it holds.
    """

    network: Network
    strategy: Strategy
    evaluator: Evaluator
    rates: dict[str, optax.Schedule]


class Run:
    """A config with its workdir open, and what follows from them: task, data, sizes, space.

    Use it as a context manager; raises `InputError` where the config or the workdir will not do.
    """

    def __init__(self, config: Config | ConfigDict, workdir: str | Path):
        config = configs.build(config)
        configs.require_here(config)
        if config.space.aspect != "given":
            raise InputError(
                f"space.aspect = {config.space.aspect!r} is several shapes "
                f"({', '.join(config.shapes)}), which `dartformer run` searches one by one; "
                f"for a stage of one of them, use a config with space.aspect = 'given' and its "
                f"model.layers and model.heads."
            )
        compile_cache.use()
        self.config = config
        self.task = config.task.built
        self.metric = metric.find(self.task.traits.metric)
        if isinstance(self.task, Checks):
            self.task.check(config.data.dir or None)
        self.model = config.transformer
        self.space = config.search_space
        self.strategy = config.search.strategy.built
        self._programs: dict[Genotype, Program] = {}
        self.workdir = Workdir(workdir, configs.to_dict(config))

    def reopen(self) -> "Run":
        """The same run, with what it has prepared and compiled, after it was closed."""
        self.workdir = Workdir(self.workdir.path, configs.to_dict(self.config))
        return self

    @cached_property
    def parts(self) -> dict[str, Split]:
        """The four disjoint parts (and "train", the union of the first two); prepared on first
        use."""
        return parts(self.task, self.config.data.dir or None, self.config.seed)

    @cached_property
    def fitted(self) -> Task:
        """The task, with what its training part taught where it learns something."""
        return (
            self.task.fitted(self.config.data.dir or None)
            if isinstance(self.task, Learns)
            else self.task
        )

    @cached_property
    def supernet(self) -> Supernet:
        """The supernet, and the strategy that trains it."""
        config, net = self.config.search, self._supernet_network()
        return Supernet(
            net,
            self.strategy_of(),
            self._evaluator(net),
            {
                "weights_rate": optimizer.schedule(config.weights, config.steps),
                "alphas_rate": optimizer.schedule(config.alphas, config.steps),
            },
        )

    def strategy_of(self, left: Sequence[Sequence[int]] | None = None) -> Strategy:
        """The strategy over a supernet that computes no candidates but those `left` in each layer
        (None: all)."""
        config, space = self.config.search, self.space
        net = self._supernet_network(left, config.remat)
        constraint = None
        if self.budget:
            limits = tuple(key for key, _ in self.budget.limits)
            constraint = Constraint(
                ratios(self.budget, self.prices, space.granularity != "head"),
                limits,
                self.budget.floor,
                self.budget.rate,
            )
        return self.strategy(
            Problem(
                loss=training_loss(net, self.metric),
                alphas_shape=space.alphas_shape,
                mixture_shape=space.mixture_shape,
                weights_optimizer=optimizer.build(config.weights, config.steps),
                alphas_optimizer=optimizer.build(config.alphas, config.steps),
                steps=config.steps,
                constraint=constraint,
            )
        )

    def _supernet_network(
        self, left: Sequence[Sequence[int]] | None = None, remat: bool = True
    ) -> Network:
        config = self.config.search
        # Seeds in one program are a vmap of gradients, which cuDNN's did wrongly before JAX 0.11.1.
        kernel = (
            without_cudnn(self.model.kernel, self.model.tokens)
            if config.seeds > 1
            else self.model.kernel
        )
        return supernet(
            dataclasses.replace(self.model, kernel=kernel),
            self.space,
            config.projections,
            config.partial,
            left,
            remat,
        )

    @cached_property
    def budget(self) -> Budget | None:
        """The budget of the search, if it has one."""
        return self.config.search.limits

    @cached_property
    def prices(self) -> dict[str, Price]:
        """What the search's budget is held against: measured or computed once, and kept in
        `search/prices.json`, so that a search that is resumed goes on with the same. Raises
        `InputError` for a budget that cannot be met."""
        assert self.budget is not None
        file = self.file("search/prices.json")
        if file.exists():
            return {one["quantity"]: Price.from_dict(one) for one in read_json(file)["prices"]}
        found = prices(self.model, self.space, self.budget)
        require_possible(self.budget, found, self.space)
        write_json(
            file,
            {
                "device": device(),
                "budget": self.budget.to_dict(),
                "candidates": [to_text(one) for one in self.space.candidates],
                "prices": [price.to_dict() for price in found.values()],
            },
        )
        return found

    def _evaluator(self, net: Network) -> Evaluator:
        return Evaluator(
            net, self.config.data.eval_batch_size, self.metric, self.config.data.buckets
        )

    def shared(self, axis: int = 0) -> DataParallel | None:
        """How the examples of a batch, along `axis` of its arrays, are shared out among devices;
        None for one."""
        return data_parallel(self.config.data.devices, self.config.data.batch_size, axis)

    def program(self, genotype: Genotype) -> Program:
        """What trains and evaluates a genotype; made once."""
        if genotype not in self._programs:
            net = transformer(self.model, genotype)
            chain = optimizer.build(self.config.retrain.optimizer, self.config.retrain.steps)
            step = CompiledStep(plain_step(net, chain, self.metric), self.shared())
            self._programs[genotype] = Program(net, chain, step, self._evaluator(net))
        return self._programs[genotype]

    def file(self, name: str) -> Path:
        """A path in the workdir."""
        return self.workdir / name

    def record(self, **sections: Any) -> dict[str, Any]:
        """Put sections into `results.json`, keeping the others."""
        results = self.results()
        results.update(sections)
        write_json(self.file("results.json"), results)
        return results

    def results(self) -> dict[str, Any]:
        """What `results.json` holds so far."""
        file = self.file("results.json")
        return read_json(file) if file.exists() else {"task": self.config.task.name}

    def genotype(self) -> Genotype:
        """The genotype that `derive` wrote."""
        file = self.file("genotype.json")
        if not file.exists():
            raise InputError(
                f"there is no {file}: run `dartformer derive` first (or `dartformer run` for all stages)."
            )
        return Genotype.from_json(file.read_text(encoding="utf-8"))

    def close(self) -> None:
        """Let go of the workdir."""
        self.workdir.close()

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
