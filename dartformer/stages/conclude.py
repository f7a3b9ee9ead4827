"""Conclude: whether the models of a run have learned, and which of them to take."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from dartformer.errors import shortened
from dartformer.results import (
    Baseline,
    Conclusion,
    Layers,
    ModelScores,
    RaceRecord,
    Results,
    RuleScores,
)
from dartformer.space.genotype import in_words
from dartformer.stages.bracket import HOMOGENEOUS, UNIFORM
from dartformer.stages.layout import Workdir
from dartformer.stages.retrain import FOUND
from dartformer.stages.study import Study
from dartformer.statistics import binomial, compare, mean, spread, welch
from dartformer.tasks.base import majority
from dartformer.training.log import Line, read_metrics
from dartformer.training.metric import Metric

NOTHING, BELOW, SHORT, TRAINED = "nothing learned", "below a rule", "under-trained", "trained"
"""The states of a conclusion. With the first two no model is recommended."""

TRIVIAL = {
    "majority": "always answering with the most frequent class",
    "mean": "always answering with the mean of train",
    "unigram": "always answering with the frequencies of the tokens",
    "chance": "an answer that reads no input",
}
"""Rules that read no input. A model that is no better has learned nothing."""

FALLING = 0.03
"""Share by which the training loss falls from the middle fifth of a training to its last fifth,
from which on it still falls. Over half a cosine schedule the rate goes to 0, so a loss that has
converged moves by less."""

FEW_EPOCHS, ENOUGH_EPOCHS = 5, 10
"""Passes over train below which a loss that still falls is the verdict and not a remark, and those
that the proposed number of steps makes. Generated examples are fresh however few passes there are, so
that a loss that still falls is a remark."""

LEAST_EPOCHS = 2
"""Passes over train below which nothing else is to blame for a poor model."""

MOST_STEPS_TIMES = 10
"""The proposed number of steps is at most this many times the present one."""

CEILING = 0.99
"""A score from which on more training gains nothing that counts."""

FLAT, BY_HEART = 0.02, 0.3
"""Shares by which the training loss falls over a whole training: below the first it has not moved,
above the second the model has learned at least its own training examples."""

SAVED = 0.01
"""Least share of the cost that a model must save to be taken instead of the best."""

LONGEST = 60
"""Letters of a genotype in a headline."""


class Course(NamedTuple):
    """How one training went.

    Attributes:
      steps: that it took.
      fall: share by which the training loss fell from its first line to the last fifth.
      late_fall: share by which it fell from the middle fifth to the last fifth.
      best_is_last: whether no evaluation on valid was better than the last.
    """

    steps: int
    fall: float
    late_fall: float
    best_is_last: bool


class Courses(NamedTuple):
    """How the trainings of a model went, over its seeds.

    Attributes:
      epochs: passes over train.
      fall, late_fall: see `Course`, the means.
      best_is_last: in most of them.
    """

    epochs: float
    fall: float
    late_fall: float
    best_is_last: bool


class Rival(NamedTuple):
    """A rule that trains no model, with its score on test."""

    name: str
    score: float


class Choice(NamedTuple):
    """The model to take.

    Attributes:
      name: of the model.
      scores: of the model.
      best: scores of the model that is best on valid.
      noise: the difference on valid that chance explains; None where the model has no rival.
      ties: names of all models that tie with the best.
    """

    name: str
    scores: ModelScores
    best: ModelScores
    noise: float | None
    ties: tuple[str, ...]


def conclude(study: Study, workdir: Workdir, results: Results) -> Conclusion:
    """What the scores in `results` and the logs of the trainings come to."""
    assert results.found is not None
    assert results.baselines is not None
    config = study.config
    trained = _competing(results.found, results.baselines, results.race)
    choice = choose(trained, study.metric, len(study.parts["valid"]))
    courses = _courses(study, workdir, results.found)
    run = Run(
        metric=study.metric,
        best=_best_on_test(trained, study.metric),
        choice=choice,
        rival=_rival(results.baselines, study.metric),
        trivial=_trivial(study, results.baselines),
        courses=courses,
        steps=config.retrain.steps,
        learning_rate=config.retrain.optimizer.learning_rate,
        dropout=config.model.dropout,
        model_dim=config.model.model_dim,
        generated=study.task.traits.generated,
    )
    search_epochs = None
    if study.strategy.traits.supernet:
        part = "train"
        if study.strategy.traits.halves:
            part = "weights"
        examples = config.search.steps * config.data.batch_size
        search_epochs = examples / len(study.parts[part])
    return run.conclusion(search_epochs)


# What the trainings did.


def course(lines: Sequence[Line], metric: Metric) -> Course | None:
    """The course of a training from its log; None where it has no loss."""
    losses: list[tuple[int, float]] = []
    merits: list[float] = []
    for line in lines:
        loss = line.get("loss")
        if isinstance(loss, int | float):
            losses.append((line["step"], float(loss)))
        scores = _valid_scores(line)
        if metric.name in scores:
            merits.append(metric.objective(scores))
    if not losses:
        return None
    steps, _ = losses[-1]
    _, first = losses[0]
    last_fifth = _between(losses, 0.8 * steps, steps)
    middle_fifth = _between(losses, 0.4 * steps, 0.6 * steps)
    end = mean(last_fifth)
    late_fall = _fall(mean(middle_fifth), end)
    # A fall within the noise of the batches is none.
    if not late_fall * mean(middle_fifth) > _noise(middle_fifth, last_fifth):
        late_fall = 0.0
    best_is_last = bool(merits) and merits[-1] >= max(merits)
    return Course(steps, _fall(first, end), late_fall, best_is_last)


def _valid_scores(line: Line) -> dict[str, float]:
    """The scores on valid in a line of a log."""
    scores = {}
    for name, value in line.items():
        if name.startswith("valid_") and isinstance(value, int | float):
            scores[name.removeprefix("valid_")] = float(value)
    return scores


def _between(losses: Iterable[tuple[int, float]], start: float, end: float) -> list[float]:
    return [loss for step, loss in losses if start < step <= end]


def _fall(before: float, after: float) -> float:
    """The share by which a loss fell; 0 where that is unknown."""
    if not math.isfinite(before - after) or before <= 0:
        return 0.0
    return (before - after) / before


def _noise(before: Sequence[float], after: Sequence[float]) -> float:
    """Twice the standard error of the difference of two means; 0 where it is unknown."""
    variance = 0.0
    for losses in (before, after):
        if len(losses) < 2:
            return 0.0
        variance += spread(losses) ** 2 / len(losses)
    return 2 * math.sqrt(variance)


def _courses(study: Study, workdir: Workdir, model: ModelScores) -> Courses | None:
    """The courses of a genotype's trainings; None where no log is left."""
    listed = []
    for seed in study.config.retrain.seeds:
        folder = workdir.training_of(model.genotype, seed)
        one = course(read_metrics(folder / "metrics.jsonl"), study.metric)
        if one is not None:
            listed.append(one)
    if not listed:
        return None
    # Steps pass over train in order, whatever the lengths of the batches.
    passes = study.config.data.batch_size / len(study.parts["train"])
    return Courses(
        epochs=mean([one.steps for one in listed]) * passes,
        fall=mean([one.fall for one in listed]),
        late_fall=mean([one.late_fall for one in listed]),
        best_is_last=2 * sum(one.best_is_last for one in listed) > len(listed),
    )


