"""The verbs on a checkpoint: the config that `new --from` prints, `run`, `derive` and `evaluate`."""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.text import Text

from dartformer import api
from dartformer import config as configs
from dartformer.attention import to_text
from dartformer.cli.output import print_json
from dartformer.cli.terminal import say
from dartformer.config import PlacementConfig
from dartformer.config.checkpoint import KV_BYTES, Checkpoint, PlacementSpace
from dartformer.cost.budget import Budget, parse
from dartformer.data.plain_text import is_plain_text
from dartformer.errors import InputError
from dartformer.machine.console import Console
from dartformer.machine.progress import duration
from dartformer.placement.records import PlacementBudgetAnswer, PlacementResults
from dartformer.placement.study import PlacementStudy, ends
from dartformer.placement.verdict import believed, cost, places_of, size, words_for
from dartformer.pretrained import described, sentence
from dartformer.pretrained.base import Described
from dartformer.pretrained.passages import TEXT, documents_in
from dartformer.pretrained.placement import Places, uniform
from dartformer.report.placement import read

KEPT = 1 / 4
"""Share of the layers whose caches are the budget that `new` writes."""

LONGEST = 8192
"""Tokens of the cache that the budget is of, or as many as the model takes."""

LENGTH = 256
"""Tokens of a sequence, or as many as the model takes."""

WINDOW, SINKS = 8, 8
"""The window is one in so many tokens of a sequence, and there is a sink for so many of it."""

FEWEST = 16
"""Tokens of a sequence that a window can be tested on."""

WINDOW_OF_ENCODER = 32
"""The window is one in so many tokens of a document."""

SCORED, TESTED = 16, 32
"""Documents that score the places and that test the choice, where there are as many: an encoder
reads one in much less time than a decoder."""

SHORTEST_OF_ENCODER = 64
"""Tokens of a document on which a window computes less than full attention."""


HEAD = """Which layers or KV groups of a checkpoint keep full attention.

Nothing is trained, unless tune.steps is above 0.

Command:  dartformer run --config={file} --workdir=runs/mine
Again:    dartformer derive --workdir=runs/mine --budget={budget}
Found:    {found}"""
"""The text at the beginning of the config that `new --from` prints."""


class Proposal(NamedTuple):
    """The config that `new --from` prints.

    Attributes:
      values: of its fields that differ from the defaults.
      sentences: about the checkpoint.
      budget: another one, half as large, for an example.
    """

    values: dict[str, object]
    sentences: list[str]
    budget: str


def trains(folder: str, data: str | None) -> bool:
    """Whether `new --from` writes a training: an encoder's, on texts that have a class or number."""
    if described(Path(folder).expanduser()).config.causal:
        return False
    # Plain text has no labels, so that it can only score layers.
    return not data or not is_plain_text(Path(data).expanduser())


def propose(folder: str, text: str, values: Mapping[str, object]) -> Proposal:
    """Fields for a checkpoint, whose budget is the cache of a quarter of its layers.

    `values` are the user's own fields. Raises `InputError` for whatever the run would refuse.
    """
    checkpoint = described(Path(folder).expanduser())
    # Fields that are edited first are in the file, even as they are by default.
    edited = {"checkpoint.cheap": Checkpoint.cheap, "space.granularity": PlacementSpace.granularity}
    fields = {**edited, **_sizes(checkpoint, text), **values}
    draft = _built(folder, text, {**fields, "checkpoint.keep": 1, "search.budget": {}})
    places = PlacementStudy(draft).places
    length = min(checkpoint.config.length, LONGEST)
    budgeted = any(name.startswith(("search.budget", "checkpoint.keep")) for name in values)
    kept = _quarter(places)
    if not budgeted and places.encodes:
        fields["checkpoint.keep"] = int(kept.sum())
    elif not budgeted:
        fields["search.budget"] = {"kv_bytes": places.bytes_of(kept, length), "length": length}
    study = PlacementStudy(_built(folder, text, fields))
    study.check()
    if places.encodes:
        return Proposal(fields, _sentences_of_encoder(study), _halfway(study))
    if study.limit.quantity != KV_BYTES:
        return Proposal(fields, _sentences(study, length), _halfway(study))
    half = size(study.limit.amount / 2).replace(" ", "")
    budget = f"kv_bytes={half},length={study.limit.length}"
    return Proposal(fields, _sentences(study, length), budget)


