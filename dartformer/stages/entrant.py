"""Entrant: one training of a race by a process of its own, which an engine starts.

The process that races holds the workdir and says who trains how far. This one holds the folder of
its training alone, and leaves there what it was started for: checkpoints, and a look on valid.
"""

from pathlib import Path

from dartformer import config as configs
from dartformer.config import Config
from dartformer.errors import InputError
from dartformer.machine.workdir import differences, jsonable, read_json, write_checked_json
from dartformer.results import Looks, TrainingRecord
from dartformer.space.genotype import Genotype
from dartformer.stages.layout import TRAINING, TRAININGS, Layout, genotype_key
from dartformer.stages.race import Leg, look_at, race_identity
from dartformer.stages.retrain import fit_in_folder, held, selected
from dartformer.stages.study import Study


def folder_of(leg: Leg) -> Path:
    """The folder of a training, within its workdir."""
    return Layout("").training(leg.genotype, leg.seed)


def train_entrant(config: Config, workdir: str | Path, folder: str, step: int) -> Leg:
    """Train an entrant up to a step, and with the first seed look at it, which `looks.json` keeps.

    Args:
      config: of the workdir.
      workdir: which another process may hold.
      folder: of the training, within the workdir: "trainings/NAME/seed0".
      step: where the training pauses; the last one ends it.

    Raises `InputError` for another config, and for a training or a step that is not of the race;
    and what `fit` raises.
    """
    layout = Layout(workdir)
    _require_config(layout, config)
    leg = _leg(layout, config, folder, step)
    study, genotype, seed = Study(config), leg.genotype, leg.seed
    # As the race itself would: a pause at the last step is none.
    pause = None
    if step < config.retrain.steps:
        pause = step
    with held(layout, genotype, seed):
        fitted = fit_in_folder(study, layout, genotype, leg.name, seed, pause)
        if seed != config.retrain.seeds[0]:
            return leg
        weights = fitted.state.weights
        if pause is None:
            model = selected(study, layout, genotype, seed, fitted.state, fitted.evaluations)
            weights = model.weights
        look = look_at(study, genotype, weights, step)
        file, identity = layout.looks_of(genotype, seed), dict(race_identity(study))
        # Looks at earlier steps are in `race.json`.
        looks = Looks(identity, {genotype_key(genotype): (look,)})
        write_checked_json(file, looks.to_dict())
    return leg


def _require_config(layout: Layout, config: Config) -> None:
    """Raise `InputError` where the workdir belongs to another config."""
    saved = read_json(layout.config)
    if not isinstance(saved, dict):
        raise InputError(f"{layout.config} is damaged: it must hold an object.")
    changes = list(differences(saved, jsonable(configs.to_dict(config))))
    if changes:
        raise InputError(
            f"the workdir {layout.path} belongs to another config; it differs in "
            f"{'; '.join(changes)}. Use --config={layout.config}."
        )


def _leg(layout: Layout, config: Config, folder: str, step: int) -> Leg:
    """What the words of the command line stand for."""
    path = Path(folder)
    of_seeds = {f"seed{seed}": seed for seed in config.retrain.seeds}
    if path.name not in of_seeds or path.parts[:1] != (TRAININGS,) or len(path.parts) != 3:
        raise InputError(
            f"--train takes a training of the workdir, {TRAININGS}/NAME/SEED with SEED one of "
            f"{', '.join(of_seeds)}, got {folder!r}."
        )
    if not 1 <= step <= config.retrain.steps:
        raise InputError(
            f"--until must be 1 to {config.retrain.steps}, the steps of a training, got {step}."
        )
    record = layout.read(TrainingRecord, layout.path / path.parent / TRAINING)
    if record is None:
        raise InputError(f"there is no entrant in {layout.path / path.parent}.")
    leg = Leg(record.name, Genotype.from_dict(record.genotype.to_dict()), of_seeds[path.name], step)
    if path != folder_of(leg):
        raise InputError(f"{layout.path / path.parent} holds the entrant of {folder_of(leg)}.")
    return leg
