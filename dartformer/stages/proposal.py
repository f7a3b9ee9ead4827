"""What a user's data are searched with: candidates, and steps that fit the time."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from dartformer import attention
from dartformer import config as configs
from dartformer.attention import to_text
from dartformer.config import Config
from dartformer.config.sections import Space
from dartformer.errors import InputError, unknown
from dartformer.machine.progress import say
from dartformer.pretrained import described
from dartformer.pretrained.start import options_of
from dartformer.stages.pace import Pace, measure, seconds_of, work
from dartformer.stages.study import Study
from dartformer.tasks.guess import guess
from dartformer.tasks.guess_language import with_checkpoint
from dartformer.tasks.guess_tokens import of_whole_texts
from dartformer.tasks.guesses import Columns, Guess
from dartformer.training.scoring import has_entities

MINUTES = 8.0
"""What a run may take by default."""

MOST_RACED = 48
"""Genotypes up to which all of a space race: a search and its race cost as much there, and are no
better (docs/strategies.md)."""

EXAMPLES = 150_000
"""Examples that a training sees, over all of its epochs."""

WINDOWS = 20_000
"""Windows of a language that it sees: each token of one is an example."""

EPOCHS = (5, 60)
"""Fewest and most epochs that are proposed."""

FEWEST_STEPS = 600
"""Steps of a training, however few the rows are."""

BATCH = 32
"""Most examples in a training step."""

BATCH_OF_CHECKPOINT = 8
"""The same for the tokens of a checkpoint: with 50,000 of them nearly all of a step is the logits."""

FEWEST = 50
"""Steps of a training, however little time there is."""

ENOUGH = 0.6
"""The share of those steps from which on a larger space is worth its time."""

EVALUATIONS = 15
"""On valid, in a training."""

EVALUATIONS_OF_TUNING = 5
"""The same for a checkpoint, whose forward pass over valid takes long beside so few steps."""

PATIENCE = 8
"""Evaluations without a better one that end a training. With 5 of 15, one of three trainings on
13,381 sentences in 28 languages ended at 60% of its steps and 88%: the others gained 2 points when
the learning rate fell."""

SHORTEST = 100
"""Tokens of a text that are read at least, where it has more."""

LONG = 1024
"""Tokens above which attention over all pairs is no longer proposed."""

SELECTIONS = ("cheap", "long", "all")
"""Names for several candidates."""

SMALL: Mapping[str, object] = {
    "model.layers": 2,
    "model.heads": 2,
    "model.head_dim": 16,
    "model.model_dim": 32,
    "model.mlp_dim": 64,
    "model.dropout": 0.2,
}
"""A model for some thousand rows. Wider ones learn them by heart."""

LANGUAGE: Mapping[str, object] = {
    "model.layers": 2,
    "model.heads": 4,
    "model.head_dim": 16,
    "model.model_dim": 64,
    "model.mlp_dim": 128,
}
"""A model of a language, whose every token is an example."""

DECAYS = ((30_000, 0.3), (100_000, 0.1))
"""Weight decay by the rows up to which it is proposed. With 10,700 sentences in 28 languages 0.3
has 92% right, 0.1 90% and 0.001 85%, one layer of `linear` or `uniform`, 2,000 steps."""

LARGE_DECAY = 0.01
"""Weight decay for more rows, and for languages."""


TUNED: Mapping[str, object] = {
    "model.dropout": 0.1,
    "data.eval_batch_size": 64,
    "retrain.patience": 0,
}
"""How a checkpoint's model goes on."""

TUNING_RATE = 1e-4
"""Of a small encoder. 60 steps of 32 of MiniLM have 98.5% right on valid of 5,600 short messages."""

TUNING_EPOCHS = 3
"""Devlin et al. 2019, arXiv:1810.04805, take 2 to 4."""

FEWEST_TUNING = 100
"""Steps of such a training, however few the rows are."""

MOSTLY_ONE = {"labelling": 0.8, "classification": 0.95}
"""The share of the most frequent class above which accuracy no longer tells models apart."""


