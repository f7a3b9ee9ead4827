"""Searches for mixes: which option of a search finds the right layers, and at what price?

    python experiments/benchmarks/mixes.py --spaces=mqar --arms=default --seeds=5-24
    python experiments/benchmarks/mixes.py --spaces=mqar,mix,relay,quartet --arms=all --seeds=0-4
    python experiments/benchmarks/mixes.py --spaces=quartet --arms=default --seeds=0-4 --against-random

A line for each search: what each rule derives from it, the mixture it ended in, and seconds of the
processor without compiling. With `--against-random` a line for each seed: the winner of the race of
those answers and their neighbours, and the winners of races of random genotypes, without and with
neighbours, as many as the same seconds pay for; their test accuracies are paired. Lines go to
`results/mixes_cpu2.jsonl`, and a run that was stopped goes on where it stopped. `--look-up` prints
the races of the answers on `mqar`, looked up in the table `mqar_2`, and those of every genotype as
the answer.

`mqar` is multi-query recall over six linear-time types in two layers (36 models); the others are
planted tasks with a known answer.
"""

import argparse
import dataclasses
import itertools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1]))
import numpy as np
from lab import Fixed, Lab
from measure import say
from trial import Lines

import dartformer
from dartformer.cli.new import space_file
from dartformer.config.sections import Race
from dartformer.results import Look
from dartformer.space.genotype import Genotype
from dartformer.stages.bracket import HOMOGENEOUS, Bracket, Entrant
from dartformer.stages.search import Group, compiled_step, initial, stream
from dartformer.stages.study import Study
from dartformer.statistics import paired
from dartformer.tables import Replay, Table, load_table
from dartformer.training.loop import Stream

RESULTS = Path(__file__).parent / "results" / "mixes_cpu2.jsonl"

BY_WEIGHT = "masked_drop(fine_tune=0, equals='weight')"
BY_LOSS = "masked_drop(fine_tune=0)"
TUNED = "masked_drop(fine_tune=20)"


class Arm(NamedTuple):
    """A way to search: its strategy, what else is set in the config, and the rules that follow."""

    strategy: str
    values: Mapping[str, Any]
    rules: tuple[str, ...] = (BY_WEIGHT, "argmax")


ARMS = {
    "default": Arm("darts", {}),
    "warmup 0.5": Arm("darts", {"search.strategy.warmup": 0.5}),
    "warmup 0.67": Arm("darts", {"search.strategy.warmup": 0.67}),
    "uniform": Arm("masked", {"search.projections": "shared"}, (BY_LOSS, TUNED)),
    "drop": Arm("darts", {"search.strategy.extras": ("drop(stages=3, recompile=False)",)}),
    "entropy": Arm("darts", {"search.strategy.extras": ("entropy(start=-0.5, end=0.5)",)}),
    "separate": Arm("darts", {"search.projections": "separate"}),
    "one level": Arm("single_level", {}),
    "paths": Arm("spos", {}, ("evolution",)),
}

MQAR = {
    "task.length": 32,
    "task.pairs": 4,
    "task.keys": 32,
    "data.batch_size": 32,
    "model.stem": "none",
    "model.layers": 2,
    "model.heads": 4,
    "model.head_dim": 16,
    "model.model_dim": 64,
    "model.mlp_dim": 128,
    "space.granularity": "layer",
    "space.candidates": ("local(window=8)", "linear", "retention", "gated_delta", "conv", "ssd"),
    "search.steps": 405,
    "search.weights.learning_rate": 0.005,
    "retrain.steps": 405,
    "retrain.optimizer.learning_rate": 0.005,
}
"""The space of which all 36 models were trained."""

SPACES = ("mqar", "mix", "relay", "quartet")


def study_of(space: str, arm: Arm, values: Mapping[str, Any]) -> Study:
    """The study of a space and a way to search it."""
    values = {"search.strategy.name": arm.strategy, "search.observe": False, **arm.values, **values}
    if space == "mqar":
        file = space_file("recall")
        return Study(dartformer.load_config(file, {**MQAR, **values}))
    return Study(dartformer.load_config(space_file("planted", kind=space), values))


def opened(study: Study) -> tuple[Lab, float]:
    """A lab whose search is compiled, and the processor's seconds that compiling took."""
    lab, started = Lab(study), time.process_time()
    group = Group((0,))
    step = compiled_step(study, group)
    step.prepare(initial(study, group), next(stream(study, group)))
    lab.step = step
    return lab, time.process_time() - started


