"""Several processes as one run: who writes, what all of them agree on, and when they stop.

One process runs on each host, and JAX's distributed runtime connects them. All execute the same
program in the same order. The chief, process 0, alone writes files and prints; what is read from a
file or a clock and decides what follows is the chief's, and the others are told.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

from dartformer.errors import InputError

T = TypeVar("T")

LIMIT = 6 * 3600
"""Seconds that a process waits for another one that is alive, such as one that prepares data."""

HEARTBEAT = "DARTFORMER_HEARTBEAT"
"""The environment variable with the seconds after which a silent process counts as dead."""

SILENCE = 30
"""Those seconds by default."""

CONNECTING = "DARTFORMER_CONNECTING"
"""The environment variable with the seconds to wait for all processes at the start."""

PATIENCE = 60
"""Those seconds by default."""

LEAVING = 20
"""Seconds to wait for the others at the end."""


@dataclass(frozen=True)
class Spec:
    """What `--hosts` says.

    Attributes:
      kind: "auto" finds the cluster's own variables; "ready" says that somebody else has connected
        the processes; "local" starts them here; "address" names everything.
      address: of the coordinator, "HOST:PORT".
      count: of the processes.
      number: of this one.
    """

    kind: str
    address: str = ""
    count: int = 0
    number: int = 0


NO_CLUSTER = (
    "--hosts=auto found no cluster: neither SLURM, Open MPI, Kubernetes nor Cloud TPU has set its "
    "variables. Use --hosts=ADDRESS:PORT,N,I."
)

FORMS = "auto, ready, local:N or ADDRESS:PORT,N,I"


def parse(text: str) -> Spec:
    """The value of `--hosts`; raises `InputError` for anything but the forms in `FORMS`."""
    if text in ("auto", "ready"):
        return Spec(text)
    try:
        if text.startswith("local:"):
            return _checked(Spec("local", count=int(text.removeprefix("local:"))), text)
        address, count, number = text.split(",")
        host, _, port = address.rpartition(":")
        if not host or not 0 < int(port) < 2**16:
            raise ValueError(port)
        return _checked(Spec("address", address, int(count), int(number)), text)
    except ValueError:
        raise InputError(f"--hosts must be {FORMS}, got {text!r}.") from None


def _checked(spec: Spec, text: str) -> Spec:
    if spec.count < 1:
        raise InputError(f"--hosts={text}: the number of processes must be at least 1.")
    if not 0 <= spec.number < spec.count:
        raise InputError(
            f"--hosts={text}: the number of this process must be 0 to {spec.count - 1}."
        )
    return spec


class _Connection:
    """The coordination service, which outlives no process: it is that of process 0."""

    def __init__(self, client: Any, number: int, count: int):
        self.client, self.number, self.count = client, number, count
        # Every process counts the same calls, because all execute the same program.
        self.calls = itertools.count()
        self.answer: str | None = None  # the key of the chief's last one
        self.steps = itertools.count(1)
        self.is_alone = False


_connection: _Connection | None = None


def start(spec: Spec) -> None:
    """Connect this process with the others; before the first call of JAX that needs a device.

    Raises `InputError` where the coordinator or other processes do not answer.
    """
    global _connection
    import jax

    # The runtime's own, because no public function has a barrier with a limit or a store of texts.
    from jax._src import distributed

    if spec.kind == "address":
        if spec.number:
            _require_answer(spec.address)
        _initialize(spec.address, coordinator_address=spec.address, num_processes=spec.count,
                    process_id=spec.number)  # fmt: skip
    elif spec.kind == "auto":
        _initialize("the cluster")
    state = distributed.global_state
    if state.client is None:
        if spec.kind == "ready":
            raise InputError(
                "--hosts=ready needs processes that jax.distributed.initialize has connected. Use "
                "--hosts=auto to connect them here."
            )
        raise InputError(NO_CLUSTER)
    if jax.process_count() > 1:
        _connection = _Connection(state.client, jax.process_index(), jax.process_count())


def _require_answer(address: str) -> None:
    """Raise `InputError` where nothing listens at an address: the runtime would end the process."""
    host, _, port = address.rpartition(":")
    patience = _seconds(CONNECTING, PATIENCE)
    end = time.monotonic() + patience
    while True:
        try:
            socket.create_connection((host, int(port)), timeout=patience).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                reason = error.strerror or error
                raise InputError(
                    f"no process 0 answers at {address} within {patience} s ({reason}). Start it "
                    f"there, with --hosts={address},N,0."
                ) from None
        time.sleep(0.2)


def _initialize(where: str, **arguments: Any) -> None:
    import jax

    silence, patience = _seconds(HEARTBEAT, SILENCE), _seconds(CONNECTING, PATIENCE)
    try:
        jax.distributed.initialize(
            **arguments,
            initialization_timeout=patience,
            heartbeat_timeout_seconds=silence,
            shutdown_timeout_seconds=LEAVING,
        )
    except ValueError:
        # The runtime knows no address: nothing that it looks for has been set.
        raise InputError(NO_CLUSTER) from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"cannot connect to the processes at {where}: {reason}") from None


def _seconds(variable: str, default: int) -> int:
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"{variable} must be a whole number of seconds from 1, got {text!r}.")
    return int(text)


def count() -> int:
    """How many processes share the run."""
    if _connection is None:
        return 1
    return _connection.count


def number() -> int:
    """The number of this process; the chief is 0."""
    if _connection is None:
        return 0
    return _connection.number


def chief() -> bool:
    """Whether this process writes and prints."""
    return number() == 0


def together() -> bool:
    """Whether several processes are at one program here, and must do the same things."""
    return _connection is not None and not _connection.is_alone


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Within it this process waits for no other, which are not in this place of the program."""
    if _connection is None:
        yield
        return
    before, _connection.is_alone = _connection.is_alone, True
    try:
        yield
    finally:
        _connection.is_alone = before