# Which model to take.


def _competing(
    found: ModelScores, baselines: Mapping[str, Baseline], race: RaceRecord | None
) -> dict[str, ModelScores]:
    """The models that may be taken, the found one first."""
    outside: set[Layers] = set()
    if race is not None:
        for entrant in race.entrants:
            if entrant.outside_budget:
                outside.add(entrant.genotype.layers)
    models = {FOUND: found}
    for name, model in baselines.items():
        # The even mixture of all candidates is only compared with: it costs as much as all.
        if not isinstance(model, ModelScores) or name == UNIFORM:
            continue
        if model.genotype.layers not in outside:
            models[name] = model
    return models


def choose(models: Mapping[str, ModelScores], metric: Metric, examples: int) -> Choice:
    """The cheapest model of those that tie with the best on valid.

    A model ties where it is within one standard error of the best (Breiman et al. 1984, section
    3.4.3): of few seeds the 95% noise is so large that much worse models would be within it.

    Args:
      models: by name; of equals the first counts as the best.
      metric: that is compared.
      examples: of valid, whose noise counts where there is one seed.
    """

    def merit(name: str) -> float:
        return metric.objective({metric.name: models[name].valid.mean})

    best_name = max(models, key=merit)
    best = models[best_name]
    ties = {best_name: best}
    noises: dict[str, float] = {}
    counted = 0
    if metric.percent:
        counted = examples
    error = _standard_error(best.valid.per_seed, counted)
    for name, model in models.items():
        if model.genotype == best.genotype:
            continue
        compared = compare(
            best.valid.per_seed,
            model.valid.per_seed,
            higher=metric.higher,
            examples=counted,
        )
        if compared.noise is None or abs(compared.difference) > min(error, compared.noise):
            continue
        ties[name] = model
        noises[name] = compared.noise
    cheapest = min(ties, key=lambda name: (ties[name].flops, ties[name].parameters))
    if _saving(best, ties[cheapest]) is None:
        cheapest = best_name
    return Choice(cheapest, ties[cheapest], best, noises.get(cheapest), tuple(ties))


