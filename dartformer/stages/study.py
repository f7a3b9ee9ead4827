"""Study: what follows from a config alone, such as task, data, networks and strategy; no files."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from dartformer import config as configs
from dartformer import cost
from dartformer.attention import to_text
from dartformer.attention.base import Attention
from dartformer.attention.parallel import Parallel
from dartformer.config import Config
from dartformer.cost.budget import Budget, Price, ratios, require_possible
from dartformer.cost.prices import prices
from dartformer.data.fingerprint import fingerprint as fingerprint_of_examples
from dartformer.data.large import limited
from dartformer.data.splits import Split
from dartformer.errors import InputError
from dartformer.kernels.decay import has_kernel
from dartformer.kernels.flash import portable
from dartformer.kernels.target import Target
from dartformer.machine import compile_cache, hosts
from dartformer.machine.identity import Identity, fingerprint
from dartformer.machine.progress import say
from dartformer.machine.workdir import jsonable
from dartformer.models.sizes import TransformerConfig, without_defaults
from dartformer.models.supernet import supernet
from dartformer.models.transformer import Network, Weights, transformer
from dartformer.pretrained import described, load_pretrained
from dartformer.pretrained.start import Start, contents, require_sizes, start
from dartformer.results import RowLimit
from dartformer.space.genotype import Genotype
from dartformer.space.search_space import SearchSpace
from dartformer.stages.layout import genotype_key
from dartformer.stages.programs import Program, SharedProgram
from dartformer.strategies import Constraint, Problem, Strategy
from dartformer.tasks.base import Checks, Learns, Task, parts
from dartformer.training import metric as metrics
from dartformer.training import optimizer
from dartformer.training.devices import SEEDS, MeshLayout, gather, layout
from dartformer.training.evaluate import Evaluator
from dartformer.training.loop import Schedule
from dartformer.training.metric import Metric
from dartformer.training.step import CompiledStep, plain_step, training_loss


class Supernet(NamedTuple):
    """The supernet with the strategy that trains it, shared by the stages.

    Whatever `search.remat` says of the strategy's steps, `network` and `evaluator` pass over what
    has no weight: a genotype is evaluated and fine-tuned for the price of what it holds.
    """

    network: Network
    strategy: Strategy
    evaluator: Evaluator
    rates: dict[str, optax.Schedule]


class Study:
    """A config and what follows from it. Tests can make one without a folder.

    Args:
      config: of the study.
      target: the device that its programs are made for; None for that of this process.

    Raises `InputError` where the config does not work here.
    """

    def __init__(self, config: Config | ConfigDict, target: Target | None = None):
        config = configs.build(config)
        if target is None:
            configs.require_here(config)
        if config.space.aspect != "given":
            shapes = ", ".join(config.shapes)
            raise InputError(
                f"space.aspect={config.space.aspect!r} stands for several shapes ({shapes}), which "
                f"only `dartformer run` searches. For one stage of one shape, use a config with "
                f"space.aspect='given' and that shape's model.layers and model.heads."
            )
        compile_cache.use()
        self.config = config
        self.task = config.task.built
        # What is compiled for another device is not run: it needs no data and no memory here.
        if target is None and isinstance(self.task, Checks):
            self.task.check(self.data_dir)
        self.model = dataclasses.replace(config.transformer, target=target)
        self.space = config.search_space
        self.strategy = config.search.strategy.built
        if config.start:
            require_sizes(described(config.start), self.model)
        self._programs: dict[Genotype, Program] = {}

    @property
    def data_dir(self) -> str | None:
        """Where data are prepared; None for the default."""
        return self.config.data.dir or None

    @cached_property
    def parts(self) -> dict[str, Split]:
        """The four disjoint parts, and "train", the union of the first two.

        Of valid as many rows as `data.valid_limit` says."""
        for limit in self.limits:
            say(limit.sentence)
        limited_parts = dict(self._whole_parts)
        limited_parts["valid"] = self._limited("valid", self.config.data.valid_limit)
        return limited_parts

    @cached_property
    def baseline_train(self) -> Split:
        """The rows of train that plain rules are fitted on."""
        return self._limited("train", self.config.data.baseline_limit)

    @cached_property
    def limits(self) -> tuple[RowLimit, ...]:
        """The parts of which the config lets only some rows be read."""
        data, limits = self.config.data, []
        for name, part, rows in (
            ("data.valid_limit", "valid", data.valid_limit),
            ("data.baseline_limit", "train", data.baseline_limit),
        ):
            limited_part = self._limited(part, rows)
            whole = self._whole_parts[part]
            if limited_part is not whole:
                limits.append(RowLimit(name, len(limited_part), len(whole)))
        return tuple(limits)

    def _limited(self, part: str, rows: int) -> Split:
        return limited(self._whole_parts[part], rows, self.config.seed)

    @cached_property
    def _whole_parts(self) -> dict[str, Split]:
        say(f"data: reading {configs.task_title(self.config.task.to_dict())}")
        return parts(self.task, self.data_dir, self.config.seed)

    @cached_property
    def metric(self) -> Metric:
        """What decides, see the field `metric`; its loss weighs classes as `data.class_weights` says."""
        name, task = self.config.metric, self.task
        if name in ("mae", "rmse"):
            # Distances are in the units of the labels, which the task learns from its data.
            task = self.fitted
        decides = metrics.of_task(task, name)
        if not self.config.data.class_weights:
            return decides
        weights = metrics.balanced(task, self.parts["train"])
        return dataclasses.replace(decides, class_weights=weights)

    @cached_property
    def fitted(self) -> Task:
        """The task, with what it learned from its training part, such as a tokenizer."""
        if isinstance(self.task, Learns):
            return self.task.fitted(self.data_dir)
        return self.task

    def require_of_space(self, genotype: Genotype, file: Path) -> None:
        """Raise `InputError` for a genotype with an attention that is no candidate.

        A rule that keeps several candidates puts them side by side (`parallel`).
        """
        allowed: set[Attention] = set()
        for candidate in self.space.candidates:
            allowed.update(members_of(candidate))
        for heads in genotype.layers:
            for attention in heads:
                if not allowed.issuperset(members_of(attention)):
                    raise InputError(
                        f"{file} holds {to_text(attention)}, which is not among space.candidates. "
                        f"Delete the file and run `dartformer derive` again."
                    )
        layers, heads_of_layer = len(genotype.layers), genotype.heads
        if (layers, heads_of_layer) != (self.space.layers, self.space.heads):
            raise InputError(
                f"{file} has {layers} layers of {heads_of_layer} heads, and the model has "
                f"{self.space.layers} of {self.space.heads}. Delete the file and run "
                f"`dartformer derive` again."
            )

    # Identity: what a result belongs to.

    @cached_property
    def data_fingerprint(self) -> str:
        """Of the examples that are trained and validated on; test is left unread."""
        # Of the examples and not of their source: files can change under the same name.
        parts = self.parts
        return fingerprint_of_examples([parts["weights"], parts["alphas"], parts["valid"]])

    @cached_property
    def _sections(self) -> Mapping[str, str]:
        # One for each section, so that a message names the one that differs. Only what a result
        # depends on counts: of retrain neither the seeds nor which checkpoint is kept.
        sections = configs.to_dict(self.config)
        retrain = sections["retrain"]
        training = [retrain["optimizer"], retrain["steps"]]
        if retrain["patience"]:
            # The evaluations then decide how long it trains.
            training += [retrain["patience"], sections["log"]["eval_every"]]
        task: Any = sections["task"]
        decides = {
            "metric": self.config.metric,
            "class_weights": self.config.data.class_weights,
        }
        if any(decides.values()):
            # What the loss weighs, and what the best weights and the seeds are chosen by.
            task = [task, decides]
        model: object = without_defaults(sections["model"])
        if self.config.start:
            model = [model, contents(self.config.start)]
            training.append(retrain["frozen"])
        return {
            "task": fingerprint(task),
            "model": fingerprint(model),
            "space": fingerprint(sections["space"]),
            "search": fingerprint(sections["search"]),
            "training": fingerprint(training),
        }

    def _identity(self, *aspects: str) -> dict[str, str]:
        identity = {}
        for aspect in aspects:
            identity[aspect] = self._sections[aspect]
        return identity

    @property
    def search_identity(self) -> Identity:
        """What a search of this study belongs to."""
        aspects = self._identity("task", "model", "space", "search")
        return {**aspects, "data": self.data_fingerprint}

    @property
    def trainings_identity(self) -> Identity:
        """What every training in this study belongs to."""
        aspects = self._identity("task", "model", "training")
        return {**aspects, "data": self.data_fingerprint}

    def training_identity(self, genotype: Genotype) -> Identity:
        """What a training of `genotype` in this study belongs to."""
        return {**self.trainings_identity, "genotype": genotype_identity(genotype)}

    def model_identity(self, genotype: Genotype) -> Identity:
        """What a profile of `genotype` belongs to: its sizes, and no data."""
        return {**self._identity("model"), "genotype": genotype_identity(genotype)}

    # Networks.

    @cached_property
    def start(self) -> Start | None:
        """The weights that every training and the search begin with; None for random ones."""
        if not self.config.start:
            return None
        say(f"reading the weights of {self.config.start}")
        return start(load_pretrained(self.config.start), self.model)

    def _started(self, network: Network, frozen: bool = False) -> Network:
        """A network that begins with the weights of the checkpoint, where there is one."""
        if self.start is None:
            return network
        return self.start.network(network, frozen)

    @cached_property
    def supernet(self) -> Supernet:
        """The supernet, and the strategy that trains it."""
        config, net = self.config.search, self._supernet_network()
        rates = {"weights_rate": optimizer.schedule(config.weights, config.steps)}
        if self.strategy.traits.alphas:
            schedule = optimizer.schedule(config.alphas, config.steps)
            rates["alphas_rate"] = self.strategy.alphas_rate(schedule, config.steps)
        return Supernet(net, self.strategy_of(), self._evaluator(net), rates)

    def strategy_of(self, remaining: Sequence[Sequence[int]] | None = None) -> Strategy:
        """The strategy over a supernet that computes only the candidates `left` in each layer.

        None: all of them.
        """
        config, space = self.config.search, self.space
        net = self._supernet_network(remaining, config.remat, self.strategy.order)
        return self.strategy(
            Problem(
                loss=training_loss(net, self.metric, self.config.data.accumulate),
                alphas_shape=space.alphas_shape,
                mixture_shape=space.mixture_shape,
                weights_optimizer=optimizer.build(config.weights, config.steps),
                alphas_optimizer=optimizer.build(config.alphas, config.steps),
                steps=config.steps,
                constraint=self._constraint(),
            )
        )

    def _constraint(self) -> Constraint | None:
        budget = self.budget
        if budget is None:
            return None
        # Heads of a layer that share alphas are drawn as one, which changes the expected cost.
        _, columns, _ = self.space.alphas_shape
        costs = ratios(budget, self.prices, columns)
        return Constraint(costs, budget.quantities, budget.floor, budget.rate)

    def network_of_order(self, order: int) -> Network:
        """The supernet's network for programs that differentiate it `order` times."""
        if self._kernel_of_order(order) == self._kernel_of_order(1):
            return self.supernet.network
        return self._supernet_network(order=order)

    def _kernel_of_order(self, order: int) -> str:
        model = self.model
        if self.config.search.seeds > 1:
            # Seeds in one program are a vmap of gradients, which cuDNN's did wrongly before JAX
            # 0.11.1.
            return portable(model.kernel, model.tokens)
        if order > 1 and has_kernel(model.target):
            return model.kernel_of_order(order)
        if model.kernel_of_order(order) == model.kernel_of_order(1):
            return model.kernel
        # cuDNN has no second derivative. The kernel that does takes the first as well. So it is
        # with recurrences, whatever full attention takes.
        return model.kernel_of_order(order)

    def _supernet_network(
        self,
        remaining: Sequence[Sequence[int]] | None = None,
        remat: bool = True,
        order: int = 1,
    ) -> Network:
        config = self.config.search
        model = dataclasses.replace(self.model, kernel=self._kernel_of_order(order))
        network = supernet(model, self.space, config.projections, config.partial, remaining, remat)
        return self._started(network)

    def _evaluator(self, net: Network) -> Evaluator:
        data = self.config.data
        answers = metrics.keeps_answers(self.task)
        return Evaluator(
            net,
            data.eval_batch_size,
            self.metric,
            data.buckets,
            answers=answers,
            layout=self.layout(),
        )

    def layout(self, seeds_lead: bool = False) -> MeshLayout | None:
        """Where state and batches lie on the devices; None where there is one device.

        `seeds_lead` says that their arrays lead with seeds.
        """
        mesh = self.config.mesh
        return layout(mesh.shape, self.config.data.part_size, mesh.smallest, seeds_lead)

    @property
    def seeds_axis(self) -> str | None:
        """The axis of the mesh along which seeds of one program are divided, if there is one."""
        if self.config.mesh.seeds == 1:
            return None
        return SEEDS

    def rows(self, seeds_lead: bool = False) -> np.ndarray | None:
        """The positions in a batch that this process reads; None for all."""
        divided = self.layout(seeds_lead)
        if divided is None:
            return None
        return divided.rows(self.config.data.batch_size)

    def gathered(self, weights: Weights) -> Weights:
        """Weights that this process can read whole."""
        if hosts.together():
            whole: Weights = gather(weights)
            return whole
        return weights

    def program(self, genotype: Genotype) -> Program:
        """What trains and evaluates a genotype; built once."""
        # Seeds differ in their arrays alone, so that all of them share what was compiled.
        if genotype not in self._programs:
            self._programs[genotype] = self._program(genotype)
        return self._programs[genotype]

    def _program(self, genotype: Genotype) -> Program:
        net, chain = self.untrained(genotype)
        if self.shares_program and self.space.holds(genotype):
            return self._shared_program.of(genotype, net)
        step = plain_step(net, chain, self.metric, self.config.data.accumulate)
        compiled = CompiledStep(step, self.layout())
        return Program(net, chain, compiled, self._evaluator(net))

    def untrained(self, genotype: Genotype) -> tuple[Network, optax.GradientTransformation]:
        """The derived model and the optimizer of its weights; nothing of them is compiled."""
        network = self._started(transformer(self.model, genotype), self.config.retrain.frozen)
        chain = self._retrain_optimizer()
        if self.start is not None and self.config.retrain.frozen:
            chain = self.start.optimizer(chain, jax.eval_shape(network.init, jax.random.key(0)))
        return network, chain

    def _retrain_optimizer(self) -> optax.GradientTransformation:
        config = self.config.retrain
        return optimizer.build(config.optimizer, config.steps)

    @cached_property
    def shares_program(self) -> bool:
        """Whether one compiled program trains all genotypes of the space, see `retrain.program`."""
        config = self.config.retrain
        if config.frozen:
            return False
        is_divided = self.layout() is not None
        if config.program == "shared" and is_divided:
            raise InputError(
                "retrain.program='shared' works on one device. Use mesh.data=1 and mesh.fsdp=1, or "
                "retrain.program='own'."
            )
        if config.program != "auto":
            return config.program == "shared"
        if is_divided or not FEWEST_SHARED <= len(self.space.candidates) <= MOST_SHARED:
            return False
        genotypes = self.space.homogeneous()
        step = max(cost.flops(self.model, genotype) for genotype in genotypes)
        whole = BACKWARD * step * self.config.data.batch_size * config.steps
        return whole <= SHORT_TRAINING

    @cached_property
    def _shared_program(self) -> SharedProgram:
        net = supernet(self.model, self.space)
        chain = self._retrain_optimizer()
        parts = self.config.data.accumulate
        return SharedProgram(net, self.space, chain, self.metric, self._evaluator(net), parts)

    def share_programs(self, other: "Study") -> None:
        """Use the programs of a study whose model, batches and training are the same."""
        self._programs = other._programs

    def schedule(self, steps: int) -> Schedule:
        """How long to train, and how often to log, evaluate and save."""
        log = self.config.log
        return Schedule(steps, log.every, log.eval_every, log.checkpoint_every, log.trackers)

    @property
    def retraining(self) -> Schedule:
        """How long to train one model."""
        config = self.config.retrain
        return dataclasses.replace(self.schedule(config.steps), patience=config.patience)

    # Costs.

    @cached_property
    def budget(self) -> Budget | None:
        """The budget of the search, if it has one."""
        return self.config.search.limits

    @cached_property
    def prices(self) -> dict[str, Price]:
        """Measured or computed prices of the budget's quantities.

        Raises `InputError` for a budget below the cheapest genotype. A search keeps them in its
        workdir, so that it goes on with the same after it was stopped.
        """
        assert self.budget is not None
        measured = _measured(self.model, self.space, self.budget)
        require_possible(self.budget, measured, self.space)
        return measured

    def affordable(self, genotype: Genotype) -> bool:
        """Whether a genotype is within every limit of the search's budget, by its prices."""
        if self.budget is None:
            return True
        exceeded = []
        for key, limit in self.budget.limits:
            exceeded.append(self.prices[key].of(genotype, self.space) > limit)
        return not any(exceeded)


