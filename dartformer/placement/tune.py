"""Tuning: the answer and its nearest rivals, trained to predict what the checkpoint predicts."""

import dataclasses
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from dartformer.config.checkpoint import Tune
from dartformer.errors import InputError
from dartformer.machine.folders import require_space
from dartformer.machine.identity import fingerprint, require_same
from dartformer.machine.progress import Bar, say
from dartformer.machine.workdir import write_text
from dartformer.placement.choose import Choice, derived_choices
from dartformer.placement.records import (
    AlignedLayer,
    Entrant,
    Measured,
    Rung,
    ScoreFile,
    TunedQuality,
    TuneFile,
)
from dartformer.placement.study import PlacementFolder, PlacementStudy, PlacementWorkdir
from dartformer.placement.verdict import plural
from dartformer.pretrained import Pretrained, load_pretrained, save_pretrained
from dartformer.pretrained.align import Alignment, align, untrained
from dartformer.pretrained.load import leaves_of, nested
from dartformer.pretrained.passages import calibration_part
from dartformer.pretrained.tune import Tuner, TuneState, measure, training_sequences
from dartformer.space.genotype import Genotype
from dartformer.training.checkpoint import Checkpoints, named_leaves

MOST_ALIGNED = 32
"""Sequences that layers are aligned on: what the checkpoint reads and gives is kept of each."""

SAVED = 3
"""Checkpoints of a training on disk at most: two that are kept, and one that is being written."""

PARTS = 3
"""After each of so many parts of the steps the better half of the entrants goes on."""


def tune(
    study: PlacementStudy, folder: PlacementWorkdir, scores: ScoreFile, kept: np.ndarray
) -> TuneFile | None:
    """Tune the answer, or the entrants of a race, into `tuned/`; None where nothing is tuned.

    `kept` are the places `[L, C]` of the answer.
    """
    options = study.config.tune
    if not options.steps:
        return None
    choices = list(entrants(study, scores, kept))
    identity = _identity(study, scores, choices)
    file = folder.read(TuneFile, folder.tuning)
    if file is not None:
        require_same(file.identity, identity, str(folder.tuning), "Choose another workdir.")
        if file.winner and folder.tuned.is_dir():
            _write_genotype(study, folder, file)
            return file
    else:
        file = TuneFile(identity, tuple(map(_begun, choices)))
        folder.write(folder.tuning, file)
    trainer = Trainer(study, folder.training)
    running: Sequence[Entrant] = file.entrants
    for rung in rungs(options.steps, len(running)):
        reached = [trainer.advanced(entrant, rung, len(file.entrants)) for entrant in running]
        file = _with(file, reached)
        folder.write(folder.tuning, file)
        running = better_half(reached, rung)
    winner, model = running[0], trainer.model(running[0])
    save_pretrained(dataclasses.replace(model, note=_note(options)), folder.tuned)
    file = dataclasses.replace(file, winner=winner.name)
    folder.write(folder.tuning, file)
    # The states of the trainings are several times as large as the model.
    shutil.rmtree(folder.training)
    _write_genotype(study, folder, file)
    return file


def _begun(choice: Choice) -> Entrant:
    kept = choice.kept.astype(int)
    return Entrant(choice.name, choice.title, kept, 0, (), np.zeros(0), (), 0.0, 0.0)


def _with(file: TuneFile, reached: Sequence[Entrant]) -> TuneFile:
    """The file with these entrants in place of those of the same names."""
    by_name = {entrant.name: entrant for entrant in (*file.entrants, *reached)}
    return dataclasses.replace(file, entrants=tuple(by_name.values()))


def _write_genotype(study: PlacementStudy, folder: PlacementWorkdir, file: TuneFile) -> None:
    """The genotype of the tuned placement, which need not be that of the scores."""
    assert file.best is not None
    write_text(folder.genotype, study.tuned_genotype(file.best.kept).to_json())


def better_half(entrants: Sequence[Entrant], step: int) -> Sequence[Entrant]:
    """The entrants that go on after a step, the best one first."""
    if len(entrants) == 1:
        return entrants
    # By that rung and not the last one: a race that goes on may have entrants that are further.
    ranked = sorted(entrants, key=lambda entrant: entrant.at(step).total)
    return ranked[: math.ceil(len(ranked) / 2)]


def entrants(study: PlacementStudy, scores: ScoreFile, kept: np.ndarray) -> Iterator[Choice]:
    """The placements that are tuned: the answer, and what else the scores choose."""
    different: dict[bytes, Choice] = {}
    for choice in derived_choices(study, scores, kept):
        mixture = study.places.mixture(choice.kept)
        different.setdefault(mixture.tobytes(), choice)
    yield from list(different.values())[: study.config.tune.race]