def _standard_error(per_seed: Sequence[float], examples: int) -> float:
    """Of a mean score: over the seeds or, for an accuracy, over the examples if that is more."""
    error = 0.0
    if len(per_seed) > 1:
        error = spread(per_seed) / math.sqrt(len(per_seed))
    score = mean(per_seed)
    if examples and 0 <= score <= 1:
        error = max(error, math.sqrt(score * (1 - score) / examples))
    return error


def _saving(best: ModelScores, model: ModelScores) -> str | None:
    """By how much a model is cheaper, in words; None where it is not."""
    for title, ours, theirs in (
        ("FLOPs", model.flops, best.flops),
        ("parameters", model.parameters, best.parameters),
    ):
        if theirs > 0 and 1 - ours / theirs >= SAVED:
            return f"{100 * (1 - ours / theirs):.0f}% fewer {title}"
    return None


# What simple rules reach.


def _rival(baselines: Mapping[str, Baseline], metric: Metric) -> Rival | None:
    """The best rule on test; of equals one that reads no input."""
    rivals: list[tuple[float, bool, Rival]] = []
    for name, rule in baselines.items():
        if isinstance(rule, RuleScores) and math.isfinite(rule.test.mean):
            merit = metric.objective({metric.name: rule.test.mean})
            rivals.append((merit, name in TRIVIAL, Rival(name, rule.test.mean)))
    if not rivals:
        return None
    _, _, best = max(rivals, key=lambda entry: entry[:2])
    return best


CHANCE = {"auc": 0.5, "mcc": 0.0, "entity_f1": 0.0, "spearman": 0.0, "r2": 0.0}
"""Scores of an answer that is always the same, by metric."""


def _trivial(study: Study, baselines: Mapping[str, Baseline]) -> Rival | None:
    """The best rule that reads no input; None where its score is unknown."""
    names = TRIVIAL.keys() & baselines.keys()
    best = _rival({name: baselines[name] for name in names}, study.metric)
    if best is not None:
        return best
    # Of a metric that is not the task's own no such rule is scored.
    metric = study.metric.name
    if metric in CHANCE:
        return Rival("chance", CHANCE[metric])
    if metric == "balanced_accuracy":
        return Rival("chance", 1 / study.task.classes)
    if metric == "macro_f1":
        # The F1 of the one class that is always answered; that of the others is 0.
        share = majority(study.baseline_train, study.parts["test"])
        return Rival("chance", 2 * share / (1 + share) / study.task.classes)
    return None


def _best_on_test(models: Mapping[str, ModelScores], metric: Metric) -> ModelScores:
    def merit(model: ModelScores) -> float:
        return metric.objective({metric.name: model.test.mean})

    return max(models.values(), key=merit)


def rule_title(name: str) -> str:
    """The name of a rule in words."""
    return name.replace("_", " ").replace("bayes", "Bayes")