class Wishes(NamedTuple):
    """What the user asks of a run.

    Attributes:
      minutes: that it may take; None: any, and nothing is timed.
      steps: of a training; None: as many as the minutes pay for.
      candidates: one of `SELECTIONS`, attentions with commas between them, or empty to choose.
      start: the folder of an encoder, whose weights every training begins with; empty for none.
    """

    minutes: float | None = None
    steps: int | None = None
    candidates: str = ""
    start: str = ""


AS_IT_FITS = Wishes()
"""The config follows from the data alone."""


class Proposal(NamedTuple):
    """A config that fits the data.

    Attributes:
      strategy: `search.strategy.name`.
      settings: dotted fields.
      sentences: what was chosen, and why.
    """

    strategy: str
    settings: dict[str, object]
    sentences: list[str]


class Draft(NamedTuple):
    """What a user's data seem to hold, and what is proposed for them.

    Attributes:
      contents: of the data.
      strategy: `search.strategy.name`; "" for the default one.
      settings: dotted fields, with the user's values among them.
    """

    contents: Guess
    strategy: str
    settings: dict[str, object]

    @property
    def granularity(self) -> str:
        """Of the choice, which decides about defaults."""
        return str(self.settings.get("space.granularity", Space.granularity))


class Level(NamedTuple):
    """A space, the larger first.

    Attributes:
      granularity: of the choice.
      layers: of the model.
      part: of the tokens of a text that are read.
    """

    granularity: str
    layers: int
    part: int = 1


LEVELS: tuple[Level, ...] = (
    Level("layer", 2),
    Level("model", 2),
    Level("model", 1),
    Level("model", 1, part=2),
    Level("model", 1, part=4),
)

GROUPS = {"kv_group": "group of heads"}

PARTS = {2: ", on half of the tokens", 4: ", on a quarter of the tokens"}


def drafted(
    file: str, columns: Columns, values: Mapping[str, object], wishes: Wishes = AS_IT_FITS
) -> Draft:
    """Guess what a file or folder holds, and propose a config for it.

    Args:
      file: the data.
      columns: what the user names of them.
      values: dotted fields that the user sets.
      wishes: what else the user says.

    Raises `InputError` where no guess gives a config that runs."""
    values = dict(values)
    folder = None
    if values.get("data.dir"):
        folder = str(values["data.dir"])
    texts, label, kind, group, split = columns
    contents = guess(file, texts, label, folder, kind, group, split, wishes.start)
    contents = with_checkpoint(contents, values, folder)
    settings: dict[str, object] = {}
    for option, value in contents.options.items():
        settings[f"task.{option}"] = value
    proposal = propose(contents, settings, values, wishes)
    contents.sentences.extend(proposal.sentences)
    # It decides about the defaults of other fields, so it cannot be set after them.
    values.pop("search.strategy.name", None)
    return Draft(contents, proposal.strategy, {**proposal.settings, **values})


