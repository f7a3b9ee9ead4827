"""One pytree in, one pytree out, through orbax; the last two checkpoints and the best one are kept.

A pytree is saved flat, under the names of its paths, so that optax's NamedTuples, dicts with number
keys and PRNG keys all come back as they were: the structure is the caller's, the file holds the
arrays."""

import contextlib
import gc
import json
import logging
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array
from jax.typing import ArrayLike
from orbax.checkpoint import checkpoint_managers

from dartformer.errors import InputError
from dartformer.machine.progress import say
from dartformer.machine.workdir import write_json

METRIC, IDENTITY = "score", "identity"


PyTree = Any
"""Nested tuples, lists and dicts of arrays; Python has no type for them."""


class Restored(NamedTuple):
    """A checkpoint: the step it was made after, the pytree, and the small JSON that went with
    it."""

    step: int
    state: PyTree
    extra: dict[str, Any]


class UnreadableCheckpoint(InputError):
    """The disk did not give a checkpoint's files, which may be whole."""


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
        self._set_aside_unscored()
        best = checkpoint_managers.BestN(
            get_metric_fn=lambda metrics: metrics[METRIC],
            n=1,
            keep_checkpoints_without_metrics=False,
        )
        keep = checkpoint_managers.AnyPreservationPolicy([checkpoint_managers.LatestN(2), best])
        # orbax writes metrics only where there is a best_fn, whatever the policy reads.
        self._manager = ocp.CheckpointManager(
            self.folder / "steps",
            options=ocp.CheckpointManagerOptions(
                preservation_policy=keep, best_fn=lambda metrics: metrics[METRIC], create=True
            ),
        )
        self._pending: int | None = None  # the step whose checkpoint is being written

    def save(
        self, step: int, state: PyTree, extra: dict[str, object], score: float | None = None
    ) -> None:
        """Save `state` and `extra`, which is plain JSON, as of `step`.

        The checkpoint with the highest `score` is the best one."""
        # One checkpoint at a time, so that the note of the one before can be written.
        self._settle()
        arrays = {}
        for name, leaf in named_leaves(state):
            arrays[name] = _plain(leaf)
        metrics = None
        if score is not None:
            metrics = {METRIC: score}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(arrays), extra=ocp.args.JsonSave(extra)
        )
        self._manager.save(step, metrics=metrics, args=args)
        self._pending = step

    def latest(self, like: PyTree, warn: Callable[[str], None] = print) -> Restored | None:
        """The newest undamaged checkpoint, its pytree shaped as `like`; None if there is none.

        A damaged one is moved aside and `warn` is called with one line that says so.
        """
        self._settle()
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._restore(step, like)
            except UnreadableCheckpoint:
                raise
            except Exception as error:
                # Whatever reading raises, the answer is the same: say it, and fall back to the one
                # before.
                gc.collect()  # coroutines that failed, while their complaints are still dropped
                reason = str(error).split("\n")[0][:120] or type(error).__name__
                self._set_aside(step)
                warn(
                    f"checkpoint of step {step} in {self.folder} is damaged ({reason}); "
                    f"falling back to the one before. It was moved to {self.folder / 'damaged'}."
                )
        return None

    def identity(self) -> dict[str, str]:
        """What the newest checkpoint belongs to; empty where it says nothing.

        It is read without the arrays, whose structure may be that of another genotype.
        """
        self._settle()
        for step in sorted(self._manager.all_steps(), reverse=True):
            file = self.folder / "steps" / str(step) / "extra" / "metadata"
            try:
                extra = json.loads(file.read_text(encoding="utf-8"))
                return dict(extra.get(IDENTITY, {}))
            except (OSError, ValueError, AttributeError):
                continue  # `latest` says what is wrong with it
        return {}

    def best(self, like: PyTree) -> Restored | None:
        """The checkpoint with the highest score, or None if no checkpoint has a score.

        Of equals it is the latest, which is the one that orbax keeps."""
        self._settle()
        scores = []
        for step in self._manager.all_steps():
            metrics = self._manager.metrics(step)
            if metrics:
                scores.append((metrics[METRIC], step))
        if not scores:
            return None
        _, step = max(scores)  # by score, then by step
        return self._restore(step, like)

    def close(self) -> None:
        """Wait for what is being written."""
        with self._open:
            self._settle()
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with contextlib.ExitStack() as stack:
            if kind is not None:
                # A failing disk must not replace the error that is under way with its own.
                stack.enter_context(contextlib.suppress(Exception))
            self.close()

    def _settle(self) -> None:
        """Wait for the checkpoint being written, then note its files."""
        self._manager.wait_until_finished()
        if self._pending is None:
            return
        step, self._pending = self._pending, None
        write_json(self.folder / f"{step}.json", dict(self._files(step)))
        # orbax deletes old checkpoints; their notes go with them.
        for note in self.folder.glob("*.json"):
            if not (self.folder / "steps" / note.stem).exists():
                note.unlink()

    def _files(self, step: int) -> Iterator[tuple[str, tuple[int, int]]]:
        """The files of a checkpoint, each with its size and CRC."""
        base = self.folder / "steps" / str(step)
        for file in sorted(base.rglob("*")):
            if file.is_file():
                data = file.read_bytes()
                yield str(file.relative_to(base)), (len(data), zlib.crc32(data))

    def _restore(self, step: int, like: PyTree) -> Restored:
        # A checkpoint without a note is one that the process did not live to see finished; orbax
        # shows it only if it is whole.
        note = self.folder / f"{step}.json"
        if note.exists():
            try:
                files = dict(self._files(step))
            except OSError as error:
                # A disk that fails for a moment says nothing about the checkpoint.
                raise UnreadableCheckpoint(
                    f"cannot read the checkpoint of step {step} in {self.folder}: "
                    f"{error.strerror}. Try again, or delete {self.folder / 'steps' / str(step)} "
                    f"to go on from the one before."
                ) from None
            for name, size_and_crc in json.loads(note.read_text()).items():
                if tuple(size_and_crc) != files.get(name):
                    raise ValueError(f"{name} is not as it was written")
        named = named_leaves(like)
        shapes = {}
        for name, leaf in named:
            array = _plain(leaf)
            shapes[name] = jax.ShapeDtypeStruct(np.shape(array), array.dtype)
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(shapes), extra=ocp.args.JsonRestore()
        )
        saved = self._manager.restore(step, args=args)
        leaves = []
        for name, leaf in named:
            leaves.append(_like(saved.state[name], leaf))
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        return Restored(step, state, saved.extra)

    def _set_aside_unscored(self) -> None:
        """Set checkpoints with a damaged score aside: orbax reads all scores when it opens."""
        for file in sorted((self.folder / "steps").glob("[0-9]*/metrics/metrics")):
            try:
                json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                step = int(file.parents[1].name)
                self._move_aside(step)
                say(
                    f"checkpoint of step {step} in {self.folder} is damaged (its score is "
                    f"unreadable). It was moved to {self.folder / 'damaged'}."
                )

    def _set_aside(self, step: int) -> None:
        self._move_aside(step)
        self._manager.reload()

    def _move_aside(self, step: int) -> None:
        aside = self.folder / "damaged"
        aside.mkdir(exist_ok=True)
        # A step can be damaged more than once: a number keeps the names apart.
        number = len(list(aside.iterdir()))
        damaged = self.folder / "steps" / str(step)
        damaged.rename(aside / f"{step}-{number}")
        (self.folder / f"{step}.json").unlink(missing_ok=True)


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
    """A leaf as orbax takes it: PRNG keys as their bits, and one copy of what devices share.

    Orbax notes on which devices an array lay, and restores it nowhere else.
    """
    if _is_key(leaf):
        leaf = jax.random.key_data(leaf)
    array = jnp.asarray(leaf)
    if len(array.devices()) == 1:
        return array
    return jax.device_put(array, jax.local_devices()[0])


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
