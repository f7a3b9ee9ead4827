"""The regret and the cost of a way to choose a model, looked up in a table.

    python experiments/tables/regret.py --table=mqar --strategy=race
    python experiments/tables/regret.py --table=mqar --strategy=race --rungs=2/9,4/9 --keep=0.34
    python experiments/tables/regret.py --table=mqar_2 --strategy=random_race --cost=0.2
    python experiments/tables/regret.py --table=mqar_2 --strategy=darts --seeds=0-4 --data=FOLDER
    python experiments/tables/regret.py --table=mqar_2 --strategy=darts --set=search.projections=separate

`race`: the race of the package, between the homogeneous models (and their neighbours, where the space
is by layer); `race_all`: between all models. `random`: the best on valid of as many random models as
cost `--cost`; `random_race`: a race between as many as cost that. Any other name is a strategy of
`dartformer list strategies`: it searches with the settings of the table, which takes minutes and needs
the data, and its answer is looked up.

A JSON line for each choice, then one with the means. Regret is in points, or hundredths of a bit: the
mean test score of the table's best model minus that of the chosen one. Costs are shares of training all
models of the table with one seed, without compiling.

* `regret`, `cost`: the best at the last rung is trained to the end.
* `tied`: how many are within the noise of it there; `best_tied`: whether the table's best is one of them.
* `regret_final`, `cost_final`: the finalists are trained to the end over all seeds, and the best on valid
  wins. This cost is a share of training all models over all seeds.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from spaces import SPACES

from dartformer.attention import to_text
from dartformer.config import override
from dartformer.config.sections import Race
from dartformer.space.genotype import Genotype
from dartformer.stages.bracket import HOMOGENEOUS, Bracket, Entrant
from dartformer.stages.search import Group, compiled_step, initial, stream
from dartformer.stages.study import Study
from dartformer.tables import CHECKED_IN, Replay, Table, load_table

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from lab import Lab


class Choice(NamedTuple):
    """What one way chose; see the head of this file."""

    seed: int
    chosen: str
    regret: float
    cost: float
    entered: int = 1
    tied: int = 1
    best_tied: bool = False
    regret_final: float = float("nan")
    cost_final: float = float("nan")


def entrants_of(genotypes: Iterable[Genotype]) -> list[Entrant]:
    """Genotypes as entrants, the homogeneous ones named as such."""
    entrants = []
    for genotype in genotypes:
        name = str(genotype)
        attentions = set(sum(genotype.layers, ()))
        if len(attentions) == 1:
            name = HOMOGENEOUS + to_text(attentions.pop())
        entrants.append(Entrant(name, genotype))
    return entrants


def raced(table: Table, options: Race, seed: int, entrants: Sequence[Entrant]) -> Choice:
    """A race between entrants, with one of the table's seeds as the first."""
    steps, replay = table.steps[-1], Replay(table, seed)
    bracket = Bracket(table.space, options, steps, replay)
    for entrant in entrants:
        bracket.enter(entrant)
    winner = bracket.run().winner.genotype
    leader, tied, last = winner, [], steps
    if bracket.rungs:
        last = bracket.rungs[-1]
        ranked = bracket.at_last_rung()
        leader = ranked[0].genotype
        first = bracket.look(ranked[0], last)
        for entrant in ranked:
            if replay.tied(bracket.look(entrant, last), first):
                tied.append(table.number(entrant.genotype))
    cost, cost_final = 0.0, 0.0
    for model, reached in replay.reached.items():
        # A race goes on to the end with all that are tied; this is the price of one of them.
        share = float(table.shares[model])
        cost += share * min(reached, last) / steps
        trainings = reached / steps
        if model in replay.finished:
            trainings = len(table.seeds)
        cost_final += share * trainings / len(table.seeds)
    cost += float(table.shares[table.number(leader)]) * (steps - last) / steps
    return Choice(
        seed=seed,
        chosen=str(leader),
        regret=table.regret(leader),
        cost=cost,
        entered=len(bracket.entrants),
        tied=len(tied),
        best_tied=table.best in tied,
        regret_final=table.regret(winner),
        cost_final=cost_final,
    )


def random_genotypes(table: Table, draw: int) -> list[Genotype]:
    """All genotypes of the table in a random order."""
    order = np.random.default_rng(draw).permutation(len(table.genotypes))
    return [table.genotypes[number] for number in order]


def random_race(table: Table, options: Race, draw: int, most: float) -> Choice:
    """The largest race between random models whose cost is at most `most`, or that of one alone."""
    order = entrants_of(random_genotypes(table, draw))
    seed = draw % len(table.seeds)
    choice = raced(table, options, seed, order[:1])
    # Bisection: a larger race costs more.
    fewest, too_many = 1, len(order) + 1
    while too_many - fewest > 1:
        count = (fewest + too_many) // 2
        larger = raced(table, options, seed, order[:count])
        if larger.cost > most:
            too_many = count
        else:
            fewest, choice = count, larger
    return choice


