"""Where a run's numbers go beside `metrics.jsonl`: TensorBoard always, Weights & Biases and MLflow
where asked for.

All of them keep one small interface, `Tracker`; another is a class, with the name of
the `package` it needs, and a line in `BUILT_IN` or an entry point of the group `dartformer.tracker`.
"""

import importlib.util
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from dartformer.errors import InputError
from dartformer.registry import Registry

PROJECT = "dartformer"
"""The project, or the experiment, in which services file a run."""


class Tracker(Protocol):
    """One stage of a run, or its summary, as a service sees it. Made as `(folder, name, step)`: a
    folder of its own in the workdir, what to call it, and the step resumed from, or 0."""

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of a step."""
        ...

    def image(self, name: str, pixels: np.ndarray) -> None:
        """A picture `[height, width, 3]` uint8."""
        ...

    def summary(self, settings: Mapping[str, object], scores: Mapping[str, float]) -> None:
        """The config's fields by their dotted names, and what was scored in the end."""
        ...

    def close(self) -> None:
        """Hand over what is not yet written."""
        ...


class TensorBoard:
    """Event files in `tensorboard/`, by tensorboardX: no TensorFlow."""

    def __init__(self, folder: Path, name: str, step: int):
        from tensorboardX import SummaryWriter

        self.folder = folder / "tensorboard"
        # One file for a training, however often it was stopped: a race stops each at every rung. Of
        # a training that goes on, the log hands over what it has.
        for file in self.folder.glob("events.out.tfevents.*"):
            file.unlink()
        self.events = SummaryWriter(str(self.folder))

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in numbers.items():
            self.events.add_scalar(name, value, step)

    def image(self, name: str, pixels: np.ndarray) -> None:
        """See `Tracker`."""
        self.events.add_image(name, pixels, dataformats="HWC")

    def summary(self, settings: Mapping[str, object], scores: Mapping[str, float]) -> None:
        """As hparams: a row of TensorBoard's table, in a folder of its own."""
        # A repeated summary replaces the row of the one before.
        shutil.rmtree(self.folder / "hparams", ignore_errors=True)
        plain = {}
        for name, value in settings.items():
            # The table takes no lists.
            if not isinstance(value, (bool, int, float, str)):
                value = str(value)
            plain[name] = value
        self.events.add_hparams(plain, dict(scores), name="hparams")

    def close(self) -> None:
        """See `Tracker`."""
        self.events.close()


class WandB:
    """A run of Weights & Biases; its own environment variables (WANDB_MODE=offline, WANDB_PROJECT)
    hold."""

    package: ClassVar[str] = "wandb"

    def __init__(self, folder: Path, name: str, step: int):
        # Imported only where a config names it: the package is an extra, and takes seconds.
        import os

        import wandb

        self._wandb = wandb
        # The id is noted, so that a resumed run continues its own curves.
        file = folder / "wandb.id"
        if not file.exists():
            file.write_text(uuid.uuid4().hex[:8])
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            dir=str(folder),
            name=name,
            id=file.read_text(),
            resume="allow",
        )

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.run.log(dict(numbers), step=step)

    def image(self, name: str, pixels: np.ndarray) -> None:
        """See `Tracker`."""
        self.run.log({name: self._wandb.Image(pixels)})

    def summary(self, settings: Mapping[str, object], scores: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self.run.config.update(dict(settings), allow_val_change=True)
        self.run.summary.update(dict(scores))

    def close(self) -> None:
        """See `Tracker`."""
        self.run.finish()


class MLflow:
    """A run of MLflow; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME hold."""

    package: ClassVar[str] = "mlflow"

    def __init__(self, folder: Path, name: str, step: int):
        import os

        import mlflow

        self.client = mlflow.MlflowClient()
        file = folder / "mlflow.id"
        if not file.exists():
            title = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
            experiment = self.client.get_experiment_by_name(title)
            if experiment:
                number = experiment.experiment_id
            else:
                number = self.client.create_experiment(title)
            run = self.client.create_run(number, run_name=name)
            file.write_text(run.info.run_id)
        self.run = file.read_text()

    def scalars(self, step: int, numbers: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in numbers.items():
            # MLflow refuses @ in a name.
            self.client.log_metric(self.run, name.replace("@", "_"), value, step=step)

    def image(self, name: str, pixels: np.ndarray) -> None:
        """See `Tracker`."""
        self.client.log_image(self.run, pixels, f"{name}.png")

    def summary(self, settings: Mapping[str, object], scores: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in settings.items():
            self.client.log_param(self.run, name, str(value)[:500])  # longer ones are refused
        for name, value in scores.items():
            self.client.log_metric(self.run, name.replace("@", "_"), value)

    def close(self) -> None:
        """See `Tracker`."""
        self.client.set_terminated(self.run)


class TrackerClass(Protocol):
    """The class of a tracker: what it needs, and how it is made."""

    package: str

    def __call__(self, folder: Path, name: str, step: int) -> Tracker: ...


BUILT_IN: dict[str, TrackerClass] = {"wandb": WandB, "mlflow": MLflow}


def _is_tracker(cls: object) -> bool:
    return isinstance(cls, type) and hasattr(cls, "package")


TRACKERS: Registry[TrackerClass] = Registry(
    "tracker",
    BUILT_IN,
    group="dartformer.tracker",
    requirement="a class with a `package`",
    fits=_is_tracker,
)
"""What `log.trackers` can name: the built-in trackers, and those of other packages."""


def check(names: Sequence[str], where: str = "log.trackers") -> None:
    """Raise `InputError` for a tracker that there is not; `where` is what names them."""
    for name in names:
        TRACKERS.find(name, where)


def require_installed(names: Sequence[str]) -> None:
    """Raise `InputError` for a tracker whose package is not installed."""
    for name in names:
        package = TRACKERS[name].package
        if importlib.util.find_spec(package) is not None:
            continue
        # The built-in trackers are extras. Of another package's tracker only the package is known.
        install = f"'{package}'"
        if name in BUILT_IN:
            install = f"'dartformer[{name}]'"
        raise InputError(
            f"log.trackers names {name}, whose package {package} is not installed: "
            f"pip install {install}."
        )


def start(names: Sequence[str], folder: Path, name: str, step: int = 0) -> list[Tracker]:
    """TensorBoard and the trackers of `names`, for what happens in `folder` of a workdir."""
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard needs no account and no service, so it is never left out.
    trackers: list[Tracker] = [TensorBoard(folder, name, step)]
    for kind in names:
        trackers.append(TRACKERS[kind](folder, name, step))
    return trackers