def searched(lab: Lab, arm: Arm, seed: int) -> dict[str, Any]:
    """A search with `seed`, and what each rule makes of it."""
    started = time.process_time()
    trained, _ = lab.search(seed)
    seconds = time.process_time() - started
    answers, derive_seconds = {}, {}
    for rule in arm.rules:
        started = time.process_time()
        derived, _ = lab.derive(trained, rule)
        answers[rule] = derived.genotype.to_dict()["layers"]
        derive_seconds[rule] = time.process_time() - started
    rows, columns, _ = lab.space.alphas_shape
    return {
        "answers": answers,
        "mixture": np.round(trained.mixture[:rows, :columns].astype(float), 3).tolist(),
        "seconds": seconds,
        "derive_seconds": derive_seconds,
    }


# The rival: random genotypes, raced for as long.


class Trainings:
    """Trains genotypes with one seed, in one program: what a bracket runs on."""

    def __init__(self, lab: Lab, seed: int):
        self.lab, self.seed = lab, seed
        self.states: dict[Genotype, tuple[Fixed, Stream]] = {}
        self.steps = 0
        """Of all trainings together."""

    def prepare(self, entrants: Sequence[Entrant], step: int | None = None) -> None:
        """See `Track`; they train when they are looked at."""

    def look(self, entrant: Entrant, step: int) -> Look:
        """See `Track`."""
        genotype = entrant.genotype
        if genotype not in self.states:
            self.states[genotype] = self.lab.begin(genotype, self.seed)
        state, batch_stream = self.states[genotype]
        while int(state.step) < step:
            state, _ = self.lab.fixed_step(state, next(batch_stream))
            self.steps += 1
        self.states[genotype] = state, batch_stream
        examples = self.examples(genotype, "valid")
        return Look(step, float(examples.mean()), tuple(examples.tolist()))

    def examples(self, genotype: Genotype, part: str) -> np.ndarray:
        """`[n]` accuracies of the examples of a part with the weights as they are."""
        run, (state, _) = self.lab.run, self.states[genotype]
        mixture = np.asarray(state.mixture)
        scores = run.supernet.evaluator.per_example(state.weights, run.parts[part], mixture)
        return scores["accuracy"]

    def merit(self, look: Look) -> float:
        """See `Track`."""
        assert look.score is not None
        return look.score

    def tied(self, ours: Look, theirs: Look) -> bool:
        """See `Track`."""
        gap, noise = paired(ours.array(), theirs.array())
        return abs(gap) <= noise

    def final_merit(self, entrant: Entrant) -> float:
        """See `Track`; of this one seed."""
        return self.merit(self.look(entrant, self.lab.run.config.retrain.steps))

    def affordable(self, genotype: Genotype) -> bool:
        """See `Track`."""
        return True


class Won(NamedTuple):
    """The end of a race: its winner, accuracies of the test examples, seconds, steps trained."""

    genotype: Genotype
    test: np.ndarray
    seconds: float
    steps: int


def raced(
    lab: Lab, seed: int, entrants: Sequence[Entrant], mixture: np.ndarray | None, neighbours: int
) -> Won:
    """A race of entrants and, where `neighbours` is above 0, of the best one's neighbours."""
    started, trainings = time.process_time(), Trainings(lab, seed)
    config = lab.run.config
    options = dataclasses.replace(config.race, neighbours=neighbours)
    bracket = Bracket(lab.space, options, config.retrain.steps, trainings, mixture)
    for entrant in entrants:
        bracket.enter(entrant)
    winner = bracket.run().winner.genotype
    seconds = time.process_time() - started
    return Won(winner, trainings.examples(winner, "test"), seconds, trainings.steps)