def random_search(table: Table, draw: int, most: float) -> Choice:
    """The best on valid of as many random models as cost at most `most`, and of one at least."""
    seed = draw % len(table.seeds)
    replay, steps = Replay(table, seed), table.steps[-1]
    cost, merits = 0.0, {}
    for entrant in entrants_of(random_genotypes(table, draw)):
        share = float(table.shares[table.number(entrant.genotype)])
        if merits and cost + share > most:
            break
        cost += share
        merits[entrant.genotype] = replay.merit(replay.look(entrant, steps))
    chosen = max(merits, key=merits.__getitem__)
    return Choice(seed, str(chosen), table.regret(chosen), cost, len(merits))


def searched(
    table: Table, strategy: str, data: Path, seeds: Sequence[int], settings: Sequence[str] = ()
) -> Iterator[Choice]:
    """The answer of a search with each seed, by the strategy's default rule."""
    config = SPACES[table.name](data)
    override(config, {"search.strategy.name": strategy})
    for setting in settings:
        field, _, value = setting.partition("=")
        override(config, {field: value})
    lab = Lab(Study(config))
    grid = float(table.seconds.min(1).sum())
    for seed in seeds:
        group = Group((seed,))
        if lab.step is None:
            # Compiled before the clock starts.
            lab.step = compiled_step(lab.run, group)
            lab.step.prepare(initial(lab.run, group), next(stream(lab.run, group)))
        started = time.process_time()
        trained, _ = lab.search(seed)
        seconds = time.process_time() - started
        derived, _ = lab.derive(trained)
        chosen = derived.genotype
        own = float(table.shares[table.number(chosen)])
        yield Choice(seed, str(chosen), table.regret(chosen), seconds / grid + own)


def means(choices: Sequence[Choice]) -> dict[str, float]:
    """The mean of each number, the largest regret, and the share of choices without a regret."""
    columns = Choice(*zip(*choices, strict=True))
    numbers = {
        "races": len(choices),
        "regret_largest": max(columns.regret),
        "within_half": float(np.mean(np.array(columns.regret) <= 0.5)),
    }
    for name in ("regret", "cost", "tied", "best_tied", "regret_final", "cost_final"):
        numbers[name] = float(np.mean(getattr(columns, name)))
    return numbers


def say(line: dict[str, object]) -> None:
    """One line of JSON, numbers to four digits after the point."""
    rounded = {}
    for name, value in line.items():
        if isinstance(value, float):
            value = round(value, 4)
        # JSON has no NaN.
        if value == value:
            rounded[name] = value
    print(json.dumps(rounded), flush=True)


def choices_of(arguments: argparse.Namespace, table: Table) -> Iterator[Choice]:
    """The choices of the way that the command line names."""
    rungs = tuple(float(Fraction(text)) for text in arguments.rungs.split(",") if text)
    options = Race(
        rungs=rungs,
        keep=arguments.keep,
        finalists=arguments.finalists,
        neighbours=arguments.neighbours,
    )
    strategy, draws = arguments.strategy, range(arguments.draws)
    if strategy in ("race", "race_all"):
        genotypes = table.space.homogeneous()
        if strategy == "race_all":
            genotypes = table.genotypes
        for seed in range(len(table.seeds)):
            yield raced(table, options, seed, entrants_of(genotypes))
    elif strategy == "random_race":
        for draw in draws:
            yield random_race(table, options, draw, arguments.cost)
    elif strategy == "random":
        for draw in draws:
            yield random_search(table, draw, arguments.cost)
    else:
        first, _, last = arguments.seeds.partition("-")
        seeds = range(int(first), int(last or first) + 1)
        yield from searched(table, strategy, arguments.data, seeds, arguments.set)


def main(arguments: argparse.Namespace) -> None:
    """Print every choice, and their means."""
    table = load_table(arguments.table, arguments.file)
    settings = {"table": arguments.table, "strategy": arguments.strategy}
    if arguments.set:
        settings["set"] = arguments.set
    choices = []
    for choice in choices_of(arguments, table):
        choices.append(choice)
        if not arguments.quiet:
            say({**settings, **choice._asdict()})
    settings |= {"rungs": arguments.rungs, "keep": arguments.keep}
    say({**settings, "neighbours": arguments.neighbours, **means(choices)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", required=True)
    parser.add_argument("--strategy", default="race")
    parser.add_argument("--rungs", default="1/9,4/9", help="ninths of a training")
    parser.add_argument("--keep", type=float, default=Race.keep)
    parser.add_argument("--finalists", type=int, default=Race.finalists)
    parser.add_argument("--neighbours", type=int, default=0)
    parser.add_argument("--cost", type=float, default=0.33, help="of random and random_race")
    parser.add_argument("--draws", type=int, default=300, help="of random and random_race")
    parser.add_argument("--seeds", default="0-2", help="of a search: first and last")
    parser.add_argument("--set", action="append", default=[], help="FIELD=VALUE of a search")
    parser.add_argument("--data", type=Path, default=Path(), help="of a search: the data sets")
    parser.add_argument("--file", type=Path, default=CHECKED_IN, help="the tables")
    parser.add_argument("--quiet", action="store_true", help="print the means alone")
    main(parser.parse_args())
