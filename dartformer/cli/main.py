"""The entry point of the command line: parse, dispatch to a verb, turn errors into exit codes."""

import argparse
import contextlib
import importlib
import os
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence

from dartformer._version import __version__
from dartformer.cli.exhaustion import disk_full, out_of_memory
from dartformer.cli.grammar import DIVERGED, EXAMPLES, UNEXPECTED, USER_ERROR, parser
from dartformer.errors import InputError, unknown
from dartformer.machine import hosts
from dartformer.machine.printable import note, printable

Handler = Callable[[argparse.Namespace, dict[str, str]], int]

# Handlers are imported when their verb is called, because `--help` must not wait for JAX.
HANDLERS = {
    "run": "run_verbs.run",
    "search": "run_verbs.stage",
    "derive": "run_verbs.derive",
    "race": "run_verbs.race",
    "retrain": "run_verbs.stage",
    "evaluate": "run_verbs.stage",
    "profile": "run_verbs.profile",
    "export": "run_verbs.export",
    "report": "run_verbs.report",
    "clean": "run_verbs.clean",
    "compare": "run_verbs.compare",
    "probe": "run_verbs.probe",
    "sweep": "sweep.command",
    "new": "new.command",
    "list": "listing.command",
    "selfcheck": "selfcheck.command",
    "predict": "predict.command",
    "generate": "generate.command",
    "inspect": "inspect.command",
    "push": "predict.push",
    "doctor": "doctor.command",
    "completion": "completion.command",
}
"""For each verb, the module of `dartformer.cli` and its function: (arguments, overrides) -> exit
code."""

WITHOUT_CONFIG = (
    "clean",
    "compare",
    "list",
    "selfcheck",
    "predict",
    "generate",
    "inspect",
    "push",
    "doctor",
    "completion",
)
"""Verbs that read no config, and so take no `--config.section.field=VALUE`."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    if argv is None:
        argv = sys.argv[1:]
    words = list(argv)
    try:
        return _run(words)
    except BrokenPipeError:
        # The reader is gone. Point standard output to nowhere, so that closing it is quiet too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        command = shlex.join(["dartformer", *words])
        return _fail(f"stopped; progress is saved. To continue: {command}", 128 + signal.SIGINT)
    except Exception as error:
        if "--debug" in words:
            print(printable(traceback.format_exc()), file=sys.stderr)
        return _exit_code(error, words)


def overrides(extra: Sequence[str]) -> dict[str, str]:
    """`--config.a.b=1` (or `--config.a.b 1`) as `{"a.b": "1"}`.

    Raises `InputError` for any other argument."""
    values = {}
    words = list(extra)
    while words:
        word = words.pop(0)
        if not word.startswith("--config."):
            raise InputError(
                f"unknown argument {word!r}. Config fields are set as --config.section.field=VALUE."
            )
        field, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            if not words or words[0].startswith("--"):
                raise InputError(f"{word} needs a value, as in {word}=VALUE.")
            value = words.pop(0)
        values[field] = value
    return values


def _run(words: Sequence[str]) -> int:
    """Parse the words and call the verb's handler."""
    # argparse would list all verbs; `unknown` suggests the one that was meant.
    if words and not words[0].startswith("-") and words[0] not in EXAMPLES:
        raise unknown("verb", words[0], EXAMPLES)
    top = parser()
    # The fields of a config are not arguments of the parser, which would have to import the tasks
    # and their packages to know them.
    arguments, extra = top.parse_known_args(words)
    if arguments.version:
        print(__version__)
        return 0
    if arguments.verb is None:
        top.print_help()
        return USER_ERROR
    if extra and arguments.verb in WITHOUT_CONFIG:
        raise InputError(
            f"unknown argument {extra[0]!r}: dartformer {arguments.verb} reads no config."
        )
    values = overrides(extra)
    _prepare_process(arguments)
    if getattr(arguments, "hosts", None):
        from dartformer.cli import processes

        return processes.run(arguments, words, lambda: _handled(arguments, values))
    return _handled(arguments, values)