def by_chief(function: Callable[[], T]) -> T:
    """What `function` returns on the chief, to all processes; the others do not call it.

    No process leaves before the chief has called it, and the chief does not call it before all
    others are here. The result is passed as JSON, so that tuples become lists. An `InputError` is
    raised by all processes.
    """
    if not together():
        # As several processes would have it, so that one shows what would not come through.
        answer: T = json.loads(json.dumps(function()))
        return answer
    assert _connection is not None
    name = f"dartformer/{next(_connection.calls)}"
    client = _connection.client
    client.wait_at_barrier(name, 1000 * LIMIT)
    _forget_answer(_connection, name)
    if _connection.number:
        return _received(json.loads(client.blocking_key_value_get(name, 1000 * LIMIT)))
    try:
        with alone():
            result = function()
    except InputError as error:
        client.key_value_set(name, json.dumps({"refused": str(error)}))
        raise
    except BaseException as error:
        client.key_value_set(name, json.dumps({"failed": f"{type(error).__name__}: {error}"}))
        raise
    client.key_value_set(name, json.dumps({"result": result}))
    return result


def _forget_answer(connection: _Connection, name: str) -> None:
    """Delete the last answer, which all have read; `name` is the key of the next."""
    if connection.number == 0 and connection.answer is not None:
        connection.client.key_value_delete(connection.answer)
    connection.answer = name


def _received(message: dict[str, Any]) -> Any:
    if "refused" in message:
        raise InputError(message["refused"])
    if "failed" in message:
        raise RuntimeError(f"process 0 failed: {message['failed']}")
    return message["result"]


def chief_alone(function: Callable[[], object]) -> None:
    """Call `function` on the chief, for whose end no other process waits."""
    if not together():
        function()
    elif chief():
        with alone():
            function()


def gathered(value: str) -> list[str]:
    """The texts of all processes, in their order."""
    if not together():
        return [value]
    assert _connection is not None
    name = f"dartformer/{next(_connection.calls)}"
    client = _connection.client
    client.key_value_set(f"{name}/{_connection.number}", value)
    client.wait_at_barrier(name, 1000 * LIMIT)
    values = []
    for process in range(_connection.count):
        values.append(client.blocking_key_value_get(f"{name}/{process}", 1000 * LIMIT))
    return values


def require_same(what: str, value: str, remedy: str) -> None:
    """Raise `InputError` on all processes where one has another value than the chief."""
    values = gathered(value)
    for process, theirs in enumerate(values):
        if theirs != values[0]:
            raise InputError(
                f"{what} differs between processes 0 and {process}: {values[0]} and {theirs}. "
                f"{remedy}"
            )


def meet(what: str) -> None:
    """Wait for all other processes.

    Devices of a CPU must meet in their first exchange within 30 s, and one process may compile for
    longer than another.
    """
    if not together():
        return
    assert _connection is not None
    name = f"dartformer/{next(_connection.calls)}/{what}"
    _connection.client.wait_at_barrier(name, 1000 * LIMIT)


def stop_requested() -> int:
    """The number of the signal on which all processes stop after this step; 0: none.

    All must ask after every step: JAX notes SIGTERM in any of them, and picks a later step at which
    it tells all.
    """
    from jax.experimental import multihost_utils

    assert _connection is not None
    # Not the step of the training: every training counts from 0, and the runtime wants one count.
    if multihost_utils.reached_preemption_sync_point(next(_connection.steps)):
        return signal.SIGTERM
    return 0


def says_first(text: str) -> bool:
    """Whether this process prints an error: the chief does, and others if theirs is another."""
    if _connection is None:
        return True
    client = _connection.client
    with contextlib.suppress(Exception):
        if _connection.number == 0:
            client.key_value_set("dartformer/error", text, allow_overwrite=True)
            return True
        return bool(client.blocking_key_value_get("dartformer/error", 3000) != text)
    return True


def leave(code: int) -> NoReturn:
    """End this process at once, without waiting for others that may never come."""
    import sys

    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