class Run(NamedTuple):
    """What a conclusion is drawn from.

    Attributes:
      metric: that decides.
      best: the model with the best score on test: a rule that beats it beats all.
      choice: the model to take.
      rival: the best rule; None where the task has none.
      trivial: the best rule that reads no input; None where its score is unknown.
      courses: how the found model trained; None where its logs are gone.
      steps, learning_rate: of each training.
      dropout, model_dim: of the model.
      generated: whether the task draws its examples, so that passes over them mean little.
    """

    metric: Metric
    best: ModelScores
    choice: Choice
    rival: Rival | None
    trivial: Rival | None
    courses: Courses | None
    steps: int
    learning_rate: float
    dropout: float
    model_dim: int
    generated: bool = False

    def conclusion(self, search_epochs: float | None = None) -> Conclusion:
        """The state of the run, in a headline and what follows it."""
        state = self.state()
        headline, details = self.words(state)
        flag: str | None = self.remedy().flag
        taken: str | None = self.choice.name
        if state in (NOTHING, BELOW):
            taken = None
        if state == TRAINED and not self.still_learns and not self.behind:
            flag = None
        epochs = late_fall = best_is_last = None
        if self.courses is not None:
            epochs, late_fall = self.courses.epochs, self.courses.late_fall
            best_is_last = self.courses.best_is_last
        return Conclusion(
            state=state,
            headline=headline,
            details=tuple(details),
            take=taken,
            ties=self.choice.ties,
            flag=flag,
            epochs=epochs,
            search_epochs=search_epochs,
            late_fall=late_fall,
            best_is_last=best_is_last,
        )

    def state(self) -> str:
        """One of the four states."""
        if self.trivial is not None and self.lead(self.trivial) <= self.noise(self.trivial):
            return NOTHING
        if self.rival is not None and self.lead(self.rival) < -self.noise(self.rival):
            return BELOW
        if not self.still_learns or self.courses is None or self.generated:
            return TRAINED
        if self.courses.epochs < FEW_EPOCHS:
            return SHORT
        return TRAINED

    def lead(self, rival: Rival) -> float:
        """By how much the best model is better than a rule on test; infinite where it is unknown.

        Of a score that is undefined nothing is said against the model.
        """
        gap = self.best.test.mean - rival.score
        if not math.isfinite(gap):
            return math.inf
        if self.metric.higher:
            return gap
        return -gap

    def noise(self, rival: Rival) -> float:
        """The difference between the best model and a rule that chance explains; 0 if unknown."""
        test = self.best.test
        noise = 0.0
        # Seeds say how much trainings vary, the examples how much another test part would.
        if len(test.per_seed) > 1:
            noise = welch(test.per_seed, [rival.score] * 2)
        if self.metric.percent:
            counted = binomial(test.mean, rival.score, test.examples)
            noise = np.fmax(noise, counted)
        if not math.isfinite(noise):
            return 0.0
        return float(noise)

    @property
    def behind(self) -> bool:
        """Whether the best rule is ahead by more than one standard error, half of the noise."""
        rival = self.rival
        return rival is not None and self.lead(rival) < -self.noise(rival) / 2

    @property
    def still_learns(self) -> bool:
        """Whether more steps are likely to improve the found model."""
        if self.courses is None:
            return False
        test = self.best.test.mean
        if self.metric.share == self.metric.name and test >= CEILING:
            return False
        return self.courses.best_is_last and self.courses.late_fall >= FALLING

    def remedy(self) -> "Remedy":
        """Why the models are not better, and the flag to try."""
        courses = self.courses
        if courses is None:
            return Remedy("their logs are gone", self._more_steps(1.0))
        trained, epochs = f"{courses.epochs:.1f} epochs", courses.epochs
        if self.generated:
            # The proposal is then twice the steps: there is no number of passes to reach.
            trained, epochs = f"{self.steps:,} steps", ENOUGH_EPOCHS
        if self.still_learns:
            return Remedy(
                f"the training loss still falls after {trained}", self._more_steps(epochs)
            )
        few = courses.epochs < FEW_EPOCHS and courses.best_is_last
        if few or (courses.epochs < LEAST_EPOCHS and not self.generated):
            return Remedy(f"the models trained for only {trained}", self._more_steps(epochs))
        if courses.fall < FLAT:
            rate = _rounded(self.learning_rate / 3)
            return Remedy(
                f"the training loss has not moved in {trained}",
                f"--config.retrain.optimizer.learning_rate={rate:g}",
            )
        if courses.fall > BY_HEART and not courses.best_is_last:
            dropout = min(self.dropout + 0.2, 0.5)
            return Remedy(
                f"the models learn train by heart in {trained}, and valid does not follow",
                f"--config.model.dropout={dropout:g}",
            )
        return Remedy(
            f"the training loss falls no further after {trained}",
            f"--config.model.model_dim={2 * self.model_dim}",
        )

    def _more_steps(self, epochs: float) -> str:
        times = min(max(ENOUGH_EPOCHS / max(epochs, 1e-9), 2), MOST_STEPS_TIMES)
        return f"--config.retrain.steps={_rounded(times * self.steps):.0f}"

    # The words.

    def words(self, state: str) -> tuple[str, list[str]]:
        """The headline and the sentences that follow it."""
        text, remedy = self.metric.text, self.remedy()
        advice = f"{remedy.reason}; try {remedy.flag}"
        score = text(self.best.test.mean)
        if state == NOTHING and self.trivial is not None:
            rule = TRIVIAL[self.trivial.name]
            headline = (
                f"Nothing has learned: the best model scores {score} on test, and {rule} "
                f"{text(self.trivial.score)}."
            )
            details = [f"Why: {advice}."]
            if self.rival is not None and self.rival.name not in TRIVIAL:
                title, reached = rule_title(self.rival.name), text(self.rival.score)
                details.append(f"It can be learned: the rule {title} scores {reached}.")
            return headline, details
        if state == BELOW and self.rival is not None:
            name = rule_title(self.rival.name)
            headline = (
                f"{name[:1].upper()}{name[1:]} ({text(self.rival.score)}) is better than every "
                f"model here ({score})."
            )
            return headline, [f"Why: {advice}."]
        if state == SHORT:
            return f"Under-trained: {advice}.", [self.recommendation(), *self.remarks()]
        headline, details = self.recommendation(), self.remarks()
        if self.behind and self.rival is not None:
            name, reached = rule_title(self.rival.name), text(self.rival.score)
            headline += (
                f" {name[:1].upper()}{name[1:]} scores higher ({reached}), within the noise."
            )
        if self.still_learns:
            details.append(f"More steps are likely to score higher: {advice}.")
        elif self.behind:
            details.append(f"To come closer to the rule: {advice}.")
        return headline, details

    def recommendation(self) -> str:
        """Which model to take, and why."""
        choice, text = self.choice, self.metric.text
        name = short_name(choice.scores.genotype.layers)
        score = f"{text(choice.scores.test.mean)} on test"
        saving = _saving(choice.best, choice.scores)
        if choice.noise is not None and saving is not None:
            ours, theirs = text(choice.scores.valid.mean), text(choice.best.valid.mean)
            noise = self.metric.gap(choice.noise).removesuffix(" points")
            return (
                f"Use {name}: it ties with the best on valid, {ours} against {theirs} with noise "
                f"{noise}, at {saving}."
            )
        if len(choice.ties) > 1:
            return f"Use {name} ({score}): the best on valid, and the cheapest that ties with it."
        return f"Use {name} ({score}): the best on valid, and no cheaper model ties with it."

    def remarks(self) -> list[str]:
        """How to export the model to take, and that a rule does as well, where one does."""
        listed = []
        if self.choice.name != FOUND:
            name = self.choice.name.removeprefix(HOMOGENEOUS)
            listed.append(f'`dartformer export --entrant="{name}"` exports it.')
        rival = self.rival
        if rival is None or self.behind or self.lead(rival) > self.noise(rival):
            return listed
        score = self.metric.text(rival.score)
        return [*listed, f"A simple rule does as well: {rule_title(rival.name)} ({score})."]


class Remedy(NamedTuple):
    """Why models are not better, as the rest of a sentence, and a flag that may help."""

    reason: str
    flag: str


def _rounded(value: float) -> float:
    """A number with one digit that counts."""
    return float(f"{value:.0e}")


def short_name(layers: Layers) -> str:
    """A genotype in a headline."""
    if len(set().union(*layers)) == 1:
        return f"{layers[0][0]} everywhere"
    return shortened(in_words(layers), LONGEST)