def _handled(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    """The exit code of the verb."""
    with _loading(arguments):
        handler = _handler(arguments.verb)
    with _quiet(arguments.quiet):
        return handler(arguments, values)


PATIENCE = 3.0
"""Seconds that importing JAX and the verb may take before a line says so."""


@contextlib.contextmanager
def _loading(arguments: argparse.Namespace) -> Iterator[None]:
    """Say what takes long where the machine is busy: imports print nothing themselves."""
    line = f"dartformer {arguments.verb}: loading"
    timer = threading.Timer(PATIENCE, note, [line])
    timer.daemon = True
    if not arguments.quiet and hosts.chief():
        timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _handler(verb: str) -> Handler:
    module, function = HANDLERS[verb].split(".")
    handler: Handler = getattr(importlib.import_module(f"dartformer.cli.{module}"), function)
    return handler


def _prepare_process(arguments: argparse.Namespace) -> None:
    """Settings of the allocator, of XLA and of the cache, which must come before JAX is imported."""
    from dartformer.machine.start import prepare_process

    prepare_process()
    if getattr(arguments, "no_compile_cache", False):
        from dartformer.machine.compile_cache import VARIABLE

        os.environ[VARIABLE] = "off"


@contextlib.contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """Hide progress inside the block, if `quiet`."""
    if not quiet:
        yield
        return
    from dartformer.machine import progress

    with progress.quiet():
        yield


def _exit_code(error: Exception, words: Sequence[str]) -> int:
    """Print the error as one line and return its exit code."""
    if isinstance(error, InputError):
        return _fail(str(error), USER_ERROR)
    if hosts.count() > 1 and _is_lost(error):
        reason = " ".join(str(error).split())[:200]
        _fail(
            f"another process of the run is gone ({reason}). Run the same command again to continue.",
            UNEXPECTED,
        )
        hosts.leave(UNEXPECTED)
    # Imported only once something failed, because it brings JAX.
    from dartformer.machine.workdir import IMPOSSIBLE
    from dartformer.sweeps.supervise import TaskFailed
    from dartformer.training.loop import Diverged, Interrupted

    if isinstance(error, Interrupted):
        command = shlex.join(["dartformer", *words])
        lines = f"dartformer: {error}\ndartformer: {command}"
        if hosts.says_first(str(error)):
            print(printable(lines), file=sys.stderr)
        return 128 + error.signal
    if isinstance(error, Diverged):
        return _fail(str(error), DIVERGED)
    if isinstance(error, TaskFailed):
        return _fail(str(error), UNEXPECTED)
    if disk_full(error):
        _fail(
            "no space left on the device. The last checkpoint is intact. Free some space and run "
            "the same command again.",
            USER_ERROR,
        )
        # The exit handlers of libraries would fail for lack of space too, with tracebacks.
        os._exit(USER_ERROR)
    if isinstance(error, OSError) and error.errno in IMPOSSIBLE:
        # Of a file that is renamed, the new name is the one that the user knows.
        file = error.filename2 or error.filename or "a file"
        return _fail(f"cannot use {file}: {error.strerror}.", USER_ERROR)
    lacking = out_of_memory(error)
    if lacking is not None:
        return _fail(f"{lacking} {_less_memory(words)}", USER_ERROR)
    # A file that cannot be read or written, wherever that was tried: --debug says where.
    if isinstance(error, OSError) and error.filename is not None:
        return _fail(f"{error.strerror}: {error.filename}", USER_ERROR)
    text = f"unexpected {type(error).__name__}: {str(error)[:500]}"
    if "--debug" not in words:
        text += " (rerun with --debug for the traceback)"
    return _fail(text, UNEXPECTED)


def _is_lost(error: Exception) -> bool:
    """Whether an error of JAX's runtime says that devices or processes did not meet."""
    from jax.errors import JaxRuntimeError

    return isinstance(error, JaxRuntimeError)


def _less_memory(words: Sequence[str]) -> str:
    """What to lower so that the command needs less memory."""
    if "predict" in words[:1]:
        return "Lower --batch, or pass shorter inputs."
    if "profile" in words[:1]:
        return "Lower --batch or --length."
    return (
        "Lower data.batch_size or data.eval_batch_size, the length of the examples, or the size of "
        "the model, or raise data.accumulate. A search needs less with fewer candidates or a "
        "larger search.partial."
    )


def _fail(text: str, code: int) -> int:
    """Print one line on standard error and return the code."""
    # Errors of libraries have many lines; --debug shows them whole.
    line = f"dartformer: error: {' '.join(text.split())}"
    if hosts.says_first(line):
        note(line)
    return code