def _halfway(study: PlacementStudy) -> str:
    """A budget between both ends, for an example."""
    full, none = (study.limit.cost_of(kept, study.places) for kept in ends(study.places))
    middle = float(f"{(full + none) / 2:.3g}")
    budget = f"{study.limit.quantity}={middle:.3g},length={study.limit.length}"
    if study.limit.phase == "decode":
        budget += ",phase=decode"
    return budget


def _sizes(checkpoint: Described, text: str) -> dict[str, object]:
    """A length that the model takes, and a window that is small beside it."""
    length = min(checkpoint.config.length, LENGTH)
    if sentence.is_encoder(checkpoint):
        if length < SHORTEST_OF_ENCODER:
            raise InputError(
                f"{checkpoint.folder} takes {length} tokens, of which a window saves nothing."
            )
        # Both ends of a text are seen, so windows need no sinks.
        cheap = f"local(window={length // WINDOW_OF_ENCODER})"
        fields: dict[str, object] = {
            "checkpoint.length": length,
            "checkpoint.cheap": cheap,
            "space.granularity": "layer",
        }
        if len(documents_in(text)) >= SCORED + TESTED:
            fields |= {"checkpoint.sequences": SCORED, "checkpoint.held_out": TESTED}
        return fields
    if length == LENGTH:
        return {}  # the defaults
    if length < FEWEST:
        raise InputError(
            f"{checkpoint.folder} takes {length} tokens, of which no window can be tested."
        )
    window = length // WINDOW
    sinks = max(window // SINKS, 1)
    return {
        "checkpoint.length": length,
        "checkpoint.cheap": f"sink(window={window}, sinks={sinks})",
    }


def _quarter(places: Places) -> np.ndarray:
    """A quarter of the layers."""
    layers = places.described.config.layers
    return uniform(layers, max(round(KEPT * layers), 1))


def _built(folder: str, text: str, values: Mapping[str, object]) -> PlacementConfig:
    config = configs.checkpoint_defaults(folder, text)
    configs.override(config, values)
    return configs.build_placement(config)


def _sentences_of_encoder(study: PlacementStudy) -> list[str]:
    """What was found in an encoder."""
    checkpoint, places, config = study.described, study.places, study.described.config
    options, limit = study.config.checkpoint, study.limit
    full, none = (limit.cost_of(kept, places) for kept in ends(places))
    module = sentence.sentence_of(checkpoint)
    documents = study.kinds[TEXT]
    lengths = [*documents.calibration.lengths, *documents.held_out.lengths]
    return [
        f"{checkpoint.family}, {config.layers} layers of {config.heads} heads, {config.length:,} "
        f"tokens at most; embeddings are pooled by {module.pooling}",
        f"{len(lengths)} documents are read, cut after {options.length} tokens; the shortest has "
        f"{min(lengths)}",
        f"a text of {limit.length:,} tokens takes {cost(full, limit.quantity)} with full attention, "
        f"and {cost(none, limit.quantity)} with {to_text(places.cheap)} everywhere",
        f"the budget is {cost(limit.amount, limit.quantity)}, {limit.amount / full:.0%} of full "
        f"attention's",
    ]


def _sentences(study: PlacementStudy, length: int) -> list[str]:
    """What was found in a checkpoint."""
    checkpoint, places, config = study.described, study.places, study.described.config
    full, none = (places.bytes_of(kept, length) for kept in ends(places))
    limit = study.limit
    all_full, _ = (limit.cost_of(kept, places) for kept in ends(places))
    words = words_for(study.kind_names, limit.quantity)
    return [
        f"{checkpoint.family}, {config.layers} layers of {config.heads} heads in {places.groups} "
        f"KV groups, {config.length:,} tokens at most",
        f"the cache of {length:,} tokens takes {size(full)} with full attention, and {size(none)} "
        f"with {to_text(places.cheap)} everywhere ({config.dtype})",
        f"the budget is {cost(limit.amount, limit.quantity)} {words.of} {limit.length:,} tokens, "
        f"{limit.amount / all_full:.0%} of full attention's",
    ]


def run(arguments: argparse.Namespace, config: PlacementConfig) -> int:
    """All stages of a placement."""
    return _show(arguments, api.place(config, arguments.workdir))


def evaluate(arguments: argparse.Namespace, config: PlacementConfig) -> int:
    """The exact qualities again, of places that are scored."""
    return _show(arguments, api.evaluate_placement(config, arguments.workdir))


def _show(arguments: argparse.Namespace, results: PlacementResults) -> int:
    if arguments.json:
        print_json(results.to_dict())
    else:
        show(results, Path(arguments.workdir))
    return 0


def derive(arguments: argparse.Namespace) -> int:
    """Which places to keep within another budget, from the stored scores."""
    if arguments.plot:
        raise InputError(
            "--plot does not work with a checkpoint, whose front is on its page. Use `dartformer "
            "report`."
        )
    if not arguments.budget and (arguments.table or arguments.trust_table):
        raise InputError("--table and --trust-table go with --budget.")
    budget = None
    if arguments.budget:
        limits = parse(arguments.budget)
        if arguments.table:
            limits["table"] = arguments.table
        if arguments.trust_table:
            limits["trust_table"] = True
        budget = Budget.of(limits, "--budget")
    answer = api.derive_placement(arguments.workdir, budget)
    if arguments.json:
        print_json(answer.to_dict())
    else:
        show_budget(answer, Path(arguments.workdir))
    return 0


def export(arguments: argparse.Namespace, formats: Sequence[str]) -> int:
    """The checkpoint with the derived attentions, as a folder of Hugging Face."""
    for name in formats:
        if name != "hf":
            raise InputError(
                f"--format={name} does not work with a checkpoint. Use --format=hf, which is the "
                f"default there."
            )
    saved = api.export_placement(arguments.workdir)
    if arguments.json:
        print_json({"folder": str(saved.folder), "model_type": saved.model_type})
        return 0
    console = Console()
    say(console, f"wrote {saved.folder} (model_type {saved.model_type})")
    if saved.reason:
        say(console, saved.reason)
    return 0


# The terminal.


def grid(kept: np.ndarray) -> Text:
    """Places `[L, C]` as a picture: a column for each layer, a row for each KV group."""
    layers, columns = kept.shape
    drawn = Text(f"{'layer':<9}")
    for layer in range(layers):
        # The tens of the numbers would not fit.
        mark = "."
        if layer % 5 == 0:
            mark = str(layer % 10)
        drawn.append(mark, "bright_black")
    for column in range(columns):
        name = "kept"
        if columns > 1:
            name = f"group {column}"
        drawn.append(f"\n{name:<9}")
        for layer in range(layers):
            if kept[layer, column]:
                drawn.append("█", "blue")
            else:
                drawn.append("·", "bright_black")
    return drawn


def show(results: PlacementResults, workdir: Path) -> None:
    """The answer in some ten lines."""
    console = Console()
    console.print(grid(results.answer.kept))
    for line in results.verdict:
        say(console, line)
    say(console, believed(results))
    for line in results.warnings:
        say(console, f"warning: {line}")
    spent = sum(results.seconds.values())
    processor = sum(results.processor_seconds.values())
    say(
        console,
        f"{duration(spent)} ({processor:.0f} processor seconds); the page is "
        f"{workdir / 'report.html'}, the genotype {workdir / 'genotype.json'}",
    )


def show_report(workdir: str | Path) -> None:
    """The answer of a workdir, which need not be finished."""
    results = read(workdir).results
    if results is None:
        say(Console(), "The placements are not evaluated yet.")
    else:
        show(results, Path(workdir))


def show_budget(answer: PlacementBudgetAnswer, workdir: Path) -> None:
    """Which places are kept within a budget."""
    console = Console()
    console.print(grid(answer.kept))
    words = words_for(answer.share, answer.quantity)
    amount, full = float(answer.kv_bytes), float(answer.full_bytes)
    if answer.cost is not None and answer.full_cost is not None:
        amount, full = answer.cost, answer.full_cost
    say(
        console,
        f"Keep full attention in {int(answer.kept.sum())} of {answer.kept.size} "
        f"{places_of(answer.granularity)}: {cost(amount, answer.quantity)} {words.of} "
        f"{answer.length:,} tokens, {amount / full:.0%} of {cost(full, answer.quantity)}.",
    )
    parts = []
    for kind, share in answer.share.items():
        parts.append(f"{share:.0%} on {words.kinds[kind]}")
    say(
        console,
        f"By the scores that saves, of what {answer.cheap} everywhere loses, {' and '.join(parts)}.",
    )
    say(console, f"written to {workdir / 'budget.json'} and {workdir / 'genotype.json'}")
