"""One pytree in, one pytree out, through orbax; the last two checkpoints and the best one are kept.

A pytree is saved flat, under the names of its paths, so that optax's NamedTuples, dicts with number
keys and PRNG keys all come back as they were: the structure is the caller's, the file holds the
arrays."""

import contextlib
import errno
import functools
import gc
import itertools
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from dartformer.errors import InputError
from dartformer.machine import hosts
from dartformer.machine.progress import say
from dartformer.machine.workdir import UnreadableFile, crc32, read_json, write_json
from dartformer.models.stacks import BLOCKS, STACKED

if TYPE_CHECKING:  # imported where checkpoints are opened: a loaded model needs none
    import orbax.checkpoint as ocp

METRIC, IDENTITY = "score", "identity"


FileNote = tuple[int, int]
"""Size and CRC-32 of a file."""

PyTree = Any
"""Nested tuples, lists and dicts of arrays; Python has no type for them."""


class Restored(NamedTuple):
    """A checkpoint: the step it was made after, the pytree, and the small JSON that went with
    it."""

    step: int
    state: PyTree
    extra: dict[str, Any]


class UnreadableCheckpoint(UnreadableFile):
    """A checkpoint that cannot be used now, although its files may be whole: nothing is moved."""


class _Damaged(Exception):
    """The files of a checkpoint are not as they were written."""