def rungs(steps: int, count: int) -> list[int]:
    """The steps at which the entrants are compared; a single one has no rival."""
    if count == 1:
        return [steps]
    return sorted({math.ceil(steps * part / PARTS) for part in range(1, PARTS + 1)})


def _identity(
    study: PlacementStudy, scores: ScoreFile, choices: Sequence[Choice]
) -> dict[str, str]:
    """Fingerprints of what a tuning belongs to."""
    kept = [choice.kept.astype(int).tolist() for choice in choices]
    settings = dataclasses.asdict(study.config.tune)
    # It changes no weight.
    del settings["save_every"]
    return {
        **scores.identity,
        "genotype": fingerprint(kept),
        "training": fingerprint([settings, study.config.checkpoint.held_out]),
    }


class Progress(NamedTuple):
    """What stands beside the state of a training.

    Attributes:
      losses: of each step so far.
      seconds, processor_seconds: of the training so far.
    """

    losses: list[float]
    seconds: float
    processor_seconds: float


@dataclasses.dataclass(frozen=True)
class Trainer:
    """The training of the entrants, each in a folder of its own, from its newest checkpoint on.

    Attributes:
      study: of the config.
      folder: of all their checkpoints.
    """

    study: PlacementStudy
    folder: Path

    @property
    def options(self) -> Tune:
        """How they are tuned."""
        return self.study.config.tune

    @cached_property
    def tokens(self) -> np.ndarray:
        """`[S, N]`: the text before the first held-out sequence."""
        options = self.study.config.checkpoint
        text = calibration_part(self.study.tokens, options.sequences, options.held_out)
        return training_sequences(text, options.length)

    def advanced(self, entrant: Entrant, until: int, entrants: int) -> Entrant:
        """An entrant after so many steps, compared with its rivals where it has any."""
        if entrant.rungs and entrant.rungs[-1].step >= until:
            return entrant
        student, layers = self.aligned(entrant)
        tuner = Tuner(self.study.model, student, self.tokens, self.options)
        with Checkpoints(self.folder / entrant.name / "steps") as saved:
            state, progress = self.continued(entrant, tuner, saved, until)
        entrant = dataclasses.replace(
            entrant,
            parameters=state.trained.size,
            layers=layers,
            losses=np.array(progress.losses),
            seconds=progress.seconds,
            processor_seconds=progress.processor_seconds,
        )
        if entrants == 1:
            return entrant
        kl = {}
        for kind, split in self.study.kinds.items():
            quality = measure(self.study.model, tuner.model(state), split.calibration)
            kl[kind] = float(quality.kl.mean())
        return dataclasses.replace(entrant, rungs=(*entrant.rungs, Rung(until, kl)))

    def continued(
        self, entrant: Entrant, tuner: Tuner, saved: Checkpoints, until: int
    ) -> tuple[TuneState, Progress]:
        """The state of a training after so many steps."""
        state, done, progress = tuner.begin(), 0, Progress([], 0.0, 0.0)
        restored = saved.latest(state)
        if restored is not None:
            state, done = restored.state, restored.step
            progress = Progress(**restored.extra)
        else:
            size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            require_space(self.folder, SAVED * size)
        with Bar(f"tune {entrant.title}", until, done) as bar:
            for step in range(done, until):
                wall, processor = time.monotonic(), time.process_time()
                state, loss = tuner.advance(state, step)
                if not math.isfinite(loss):
                    raise InputError(
                        f"tuning {entrant.title} diverged in step {step}. Choose another workdir, "
                        f"and lower tune.rate, which is {self.options.rate:g}."
                    )
                progress = Progress(
                    [*progress.losses, loss],
                    progress.seconds + time.monotonic() - wall,
                    progress.processor_seconds + time.process_time() - processor,
                )
                if (step + 1) % self.options.save_every == 0 or step + 1 == until:
                    saved.save(step + 1, state, progress._asdict())
                bar.update(step + 1, {"KL": loss})
        return state, progress

    def model(self, entrant: Entrant) -> Pretrained:
        """An entrant with the weights of its newest checkpoint."""
        student, _ = self.aligned(entrant)
        tuner = Tuner(self.study.model, student, self.tokens, self.options)
        with Checkpoints(self.folder / entrant.name / "steps") as saved:
            restored = saved.latest(tuner.begin())
        if restored is None:
            raise InputError(
                f"{self.folder} lost the checkpoints of {entrant.title}. Choose another workdir."
            )
        return tuner.model(restored.state)

    def aligned(self, entrant: Entrant) -> tuple[Pretrained, tuple[AlignedLayer, ...]]:
        """The checkpoint with the attentions of an entrant, aligned layer by layer."""
        teacher, steps = self.study.model, self.options.align_steps
        genotype = self.study.tuned_genotype(entrant.kept)
        hybrid = untrained(teacher, genotype, self.options.seed)
        if not steps:
            return hybrid, ()
        with Checkpoints(self.folder / entrant.name / "aligned") as saved:
            restored = saved.latest(_unaligned(hybrid, teacher.genotype))
            if restored is not None:
                # Of the layers that have other attentions; the rest is as it was.
                arrays = {**dict(named_leaves(teacher.weights)), **restored.state}
                weights = nested(leaves_of(teacher.config, genotype), arrays)
                layers = [AlignedLayer.from_dict(row) for row in restored.extra["layers"]]
                return dataclasses.replace(hybrid, weights=weights), tuple(layers)
            say(f"align {entrant.title}: {steps} steps for each layer")
            count = min(MOST_ALIGNED, len(self.tokens))
            chosen = np.linspace(0, len(self.tokens) - 1, count).astype(int)
            alignment = Alignment(steps, seed=self.options.seed)
            aligned = align(teacher, genotype, self.tokens[chosen], alignment)
            layers = [AlignedLayer(fit.layer, fit.before, fit.after) for fit in aligned.fits]
            state = {}
            for name, leaf in named_leaves(aligned.model.weights):
                if name.startswith(_changed(hybrid, teacher.genotype)):
                    state[name] = leaf
            saved.save(1, state, {"layers": [layer.to_dict() for layer in layers]})
        return aligned.model, tuple(layers)