def propose(
    contents: Guess, task: Mapping[str, object], values: Mapping[str, object], wishes: Wishes
) -> Proposal:
    """A config for the data, but for what the user sets.

    Args:
      contents: what the data seem to hold.
      task: dotted fields of the task.
      values: dotted fields that the user sets.
      wishes: what else the user says.

    Raises `InputError` for wishes that cannot be.
    """
    if wishes.minutes is not None and not 0 < wishes.minutes < math.inf:
        raise InputError(f"--minutes must be a number above 0, got {wishes.minutes:g}.")
    if wishes.steps is not None and wishes.steps < 1:
        raise InputError(f"--steps must be at least 1, got {wishes.steps}.")
    # At least four batches of a small file.
    most = BATCH
    if contents.task == "language" and contents.options.get("tokens") == "checkpoint":
        most = BATCH_OF_CHECKPOINT
    batch = max(1, min(most, contents.train // 4, contents.half))
    recipe = _recipe(contents)
    if wishes.start:
        recipe = _tuning(contents, wishes.start)
    settings: dict[str, object] = {**task, "data.batch_size": batch}
    if contents.options.get("kind", contents.task) in ("labelling", "language"):
        # A label for each token, and no summary of the text.
        settings["model.pooling"] = "none"
    settings |= {
        "space.granularity": "layer",
        "retrain.seeds": (0, 1, 2),
        "retrain.patience": PATIENCE,
        "baselines.homogeneous": True,
        "baselines.random": True,
        **recipe,
    }
    sentences = []
    metric, reason = _metric(contents)
    if metric and "metric" not in values:
        settings["metric"] = metric
        # At first all answers are one class, and patience would take that for the end.
        settings["retrain.patience"] = 0
        sentences.append(f"{metric} decides (config.metric): {reason}")
    drafts = _Drafts(contents, settings, values)
    if "space.candidates" not in values:
        names, sentence = _candidates(drafts, wishes.candidates)
        settings["space.candidates"] = names
        sentences.append(sentence)
    draft = _within(drafts, wishes)
    settings |= draft.settings
    return Proposal(draft.strategy, settings, [*sentences, *draft.sentences])


def _metric(contents: Guess) -> tuple[str, str]:
    """The metric that decides where accuracy would not do, and why; "" for the task's own."""
    kind, names = contents.options.get("kind", ""), contents.options.get("label_names", ())
    if kind == "labelling" and has_entities(names):
        return "entity_f1", "the labels mark spans (B-, I-, O), and a span counts as a whole"
    if contents.majority > MOSTLY_ONE.get(kind, 1):
        share = f"{100 * contents.majority:.0f}%"
        return "macro_f1", f"accuracy says little where {share} have the same label"
    return "", ""


def _recipe(contents: Guess) -> dict[str, object]:
    """The model, and how it is trained, by the size of the data."""
    model, rate, decay = SMALL, 0.01, LARGE_DECAY
    if contents.options.get("kind", contents.task) == "language":
        model, rate = LANGUAGE, 0.005
    else:
        for most, value in reversed(DECAYS):
            if contents.train <= most:
                decay = value
    recipe = dict(model)
    for optimizer in ("retrain.optimizer", "search.weights"):
        recipe[f"{optimizer}.learning_rate"] = rate
        recipe[f"{optimizer}.weight_decay"] = decay
    return recipe


def _tuning(contents: Guess, folder: str) -> dict[str, object]:
    """The model of an encoder's checkpoint, and how it is trained on."""
    if contents.options.get("tokens") != "checkpoint":
        # Labels of words, plain text, sequences of numbers or pictures.
        raise of_whole_texts(folder, contents.options.get("kind", contents.task))
    recipe: dict[str, object] = {"start": folder, **TUNED}
    config = described(folder).config
    for name, value in options_of(config).items():
        recipe[f"model.{name}"] = value
    # The table of embeddings may have more rows than the tokenizer has tokens.
    recipe["task.vocabulary_size"] = config.vocabulary
    for optimizer in ("retrain.optimizer", "search.weights"):
        recipe[f"{optimizer}.learning_rate"] = TUNING_RATE
        recipe[f"{optimizer}.weight_decay"] = LARGE_DECAY
    return recipe


class _Drafts:
    """Configs of settings, with the user's values on top."""

    def __init__(self, contents: Guess, settings: dict[str, object], values: Mapping[str, object]):
        self.contents, self.settings, self.values = contents, settings, values

    @property
    def batch(self) -> int:
        """Examples in a training step."""
        return int(str(self.values.get("data.batch_size", self.settings["data.batch_size"])))

    def is_named(self, field: str) -> bool:
        """Whether the user sets a field."""
        return field in self.values

    def space(self, level: Level) -> dict[str, object]:
        """The settings at a level."""
        settings = {
            **self.settings,
            "space.granularity": level.granularity,
            "model.layers": level.layers,
        }
        if level.part > 1:
            settings["task.length"] = self.length // level.part
        return settings

    @property
    def length(self) -> int:
        """Tokens of a text that can be read in part; 0 where that makes no sense."""
        if self.contents.options.get("crop") != "ends" or self.is_named("task.length"):
            return 0
        return int(self.contents.options["length"])

    def strategy(self, settings: Mapping[str, object]) -> str:
        """The strategy for a space: its models race where they are few; "" for a search."""
        named = str(self.values.get("search.strategy.name", ""))
        if named:
            return named
        config = self.config(settings, "")
        granularity = config.space.granularity
        if granularity == "model" or config.search_space.size <= MOST_RACED:
            return "race"
        return ""

    def config(self, settings: Mapping[str, object], strategy: str) -> Config:
        """The config of these settings; raises `InputError` where it does not work."""
        values = {**settings, **self.values}
        granularity = str(values.get("space.granularity", "layer"))
        config = configs.defaults(self.contents.task, strategy, granularity=granularity)
        values.pop("search.strategy.name", None)
        configs.override(config, values)
        return configs.build(config)


# The candidates.


def _candidates(drafts: _Drafts, selection: str) -> tuple[tuple[str, ...], str]:
    """The candidates, and why these."""
    # With two that always work, to learn of the length and the direction.
    plain = {**drafts.settings, "space.candidates": ("conv", "local"), "space.granularity": "model"}
    shape = drafts.config(plain, "race").transformer
    window = _window(shape.tokens)
    if selection == "cheap":
        names = ["conv", f"local(window={window})", "linear", "retention"]
        reason = "of linear time and memory"
    elif selection == "long":
        names = ["conv", f"local(window={window})", "linear", "gated_delta", "ssd", "sink"]
        reason = "of linear time, which reach far"
    elif selection == "all":
        names = _working(drafts, plain)
        reason = "all that work here"
    elif selection:
        names = _split(selection)
        reason = "as you named them"
    elif shape.causal:
        names = ["full", f"local(window={window})", "gated_delta", "conv"]
        reason = f"for reading {shape.tokens} tokens from left to right"
    else:
        names = ["full", f"local(window={window})", "linear", "conv"]
        reason = f"for {shape.tokens} tokens that are read in both directions"
        if drafts.settings.get("start"):
            names = names[:2]
            reason = "what the checkpoint has, and a window, which its weights work with"
    if not selection and shape.tokens > LONG:
        names[0] = f"longformer(window={window}, globals=1)"
        if shape.causal:
            names[0] = f"sink(window={window}, sinks=4)"
        reason += "; full attention over so many is slow"
    others = len(set(attention.names()) - {name.partition("(")[0] for name in names})
    sentence = (
        f"candidates {', '.join(names)}: {reason} ({others} other attentions exist: "
        f"--candidates=cheap, long, all, or names; see `dartformer list attentions`)"
    )
    return tuple(names), sentence


def _window(tokens: int) -> int:
    """A window that is small beside the length, but not tiny: a power of two."""
    return 2 ** max(2, min(5, round(math.log2(max(1, tokens) / 16))))


def _split(selection: str) -> list[str]:
    """Attentions from a text with commas between them, and commas within parentheses."""
    names, depth, name = [], 0, ""
    for character in selection:
        depth += (character == "(") - (character == ")")
        if character == "," and depth == 0:
            names.append(name.strip())
            name = ""
        else:
            name += character
    names.append(name.strip())
    if len(names) < 2:
        raise unknown("--candidates", selection, SELECTIONS)
    # Each is read here, so that the message names it.
    return [to_text(attention.parse(name)) for name in names]


def _working(drafts: _Drafts, plain: Mapping[str, object]) -> list[str]:
    """The attentions that work with this task and length, with their default options."""
    names = []
    for name in attention.names():
        # Its members are candidates themselves.
        if name == "parallel":
            continue
        partner = "conv"
        if name == partner:
            partner = "local"
        try:
            drafts.config({**plain, "space.candidates": (name, partner)}, "race")
        except InputError:
            continue
        names.append(name)
    return names


# The budget.


def _within(drafts: _Drafts, wishes: Wishes) -> Proposal:
    """The largest space whose trainings are long enough in the time, and its steps."""
    rows, batch = drafts.contents.train, drafts.batch
    wanted = wishes.steps or _wanted_steps(drafts.contents, batch)
    levels = LEVELS
    if wishes.start:
        if not wishes.steps:
            epoch = rows / batch
            wanted = max(FEWEST_TUNING, round(TUNING_EPOCHS * epoch))
        levels = _levels_of(described(wishes.start).config.layers)
    sentences: list[str] = []
    paces: dict[tuple[int, int], Pace] = {}
    for level in levels:
        # Fewer tokens say less, and are not much quicker.
        if level.part > 1 and drafts.length < SHORTEST * level.part:
            continue
        space = drafts.space(level)
        strategy = drafts.strategy(space)
        if not strategy and not drafts.is_named("space.granularity"):
            # Too many models to race: one attention everywhere has fewer.
            continue
        evaluations = EVALUATIONS
        if wishes.start:
            evaluations = EVALUATIONS_OF_TUNING
        of_steps = _of_steps(wanted, strategy, evaluations)
        settings = {**space, **_of_strategy(strategy, level), **of_steps}
        study = Study(drafts.config(settings, strategy))
        title = _title(study.config) + PARTS.get(level.part, "")
        if wishes.minutes is None:
            # Nothing is timed.
            sentence = f"{title}: {_described(study)}, {_amount(wanted, rows, batch)}"
            return Proposal(strategy, settings, [sentence])
        size = level.layers, level.part
        if size not in paces:
            say("timing two models on this machine")
            paces[size] = measure(study)
        seconds = seconds_of(study, paces[size], rows // 8)
        steps = wanted
        if not wishes.steps:
            steps = _steps_within(seconds, 60 * wishes.minutes, wanted)
        settings |= _of_steps(steps, strategy, evaluations)
        sentence = f"{title}: {_described(study)}, {_amount(steps, rows, batch)}"
        minutes = math.ceil(seconds(steps) / 60)
        sentence += f", about {minutes} minutes on this machine (--minutes=N plans for N)"
        proposal = Proposal(strategy, settings, [*sentences, sentence])
        if wishes.steps or steps >= ENOUGH * wanted:
            return proposal
        # Of the largest space alone: the others would say much the same.
        if not sentences:
            sentences.append(
                f"{title} would leave a training {steps:,} of the {wanted:,} steps that it "
                f"needs; --minutes={math.ceil(seconds(wanted) / 60)} would pay for all of them"
            )
    return proposal


def _levels_of(layers: int) -> tuple[Level, ...]:
    """One attention everywhere in all layers of a checkpoint, on the whole text or a part of it."""
    return tuple(Level("model", layers, part) for part in (1, *PARTS))


def _title(config: Config) -> str:
    """What is chosen in a model, which the user may have set."""
    granularity, count = config.space.granularity, config.model.layers
    layers = f"{count} layers"
    if count == 1:
        layers = "one layer"
    elif count == 2:
        layers = "two layers"
    if granularity == "model":
        return f"one attention everywhere, in {layers}"
    if granularity == "layer" and count == 1:
        return "a choice for one layer"
    if granularity == "layer":
        return f"a choice for each of {layers}"
    return f"a choice for each {GROUPS.get(granularity, granularity)} of {layers}"


def _wanted_steps(contents: Guess, batch: int) -> int:
    """Steps in which a training sees the rows often enough."""
    rows, examples = max(1, contents.train), EXAMPLES
    if contents.options.get("kind", contents.task) == "language":
        examples = WINDOWS
    fewest, most = EPOCHS
    epochs = min(most, max(fewest, examples / rows))
    return max(FEWEST_STEPS, round(epochs * rows / batch))


def _steps_within(seconds: Callable[[int], float], most: float, wanted: int) -> int:
    """The most steps, up to those wanted, of a run that takes no more seconds than `most`."""
    # Seconds are linear in the steps.
    fixed = seconds(0)
    each = seconds(1) - fixed
    steps = int((most - fixed) / each)
    return max(FEWEST, min(wanted, steps))


def _of_strategy(strategy: str, level: Level) -> dict[str, object]:
    """All of a small space races."""
    if strategy != "race" or level.granularity == "model":
        return {}
    return {"search.strategy.random": MOST_RACED}


def _of_steps(steps: int, strategy: str, evaluations: int) -> dict[str, object]:
    """Steps of a search and of a training, and how often it is evaluated."""
    every = max(10, steps // evaluations)
    settings: dict[str, object] = {
        "retrain.steps": steps,
        "log.eval_every": every,
        "log.checkpoint_every": every,
    }
    if strategy != "race":
        settings["search.steps"] = steps
    return settings


def _described(study: Study) -> str:
    """What a run trains, in words."""
    amount, seeds = work(study), len(study.config.retrain.seeds)
    race = f"{amount.entrants} models race, and the best train with {seeds} seeds"
    if amount.search:
        return f"a search, then {race}"
    return race


def _amount(steps: int, rows: int, batch: int) -> str:
    """Steps of a training in words."""
    return f"{steps:,} steps a training ({steps * batch / max(1, rows):.1f} epochs)"