def against_random(lab: Lab, arm: Arm, seed: int) -> dict[str, Any]:
    """A search with the race of its answers, against random genotypes raced in the same time."""
    config, space = lab.run.config, lab.space
    # Compiled before anything is timed.
    warm = Trainings(lab, seed)
    warm.look(Entrant("warm", next(iter(space.homogeneous()))), 1)
    started = time.process_time()
    trained, _ = lab.search(seed)
    answers = []
    for rule in arm.rules:
        derived, _ = lab.derive(trained, rule)
        answers.append(Entrant(rule, derived.genotype, straight=True))
    search_seconds = time.process_time() - started
    ours = raced(lab, seed, answers, trained.mixture, config.race.neighbours)
    seconds = search_seconds + ours.seconds
    training = ours.seconds / ours.steps * config.retrain.steps
    # A first rung of 1/9 for all, 1/3 for half of them, and about two that train to the end.
    count = max(1, round((seconds / training - 4 / 3) * 9 / 2))
    rng, entrants = np.random.default_rng([seed, 2]), []
    for number in range(count):
        entrants.append(Entrant(f"random {number}", space.random(rng)))
    theirs = raced(lab, seed, entrants, None, neighbours=0)
    # The same draws with neighbours, in about the same time: half as many.
    climbing = raced(lab, seed, entrants[: max(1, count // 2)], None, config.race.neighbours)
    return {
        "search_seconds": search_seconds,
        "trainings": seconds / training,
        "random": count,
        "answer": answers[0].genotype.to_dict()["layers"],
        "ours": summed(ours),
        "theirs": summed(theirs),
        "climbing": summed(climbing),
        "gap": float((ours.test - theirs.test).mean()),
        "gap_climbing": float((ours.test - climbing.test).mean()),
    }


def summed(won: Won) -> dict[str, Any]:
    """A race in one line."""
    return {
        "genotype": won.genotype.to_dict()["layers"],
        "test": float(won.test.mean()),
        "seconds": won.seconds,
    }


# Races looked up: every model of `mqar` was trained (`experiments/tables`).


def looked_up(table: Table, seed: int, answers: Sequence[Genotype], whole: bool) -> dict[str, Any]:
    """The race of some answers and their neighbours; with the homogeneous models if `whole`."""
    replay = Replay(table, seed)
    bracket = Bracket(table.space, Race(), table.steps[-1], replay)
    for answer in answers:
        bracket.enter(Entrant(f"answer {answer}", answer, straight=True))
    if whole:
        for genotype in table.space.homogeneous():
            bracket.enter(Entrant(f"{HOMOGENEOUS}{genotype}", genotype))
    winner = bracket.run().winner.genotype
    share = 0.0
    for model, reached in replay.reached.items():
        share += float(table.shares[model]) * reached / table.steps[-1]
    return {"winner": str(winner), "regret": table.regret(winner), "race_share": share}


def look_up(file: Path) -> None:
    """The races of what the searches of `mqar` found, and of every genotype as the answer."""
    table = load_table("mqar_2")
    grid = float(table.seconds.mean(1).sum())
    for row in Lines(file, ("seed",)).rows:
        if row["name"] != "search" or row["space"] != "mqar":
            continue
        answers = []
        for layers in row["answers"].values():
            answers.append(Genotype.from_dict({"format": 1, "layers": layers}))
        seconds = row["seconds"] + sum(row["derive_seconds"].values())
        labels = {"arm": row["arm"], "seed": row["seed"], "search_share": seconds / grid}
        for seed, whole in itertools.product(range(len(table.seeds)), (False, True)):
            result = looked_up(table, seed, answers, whole)
            say(name="looked up", **labels, table_seed=seed, whole=whole, **result)
    for whole in (False, True):
        regrets, shares = [], []
        for seed, genotype in itertools.product(range(len(table.seeds)), table.genotypes):
            result = looked_up(table, seed, [genotype], whole)
            regrets.append(result["regret"])
            shares.append(result["race_share"])
        within = float((np.array(regrets) <= 0.5).mean())
        mean_regret, share = float(np.mean(regrets)), float(np.mean(shares))
        say(name="any", whole=whole, regret=mean_regret, within_half=within, race_share=share)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--spaces", default=",".join(SPACES))
    parser.add_argument("--arms", default="all", help="names of `ARMS`, separated by commas")
    parser.add_argument("--seeds", default="0-4", help="the first and the last")
    parser.add_argument("--steps", type=int, default=0, help="of the search (0: the config's)")
    parser.add_argument(
        "--against-random",
        action="store_true",
        help="race the answers, and random genotypes for as long",
    )
    parser.add_argument(
        "--look-up",
        action="store_true",
        help="look up the races of the searches of mqar that are in the file, and search nothing",
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.look_up:
        look_up(arguments.out)
        return
    arms = list(ARMS)
    if arguments.arms != "all":
        arms = arguments.arms.split(",")
    first, last = map(int, arguments.seeds.split("-"))
    values: dict[str, Any] = {}
    if arguments.steps:
        values["search.steps"] = arguments.steps
    name = "search"
    if arguments.against_random:
        name = "against random"
    lines = Lines(arguments.out, ("name", "space", "arm", "steps", "seed"))
    for space, arm in itertools.product(arguments.spaces.split(","), arms):
        study = study_of(space, ARMS[arm], values)
        key = {"name": name, "space": space, "arm": arm, "steps": study.config.search.steps}
        seeds = range(first, last + 1)
        missing = [seed for seed in seeds if lines.find(**key, seed=seed) is None]
        if not missing:
            continue
        lab, compile_seconds = opened(study)
        for seed in missing:
            if arguments.against_random:
                row = against_random(lab, ARMS[arm], seed)
            else:
                row = searched(lab, ARMS[arm], seed)
            lines.add(**key, seed=seed, compile_seconds=compile_seconds, **row)


if __name__ == "__main__":
    main()