def _measured(model: TransformerConfig, space: SearchSpace, budget: Budget) -> dict[str, Price]:
    """`prices`, by the chief's clock where several processes share a run."""

    def of_chief() -> list[dict[str, Any]]:
        return [jsonable(price.to_dict()) for price in prices(model, space, budget).values()]

    if not hosts.together():
        return prices(model, space, budget)
    measured = {}
    for entry in hosts.by_chief(of_chief):
        price = Price.from_dict(entry)
        measured[price.quantity] = price
    return measured


BACKWARD = 3
"""FLOPs of a training step, in units of those of a forward pass."""

FEWEST_SHARED = 3
"""Candidates of which one program for all pays: that of two compiles as long as the two alone."""

MOST_SHARED = 12
"""Candidates above which one program for all takes minutes to compile."""

SHORT_TRAINING = 3e12
"""FLOPs of a training for which its own program does not pay, minutes of a CPU.

A program for a whole space takes 1.2 times as long for a step as one for a single genotype, and
compiles as long as two or three of these (`experiments/benchmarks/programs.py`).
"""


def members_of(attention: Attention) -> tuple[Attention, ...]:
    """The attentions that stand side by side in `parallel`; otherwise the attention itself."""
    if isinstance(attention, Parallel):
        return attention.members
    return (attention,)


def genotype_identity(genotype: Genotype) -> str:
    """A genotype in short, with its fingerprint: two long ones may begin alike."""
    text = str(genotype)
    if len(text) > SHORT:
        text = text[:SHORT] + "..."
    return f"{text} [{genotype_key(genotype)}]"


SHORT = 60
"""Letters of a genotype's identity that a person reads."""