class Checkpoints:
    """The checkpoints of one training run in one folder.

    Saving is asynchronous. Orbax makes each checkpoint appear whole or not at all, so that killing
    the process costs at most the one being written. For finished ones the sizes and CRCs of their
    files are noted (`<step>.json` beside them), and a checkpoint that has been damaged since is
    passed over for the one before."""

    def __init__(self, folder: Path):
        self.folder = folder.absolute()
        self._open = contextlib.ExitStack()
        self._open.enter_context(_quiet())
        try:
            self._manager = self._opened()
        except OSError as error:
            self._open.close()
            raise UnreadableCheckpoint(
                f"cannot open the checkpoints in {self.folder}: {error.strerror}."
            ) from None
        self._pending: int | None = None  # the step whose checkpoint is being written

    def _opened(self) -> "ocp.CheckpointManager":
        import orbax.checkpoint as ocp
        from orbax.checkpoint import checkpoint_managers

        hosts.by_chief(self._set_aside_unscored)
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[METRIC],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        keep = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), best])
        # orbax writes metrics only where there is a best_fn, whatever the policy reads.
        return ocp.CheckpointManager(
            self.folder / "steps",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep, best_fn=lambda metrics: metrics[METRIC], create=True
            ),
        )

    def save(
        self, step: int, state: PyTree, extra: dict[str, object], score: float | None = None
    ) -> None:
        """Save `state` and `extra`, which is plain JSON, as of `step`.

        The checkpoint with the highest `score` is the best one."""
        import orbax.checkpoint as ocp

        # One checkpoint at a time, so that the note of the one before can be written.
        self.settle()
        arrays = {}
        for name, leaf in named_leaves(state):
            arrays[name] = _plain(leaf)
        metrics = None
        if score is not None:
            metrics = {METRIC: score}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), extra=ocp.args.JsonSave(extra)
        )
        with self._writing():
            self._manager.save(step, metrics=metrics, args=args)
        self._pending = step

    def latest(self, like: PyTree, warn: Callable[[str], None] = say) -> Restored | None:
        """The newest undamaged checkpoint, its pytree shaped as `like`; None if there is none.

        A damaged one is moved aside and `warn` is called with one line that says so. Raises
        `UnreadableCheckpoint`, and moves nothing, where the disk gives no files or the pytree in
        them has another structure.
        """
        self.settle()
        steps = hosts.by_chief(lambda: sorted(self._manager.all_steps(), reverse=True))
        return self._first_undamaged(steps, like, warn)

    def best(self, like: PyTree, warn: Callable[[str], None] = say) -> Restored | None:
        """The undamaged checkpoint with the highest score, or None if none has a score.

        Of equals it is the latest, which is the one that orbax keeps. See `latest`."""
        self.settle()
        return self._first_undamaged(hosts.by_chief(self._by_score), like, warn)

    def _by_score(self) -> list[int]:
        """The steps with a score, the best first; of equals the latest."""
        scores = []
        for step in self._manager.all_steps():
            metrics = self._manager.metrics(step)
            if metrics:
                scores.append((metrics[METRIC], step))
        scores.sort(reverse=True)  # by score, then by step
        return [step for _, step in scores]

    def _first_undamaged(
        self, steps: Sequence[int], like: PyTree, warn: Callable[[str], None]
    ) -> Restored | None:
        for step in steps:
            try:
                return self._restore(step, like)
            except _Damaged as damage:
                gc.collect()  # coroutines that failed, while their complaints are still dropped
                self._set_aside(step)
                warn(
                    f"checkpoint of step {step} in {self.folder} is damaged ({damage}); "
                    f"falling back to the one before. It was moved to {self.folder / 'damaged'}."
                )
        return None

    def identity(self) -> dict[str, str]:
        """What the newest checkpoint belongs to; empty where it says nothing."""
        return dict(self.extra().get(IDENTITY, {}))

    def extra(self) -> dict[str, Any]:
        """The small JSON of the newest checkpoint that can be read; empty where there is none.

        It is read without the arrays, whose structure may be that of another genotype.
        """
        self.settle()
        return hosts.by_chief(self._extra)

    def _extra(self) -> dict[str, Any]:
        name = "extra/metadata"
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                # What a damaged file says is no reason to refuse the ones before it.
                _require_one_as_noted(self.folder, step, name)
                extra: dict[str, Any] = read_json(_path(self.folder, step) / name)
                # Of another form: it is read on, as if it were damaged.
                dict(extra.get(IDENTITY, {}))
                return extra
            except (OSError, _Damaged, InputError, AttributeError, TypeError, ValueError):
                continue  # `latest` says what is wrong with it
        return {}

    def prune(self) -> None:
        """Keep the newest and the best alone, of a training that is over."""
        self.settle()
        for step in hosts.by_chief(lambda: _others(self.folder)):
            self._manager.delete(step)
            hosts.by_chief(functools.partial(_remove, self.folder / f"{step}.json"))

    def settle(self) -> None:
        """Wait for the checkpoint being written, then note its files."""
        with self._writing():
            self._manager.wait_until_finished()
            step, self._pending = self._pending, None
            if step is not None:
                hosts.by_chief(functools.partial(self._write_note, step))

    def close(self) -> None:
        """Wait for what is being written."""
        with self._open:
            self.settle()
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            if kind is not None:
                # A failing disk must not replace the error that is under way with its own.
                stack.enter_context(contextlib.suppress(Exception))
            self.close()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """`InputError` where the disk takes no checkpoint, such as where the folder was removed."""
        try:
            yield
        # Tensorstore raises a ValueError for whatever the disk says.
        except (OSError, ValueError) as error:
            reason = str(error)
            # A full disk is told in other words, see `dartformer.cli.exhaustion`.
            if any(os.strerror(number) in reason for number in (errno.ENOSPC, errno.EDQUOT)):
                raise
            raise InputError(
                f"cannot write a checkpoint to {self.folder}: {reason[:120]}. Earlier checkpoints "
                f"are kept. Run the same command again to continue from them."
            ) from error

    def _write_note(self, step: int) -> None:
        write_json(self.folder / f"{step}.json", dict(self._files(step)))
        # orbax deletes old checkpoints; their notes go with them.
        for note in self.folder.glob("*.json"):
            if not _path(self.folder, note.stem).exists():
                note.unlink()

    def _files(self, step: int) -> Iterator[tuple[str, tuple[int, int]]]:
        """The files of a checkpoint, each with its size and CRC."""
        return _files(self.folder, step)

    def _restore(self, step: int, like: PyTree) -> Restored:
        """The checkpoint of a step; `_Damaged` or `UnreadableCheckpoint` where there is none."""
        import orbax.checkpoint as ocp

        is_noted = self._require_undamaged(step)
        named = named_leaves(like)
        shapes = {}
        for name, leaf in named:
            array = _plain(leaf)
            # Saved by other devices, it is restored to those that `like` lies on.
            shapes[name] = jax.ShapeDtypeStruct(
                np.shape(array), array.dtype, sharding=array.sharding
            )
        # What processes tell one another is plain lists and dicts.
        layered = _Layered(*hosts.by_chief(lambda: _layered(self._saved(step), shapes)))
        shapes = layered.shapes(shapes)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(shapes), extra=ocp.args.JsonRestore()
        )
        hosts.by_chief(lambda: self._require_structure(step, shapes))
        problem, is_of_disk = "", False
        try:
            saved = self._manager.restore(step, args=args)
        except (InputError, MemoryError):
            raise
        except Exception as error:
            problem = str(error).split("\n")[0][:120] or type(error).__name__
            if isinstance(error, OSError):
                problem, is_of_disk = str(error.strerror), True
        # Where one process cannot read its part, none goes on without it.
        problem = max(hosts.gathered(problem))
        # Files that agree with their note are whole, whatever it is that cannot read them. A
        # checkpoint without a note is one that the process did not live to see finished; orbax
        # shows it only if it is whole.
        if problem and not is_noted and not is_of_disk:
            raise _Damaged(problem)
        if problem:
            raise self._unreadable(step, problem)
        arrays = layered.joined(saved.state)
        leaves = []
        for name, leaf in named:
            leaves.append(_like(arrays[name], leaf))
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return Restored(step, state, saved.extra)

    def _require_undamaged(self, step: int) -> bool:
        """Whether the files of a checkpoint were noted; `_Damaged` if they are not as noted."""
        damage, is_noted = hosts.by_chief(lambda: self._compared(step))
        if damage:
            raise _Damaged(damage)
        return bool(is_noted)

    def _compared(self, step: int) -> tuple[str, bool]:
        """How the files differ from their note, and whether there is one."""
        try:
            noted = _noted(self.folder, step)
        except _Damaged as damage:
            return str(damage), True
        if not noted:
            return "", False
        try:
            files = dict(self._files(step))
        except OSError as error:
            # A disk that fails for a moment says nothing about the checkpoint.
            raise self._unreadable(step, str(error.strerror)) from None
        try:
            _require_as_noted(noted, files)
        except _Damaged as damage:
            return str(damage), True
        return "", True

    def _require_structure(self, step: int, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> None:
        """Raise `UnreadableCheckpoint` where the saved arrays are others than `shapes`."""
        saved = self._saved(step)
        problems = []
        for name in sorted(saved.keys() - shapes.keys()):
            problems.append(f"{name} is saved and not expected")
        for name in sorted(shapes.keys() - saved.keys()):
            problems.append(f"{name} is expected and not saved")
        for name in sorted(shapes.keys() & saved.keys()):
            ours, theirs = shapes[name], saved[name]
            if (theirs.shape, theirs.dtype) != (ours.shape, ours.dtype):
                problems.append(
                    f"{name} is {theirs.dtype}{list(theirs.shape)}, expected "
                    f"{ours.dtype}{list(ours.shape)}"
                )
        if problems:
            listed = "; ".join(problems[:3])
            if len(problems) > 3:
                listed += f"; and {len(problems) - 3} more"
            raise UnreadableCheckpoint(
                f"the checkpoint of step {step} in {self.folder} has another structure ({listed}). "
                f"Use the dartformer version and the config that wrote it, or a new workdir."
            )

    def _saved(self, step: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The arrays of a checkpoint by name, without their values."""
        import orbax.checkpoint as ocp

        handler = ocp.StandardCheckpointHandler()
        tree = handler.metadata(_path(self.folder, step) / "state").tree
        handler.close()
        saved = {}
        for name, about in tree.items():
            saved[name] = jax.ShapeDtypeStruct(tuple(about.shape), about.dtype)
        return saved

    def _unreadable(self, step: int, reason: str) -> UnreadableCheckpoint:
        return UnreadableCheckpoint(
            f"cannot read the checkpoint of step {step} in {self.folder}: {reason}. Try again, or "
            f"delete {_path(self.folder, step)} to go on from the one before."
        )

    def _set_aside_unscored(self) -> None:
        """Set checkpoints with a damaged score aside: orbax reads all scores when it opens."""
        for step in _steps(self.folder):
            name = "metrics/metrics"
            # A checkpoint of a step without an evaluation has no score.
            if not os.path.lexists(_path(self.folder, step) / "metrics"):
                continue
            try:
                _require_one_as_noted(self.folder, step, name)
                score = read_json(_path(self.folder, step) / name)[METRIC]
                damaged = not isinstance(score, int | float)
            except UnreadableFile:
                raise
            except (_Damaged, InputError, KeyError, TypeError, IndexError):
                damaged = True
            if damaged:
                self._move_aside(step)
                say(
                    f"checkpoint of step {step} in {self.folder} is damaged (its score is "
                    f"unreadable). It was moved to {self.folder / 'damaged'}."
                )

    def _set_aside(self, step: int) -> None:
        hosts.by_chief(lambda: self._move_aside(step))
        self._manager.reload()

    def _move_aside(self, step: int) -> None:
        aside = self.folder / "damaged"
        aside.mkdir(exist_ok=True)
        # A step can be damaged more than once: a number keeps the names apart.
        number = len(list(aside.iterdir()))
        _path(self.folder, step).rename(aside / f"{step}-{number}")
        (self.folder / f"{step}.json").unlink(missing_ok=True)


class _Layered(NamedTuple):
    """Arrays with an axis of layers, whose layers were saved one by one.

    Version 0.1.0 saved the weights of a loop over layers so.

    Attributes:
      axis: of the layers.
      parts: for each array, the names of its layers' arrays.
    """

    axis: int
    parts: Mapping[str, Sequence[str]]

    def shapes(self, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
        """What is read in place of the arrays that are wanted."""
        read = dict(wanted)
        for name, parts in self.parts.items():
            whole = read.pop(name)
            shape = _without(whole.shape, self.axis)
            sharding = whole.sharding
            if isinstance(sharding, NamedSharding):
                spec = [*sharding.spec, *[None] * (len(whole.shape) - len(sharding.spec))]
                del spec[self.axis]
                sharding = NamedSharding(sharding.mesh, PartitionSpec(*spec))
            for part in parts:
                read[part] = jax.ShapeDtypeStruct(shape, whole.dtype, sharding=sharding)
        return read

    def joined(self, read: Mapping[str, Array]) -> dict[str, Array]:
        """The arrays that are wanted, of what was read."""
        arrays = dict(read)
        for name, parts in self.parts.items():
            arrays[name] = jnp.stack([arrays.pop(part) for part in parts], self.axis)
        return arrays


def _layered(
    saved: Mapping[str, jax.ShapeDtypeStruct], wanted: Mapping[str, jax.ShapeDtypeStruct]
) -> _Layered:
    """The arrays that are wanted with an axis of layers, and saved without."""
    parts: dict[str, list[str]] = {}
    axes = {0, 1}  # of arrays that lead with seeds, the layers come second
    for name, whole in wanted.items():
        if name in saved or STACKED not in name.split("/"):
            continue
        layers = itertools.takewhile(
            saved.__contains__, (name.replace(STACKED, f"{BLOCKS}/{n}") for n in itertools.count())
        )
        parts[name] = list(layers)
        count = len(parts[name])
        if not count:
            return _Layered(0, {})
        shape = saved[parts[name][0]].shape
        for axis in range(2):
            fits = whole.shape[axis : axis + 1] == (count,)
            if not fits or _without(whole.shape, axis) != shape:
                axes.discard(axis)
    if not parts or len(axes) != 1:  # as many seeds as layers: nothing says which is which
        return _Layered(0, {})
    return _Layered(axes.pop(), parts)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return (*shape[:axis], *shape[axis + 1 :])


def superfluous(folder: Path) -> list[Path]:
    """What nothing needs of a training that is over: all but its newest and its best checkpoint.

    Folders of checkpoints, the notes of their files, and what was set aside as damaged.
    """
    paths = []
    if (folder / "damaged").is_dir():
        paths.append(folder / "damaged")
    for step in _others(folder):
        paths.append(_path(folder, step))
        note = folder / f"{step}.json"
        if note.exists():
            paths.append(note)
    return paths


def _others(folder: Path) -> list[int]:
    """The steps of all checkpoints but the newest and the best."""
    steps = _steps(folder)
    if not steps:
        return []
    scores = []
    for step in steps:
        file = _path(folder, step) / "metrics/metrics"
        # A checkpoint of a step without an evaluation has no score.
        if file.exists():
            scores.append((read_json(file)[METRIC], step))
    keep = {steps[-1]}
    if scores:
        _, best = max(scores)
        keep.add(best)
    return [step for step in steps if step not in keep]


def damage(folder: Path, step: int) -> str | None:
    """How the files of a checkpoint differ from what was noted of them; None if they do not.

    Nothing is known, and so nothing is wrong, of a checkpoint without a note.
    """
    folder = folder.absolute()
    try:
        noted = _noted(folder, step)
        if noted:
            _require_as_noted(noted, dict(_files(folder, step)))
    except _Damaged as problem:
        return str(problem)
    except FileNotFoundError:
        return "it is gone"
    except OSError as error:
        raise UnreadableCheckpoint(
            f"cannot read the checkpoint of step {step} in {folder}: {error.strerror}."
        ) from None
    return None


def _path(folder: Path, step: int | str) -> Path:
    return folder / "steps" / str(step)


def _steps(folder: Path) -> list[int]:
    """The steps of the finished checkpoints in a folder."""
    if not (folder / "steps").exists():
        return []
    # Orbax gives unfinished ones longer names.
    return sorted(int(name) for name in os.listdir(folder / "steps") if name.isdecimal())


def _files(folder: Path, step: int) -> Iterator[tuple[str, FileNote]]:
    base = _path(folder, step)

    def fail(error: OSError) -> None:
        raise error

    # Not rglob, which passes over a folder that may not be read.
    for parent, _, names in os.walk(base, onerror=fail):
        for name in names:
            file = Path(parent, name)
            if file.is_file():
                yield str(file.relative_to(base)), _size_and_crc(file)


def _size_and_crc(file: Path) -> FileNote:
    return file.stat().st_size, crc32(file)


def _noted(folder: Path, step: int) -> dict[str, FileNote]:
    """What was noted of the files of a checkpoint; empty if the process did not live to do so."""
    note = folder / f"{step}.json"
    if not os.path.lexists(note):
        return {}
    noted: dict[str, FileNote] = {}
    try:
        for name, (size, crc) in read_json(note).items():
            noted[name] = size, crc
    except UnreadableFile:
        raise
    except (InputError, AttributeError, TypeError, ValueError):
        raise _Damaged(f"{note.name}, the list of its files, is unreadable") from None
    return noted


def _require_as_noted(noted: Mapping[str, FileNote], files: Mapping[str, FileNote]) -> None:
    for name, about in noted.items():
        if files.get(name) != about:
            raise _Damaged(f"{name} is not as it was written")


def _require_one_as_noted(folder: Path, step: int, name: str) -> None:
    """`_require_as_noted` of one file, without reading the arrays."""
    noted = _noted(folder, step)
    file = _path(folder, step) / name
    if name in noted and (not file.is_file() or _size_and_crc(file) != noted[name]):
        raise _Damaged(f"{name} is not as it was written")


def _remove(file: Path) -> None:
    file.unlink(missing_ok=True)


def named_leaves(tree: PyTree) -> list[tuple[str, Array]]:
    """Leaves with the names of their paths, e.g. `weights/blocks/0/up/kernel`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = []
    for path, leaf in leaves:
        # A tree that is a leaf itself has an empty path.
        name = jax.tree_util.keystr(path, simple=True, separator="/") or "value"
        named.append((name, leaf))
    return named


def _is_key(leaf: ArrayLike) -> bool:
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(leaf: ArrayLike) -> Array:
    """A leaf as orbax takes it: PRNG keys as their bits."""
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    return jnp.asarray(leaf)


def _like(array: Array, leaf: ArrayLike) -> Array:
    """The inverse of `_plain`, with the dtype of `leaf`."""
    # Keys are saved as bits, because orbax knows arrays of numbers only.
    if _is_key(leaf):
        return jax.random.wrap_key_data(array, impl=jax.random.key_impl(leaf))
    if np.shape(array) != np.shape(leaf):
        raise InputError(f"a saved array has shape {np.shape(array)}, expected {np.shape(leaf)}.")
    return array


def _drop(failure: object) -> None:
    """A hook that reports nothing."""


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the noise about a file that cannot be read or written out of the terminal.

    orbax and tensorstore report such an error twice: to the caller, who says it in one line, and as
    tracebacks from their threads, from closed event loops and from the garbage collector, which
    this drops."""
    loggers = [logging.getLogger("asyncio"), logging.getLogger("absl")]
    levels = [logger.level for logger in loggers]
    uncaught, in_thread, unraisable = sys.excepthook, threading.excepthook, sys.unraisablehook

    def report(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        if "Event loop is closed" not in str(error):
            uncaught(kind, error, trace)

    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    sys.excepthook = report
    threading.excepthook = sys.unraisablehook = _drop
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        sys.excepthook, threading.excepthook, sys.unraisablehook = uncaught, in_thread, unraisable