def _changed(hybrid: Pretrained, before: Genotype) -> tuple[str, ...]:
    """What the names of weights begin with in the layers that have other attentions."""
    prefixes = []
    for layer, row in enumerate(hybrid.genotype.layers):
        if row != before.layers[layer]:
            prefixes.append(f"blocks/{layer}/")
    return tuple(prefixes)


def _unaligned(hybrid: Pretrained, before: Genotype) -> dict[str, Array]:
    """Arrays like those that `Trainer.aligned` saves."""
    arrays = {}
    for name, leaf in leaves_of(hybrid.config, hybrid.genotype).items():
        if name.startswith(_changed(hybrid, before)):
            arrays[name] = jnp.zeros(leaf.shape, leaf.dtype)
    return arrays


def tuned_entrant(study: PlacementStudy, folder: PlacementFolder) -> Entrant | None:
    """The placement in `tuned/`; None where nothing is tuned, or not to the end."""
    file = folder.read(TuneFile, folder.tuning)
    if not study.config.tune.steps or file is None or not folder.tuned.is_dir():
        return None
    return file.best


def keep(study: PlacementStudy, folder: PlacementWorkdir) -> None:
    """Make the genotype that of `tuned/` again, where the winner is not what the scores choose."""
    file = folder.read(TuneFile, folder.tuning)
    if file is not None and tuned_entrant(study, folder) is not None:
        _write_genotype(study, folder, file)


def tuned_model(study: PlacementStudy, folder: PlacementFolder) -> Pretrained:
    """The checkpoint with the attentions and the weights in `tuned/`."""
    model = load_pretrained(folder.tuned)
    # What is exported is made from the checkpoint: its tokenizer, its card and its data types.
    source, note = study.described, _note(study.config.tune)
    return dataclasses.replace(model, folder=source.folder, family=source.family, note=note)


def _note(options: Tune) -> str:
    """What was done to the weights, for the card of the model."""
    weights = "All weights were tuned"
    if options.adapters:
        weights = f"Adapters of rank {options.adapters} were tuned and merged"
    return f"{weights} on its predictions for {plural(options.steps, 'step')}."


def evaluate_tuned(
    study: PlacementStudy, folder: PlacementFolder, stored: TunedQuality | None
) -> TunedQuality | None:
    """How the tuned placement predicts the held-out sequences; None where nothing is tuned."""
    file = folder.read(TuneFile, folder.tuning)
    if file is None or tuned_entrant(study, folder) is None:
        return None
    if stored is not None and stored.identity == file.identity:
        return stored
    wall, processor = time.monotonic(), time.process_time()
    model, quality = tuned_model(study, folder), {}
    for kind, split in study.kinds.items():
        say(f"evaluate the tuned placement, {kind}")
        measured = measure(study.model, model, split.held_out)
        quality[kind] = Measured(measured.nll[0], measured.kl[0])
    spent = time.monotonic() - wall, time.process_time() - processor
    return TunedQuality(file.identity, quality, *spent)
