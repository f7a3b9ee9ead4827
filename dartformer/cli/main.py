"""The command line: dartformer VERB --config=FILE --workdir=DIR [--config.a.b=VALUE ...]."""

import argparse
import contextlib
import errno
import json
import os
import shlex
import signal
import sys
import textwrap
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

NOT_FOUND, USER_ERROR, DIVERGED, UNEXPECTED = 1, 2, 3, 4

EXIT_CODES = """exit codes:
  0  done
  1  selfcheck misses an answer, or doctor finds something missing
  2  something you can mend; the line on standard error says what
  3  training diverged; the last good checkpoint is kept
  4  an error in dartformer or beneath it; --debug shows where
  128 + n  stopped by signal n (130: Ctrl-C), everything saved; the same command continues"""

EXAMPLES = {
    "run": (
        "dartformer run --config=my_space.py --workdir=runs/mine",
        "dartformer run --config=my_space.py --workdir=runs/other --config.search.steps=500 --quiet --json",
    ),
    "search": ("dartformer search --config=my_space.py --workdir=runs/mine",),
    "derive": (
        "dartformer derive --config=my_space.py --workdir=runs/mine",
        "dartformer derive --config=my_space.py --workdir=runs/mine --budget=latency_ms=2",
    ),
    "retrain": ("dartformer retrain --config=my_space.py --workdir=runs/mine",),
    "evaluate": ("dartformer evaluate --config=my_space.py --workdir=runs/mine --json",),
    "profile": (
        "dartformer profile --config=my_space.py --workdir=runs/mine",
        "dartformer profile --export=runs/mine/export --batch=8",
    ),
    "export": ("dartformer export --config=my_space.py --workdir=runs/mine --format=onnx,torch",),
    "report": ("dartformer report runs/mine --watch",),
    "compare": ("dartformer compare runs/a runs/b --html=compare.html",),
    "new": (
        "dartformer new --task=listops > my_space.py",
        "dartformer new --data=reviews.csv > my_space.py",
    ),
    "list": ("dartformer list attentions", "dartformer list tasks --json"),
    "selfcheck": ("dartformer selfcheck",),
    "predict": (
        'dartformer predict runs/mine/export --text "[MAX 2 9 ]"',
        "dartformer predict runs/mine/export --jsonl=- < questions.jsonl > answers.jsonl",
    ),
    "push": ("dartformer push runs/mine/export --repo=me/found --dry-run",),
    "doctor": ("dartformer doctor", "dartformer doctor --json"),
    "completion": (
        "source <(dartformer completion bash)",
        "dartformer completion fish > ~/.config/fish/completions/dartformer.fish",
    ),
}
"""What `--help` of a verb ends with."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are those of everything else: one line, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise `InputError`."""
        from dartformer.errors import InputError

        raise InputError(f"{message}. See {self.prog} --help.")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = Parser(
        prog="dartformer",
        description=__doc__,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = top.add_subparsers(dest="verb", metavar="VERB")
    stages = {
        "run": "all stages in order, resuming where an earlier run stopped",
        "search": "search for a mixture of attentions",
        "derive": "the genotype of a finished search",
        "retrain": "train the genotype from scratch",
        "evaluate": "train the baselines, read test, judge",
        "profile": "parameters, FLOPs, latency on this device",
        "export": "write the trained model as a folder",
    }
    for name, text in stages.items():
        verb = verbs.add_parser(
            name,
            help=text,
            description=f"{text}. Any field of the config can be set with "
            "--config.section.field=VALUE.",
        )
        free = name == "profile"  # it can also price what no workdir holds
        verb.add_argument(
            "--config",
            required=not free,
            metavar="FILE",
            help="a config file, see `dartformer new`",
        )
        verb.add_argument(
            "--workdir", required=not free, metavar="DIR", help="where everything is written"
        )
        verb.add_argument(
            "--json", action="store_true", help="print the result as JSON on standard output"
        )
        if name == "derive":
            _budget_arguments(verb)
        verb.add_argument(
            "--no-compile-cache",
            action="store_true",
            help="compile everything anew, and keep nothing of it in the user's cache folder",
        )
        if name == "profile":
            _profile_arguments(verb)
        if name == "export":
            verb.add_argument(
                "--format",
                action="append",
                metavar="NAMES",
                help="further formats, with "
                "commas between: onnx, tensorflow, torch; each needs the extra of its name",
            )
    shown = verbs.add_parser(
        "report",
        help="write report.html, or serve it during a run",
        description="Write "
        "report.html from what a workdir holds so far; every stage does so, too. Another process "
        "may be running in it.",
    )
    shown.add_argument("folder", nargs="?", metavar="DIR", help="the workdir")
    shown.add_argument("--workdir", metavar="DIR", help="the workdir, as with the other verbs")
    shown.add_argument(
        "--config", metavar="FILE", help="refuse a workdir that was made with another config"
    )
    shown.add_argument(
        "--watch",
        nargs="?",
        const="",
        metavar="DIR",
        help="serve the page on this machine alone and "
        "refresh it whenever the run writes something; Ctrl-C stops",
    )
    shown.add_argument(
        "--port",
        type=int,
        default=0,
        help="with --watch: where; 0, the default, is any that is free",
    )
    shown.add_argument(
        "--figures",
        metavar="KIND",
        help="also write every figure to DIR/figures, as pdf, svg or png",
    )
    shown.add_argument("--json", action="store_true", help="print the names of the files as JSON")
    beside = verbs.add_parser(
        "compare",
        help="several runs side by side",
        description="Compare workdirs: seeds and "
        "spread, whether their difference is real, where their genotypes differ.",
    )
    beside.add_argument("folders", nargs="+", metavar="DIR", help="two or more workdirs")
    beside.add_argument("--html", metavar="FILE", help="write a page with overlaid curves")
    beside.add_argument("--json", action="store_true", help="print the comparison as JSON")
    new = verbs.add_parser(
        "new", help="print a starting config", description="Print a config file to start from."
    )
    new.add_argument("--task", help="see `dartformer list tasks`; listops if nothing is said")
    new.add_argument(
        "--size",
        default="small",
        help="'small', for two CPU cores, or 'published', the size that the task is known for",
    )
    new.add_argument(
        "--data",
        metavar="FILE",
        help="your own file or folder: look at it, and write a config that runs "
        "at once. Says what it guessed on standard error",
    )
    new.add_argument(
        "--text",
        metavar="COLUMN",
        action="append",
        help="with --data: the column of texts; twice for two that are compared",
    )
    new.add_argument("--label", metavar="COLUMN", help="with --data: the column of labels")
    new.add_argument(
        "--preset",
        default="recommended",
        help="'recommended', or 'published' for the DARTS paper's",
    )
    new.add_argument("--json", action="store_true", help="print the config's values as JSON")
    listing = verbs.add_parser("list", help="what there is to choose from")
    listing.add_argument("what", choices=("attentions", "strategies", "tasks"))
    listing.add_argument("--json", action="store_true")
    check = verbs.add_parser(
        "selfcheck",
        help="does this installation find answers that are known?",
        description="Search three planted "
        "tasks, whose right attention is known: about a minute on two cores. Exits with 0 if all are found, else 1.",
    )
    check.add_argument("--json", action="store_true")
    predict = verbs.add_parser("predict", help="use an exported model")
    predict.add_argument("folder", help="what `export` wrote")
    source = predict.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--text", action="append", help="a text to classify; may be given several times"
    )
    source.add_argument(
        "--pair", action="append", nargs=2, metavar=("A", "B"), help="two texts to compare"
    )
    source.add_argument(
        "--file",
        help="a file with a text on each line (two, with a tab between them, for a model "
        "that compares two); - for standard input",
    )
    source.add_argument(
        "--jsonl",
        metavar="FILE",
        help='a stream of JSON lines, {"text": "..."}, {"texts": ["...", '
        '"..."]} or {"tokens": [...]}, answered in the same form; - for standard input',
    )
    predict.add_argument(
        "--batch",
        type=int,
        default=64,
        help="with --jsonl: lines that are answered together; 1 "
        "answers each before the next is read",
    )
    predict.add_argument("--device", help="cpu, gpu or tpu; the best there is if nothing is said")
    predict.add_argument("--json", action="store_true")
    push = verbs.add_parser("push", help="upload an exported model to the Hugging Face hub")
    push.add_argument("folder", help="what `export` wrote")
    push.add_argument(
        "--repo", required=True, metavar="OWNER/NAME", help="the model's name on the hub"
    )
    push.add_argument("--private", action="store_true", help="if it is made, for its owner alone")
    push.add_argument(
        "--dry-run",
        action="store_true",
        help="check the folder and say what would be uploaded; needs no network",
    )
    push.add_argument("--json", action="store_true")
    doctor = verbs.add_parser(
        "doctor",
        help="versions, devices, caches, free space, missing extras",
        description="Say "
        "what is installed, what it runs on, where it keeps things, and what a missing extra "
        "would add. Exits with 1 if something needed is missing.",
    )
    doctor.add_argument("--json", action="store_true", help="print it as JSON")
    completion = verbs.add_parser(
        "completion", help="a script that completes commands in your shell"
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    for name, verb in verbs.choices.items():
        verb.formatter_class = argparse.RawDescriptionHelpFormatter
        verb.description = textwrap.fill(verb.description or f"{verbs_help(verbs)[name]}.", 78)
        verb.epilog = "examples:\n" + "\n".join(f"  {example}" for example in EXAMPLES[name])
        verb.add_argument(
            "--quiet", action="store_true", help="no progress: only the result, and errors"
        )
        verb.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return top


def verbs_help(verbs: Any) -> dict[str, str]:
    """The one line of each verb."""
    return {choice.dest: choice.help or "" for choice in verbs._choices_actions}


def _budget_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--budget",
        action="append",
        metavar="KEY=VALUE[,...]",
        help="answer the search again for this "
        "budget, in seconds: latency_ms, parameters, flops, memory_bytes, kv_bytes, at batch, length and "
        "phase; also writes the front of accuracy against cost, pareto.json",
    )
    verb.add_argument(
        "--table",
        metavar="FILE",
        help="measured latencies; the user's cache folder if nothing is said",
    )
    verb.add_argument(
        "--trust-table", action="store_true", help="take it although another device measured it"
    )
    verb.add_argument("--plot", metavar="FILE", help="draw the front: .svg, .png or .pdf")


def _profile_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--genotype",
        metavar="FILE",
        help="price this genotype at the sizes of --config; without it and "
        "without --workdir, the homogeneous models of the config's search space",
    )
    verb.add_argument("--export", metavar="DIR", help="price an exported model; needs no --config")
    verb.add_argument("--batch", type=int, default=1, help="examples at once (1)")
    verb.add_argument(
        "--length",
        default="",
        metavar="N[,N...]",
        help="tokens; several are a sweep. The longest the model takes if nothing is said",
    )
    verb.add_argument(
        "--phase",
        default="forward",
        help="'forward'; 'train', a forward and a backward pass; 'decode', "
        "one more token after --length tokens, by formula",
    )
    verb.add_argument("--repeats", type=int, default=20, help="calls that are timed (20)")
    verb.add_argument("--plot", metavar="FILE", help="draw it: .svg, .png or .pdf")


def formats(given: Sequence[str] | None) -> tuple[str, ...]:
    """The names in `--format=onnx,torch` (which may be given several times), each once."""
    return tuple(
        dict.fromkeys(
            name.strip() for text in given or () for name in text.split(",") if name.strip()
        )
    )


def overrides(extra: Sequence[str]) -> dict[str, str]:
    """`--config.a.b=1` (or `--config.a.b 1`) as `{"a.b": "1"}`; anything else left over is an
    error."""
    from dartformer.errors import InputError

    found, rest = {}, list(extra)
    while rest:
        one = rest.pop(0)
        if not one.startswith("--config."):
            raise InputError(
                f"unknown argument {one!r}. Config fields are set as --config.section.field=VALUE."
            )
        name, equals, value = one.removeprefix("--config.").partition("=")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise InputError(f"{one} needs a value, as in {one}=VALUE.")
            value = rest.pop(0)
        found[name] = value
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    from dartformer.errors import InputError

    given = list(sys.argv[1:] if argv is None else argv)
    debug, again = "--debug" in given, shlex.join(["dartformer", *given])
    try:
        top = parser()
        _known_verb(top, given)
        arguments, extra = top.parse_known_args(given)
        if arguments.version:
            from dartformer._version import __version__

            print(__version__)
            return 0
        if arguments.verb is None:
            top.print_help()
            return USER_ERROR
        from dartformer.machine.allocator import keep_freed_memory
        from dartformer.machine.xla_flags import protect

        keep_freed_memory()
        protect(may_probe=True)
        with _quiet(arguments.quiet):
            return _dispatch(arguments, extra)
    except InputError as error:
        if debug:
            traceback.print_exc()
        return _fail(str(error), USER_ERROR)
    except BrokenPipeError:
        os.dup2(
            os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno()
        )  # so that closing it is quiet too
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        return _fail(f"stopped; what was saved is kept. To continue: {again}", 128 + signal.SIGINT)
    except Exception as error:
        if debug:
            traceback.print_exc()
        from dartformer.training.loop import Diverged, Interrupted

        if isinstance(error, Interrupted):
            print(f"dartformer: {error}\ndartformer: {again}", file=sys.stderr)
            return 128 + error.signal
        if isinstance(error, Diverged):
            return _fail(str(error), DIVERGED)
        if _no_space(error):
            _fail(
                "no space left on the device. The last checkpoint is intact: free some space and run the same "
                "command again.",
                USER_ERROR,
            )
            os._exit(
                USER_ERROR
            )  # libraries' exit handlers would fail for want of space too, with tracebacks
        return _fail(
            f"unexpected {type(error).__name__}: {str(error)[:500]}"
            + ("" if debug else " (the same command with --debug shows where)"),
            UNEXPECTED,
        )


def _known_verb(top: argparse.ArgumentParser, given: Sequence[str]) -> None:
    """Raise `InputError`, with the nearest name, for a verb that there is not."""
    verbs = next(a for a in top._actions if isinstance(a, argparse._SubParsersAction)).choices
    if given and not given[0].startswith("-") and given[0] not in verbs:
        from dartformer.errors import unknown

        raise unknown("verb", given[0], verbs)


@contextlib.contextmanager
def _quiet(quiet: bool) -> Iterator[None]:
    """No progress inside, if `quiet`."""
    if not quiet:
        yield
        return
    from dartformer.machine.progress import console

    console.quiet = True
    try:
        yield
    finally:
        console.quiet = False


def _fail(text: str, code: int) -> int:
    print("dartformer: error: " + " ".join(text.split()), file=sys.stderr)
    return code


def _no_space(error: BaseException | None) -> bool:
    while error is not None:
        if (
            (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT))
            or "No space left on device" in str(error)
            or "RESOURCE_EXHAUSTED" in str(error)
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def _dispatch(arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    if getattr(arguments, "no_compile_cache", False):
        from dartformer.machine.compile_cache import VARIABLE

        os.environ[VARIABLE] = "off"
    if arguments.verb == "new":
        return _new(arguments, overrides(extra))
    others = {
        "list": _list,
        "predict": _predict,
        "selfcheck": _selfcheck,
        "push": _push,
        "doctor": _doctor,
        "completion": _completion,
    }
    if arguments.verb in others:
        overrides(extra and [f"{extra[0]}"])
        return others[arguments.verb](arguments)
    if arguments.verb == "report":
        return _report(arguments, extra)
    if arguments.verb == "compare":
        if extra:
            from dartformer.errors import InputError

            raise InputError(f"unknown argument {extra[0]!r}: compare reads workdirs as they are.")
        return _compare(arguments)
    if arguments.verb == "profile":
        return _profile(arguments, overrides(extra))
    if arguments.verb == "derive" and (
        arguments.budget or arguments.table or arguments.trust_table or arguments.plot
    ):
        return _derive_within(arguments, overrides(extra))
    from dartformer.config import load_config

    config = load_config(arguments.config, overrides(extra))
    from dartformer import api
    from dartformer.stages.study import Run

    if arguments.verb == "run":
        data = api.run_all(config, arguments.workdir)
    else:
        with Run(config, arguments.workdir) as run:
            if arguments.verb == "export":
                data = api.do(run, "export", formats=formats(arguments.format))
            else:
                data = api.do(run, arguments.verb)
    if arguments.json:
        _print_json(data)
    else:
        from dartformer.cli import terminal

        terminal.show(arguments.verb, data, Path(arguments.workdir))
    return 0


def _derive_within(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    from dartformer.config import load_config
    from dartformer.cost.budget import Budget, parse
    from dartformer.errors import InputError

    if not arguments.budget:
        raise InputError("--table, --trust-table and --plot go with --budget.")
    given = parse(arguments.budget)
    given.update({"table": arguments.table} if arguments.table else {})
    given.update({"trust_table": True} if arguments.trust_table else {})
    budget = Budget.of(given, "--budget")
    config = load_config(arguments.config, values)
    from dartformer.machine import compile_cache

    compile_cache.use()
    from dartformer import api
    from dartformer.cli import terminal
    from dartformer.report import plots
    from dartformer.stages.study import Run

    with Run(config, arguments.workdir) as run:
        data = api.derive_within(run, budget)
    if arguments.plot:
        plots.save(plots.pareto(data), arguments.plot)
    if arguments.json:
        _print_json(data)
    else:
        terminal.show_budget(data, Path(arguments.workdir))
    return 0


def _report(arguments: argparse.Namespace, extra: Sequence[str]) -> int:
    from dartformer.errors import InputError

    values = overrides(extra)
    named = [name for name in (arguments.folder, arguments.workdir, arguments.watch) if name]
    if len(named) != 1:
        raise InputError(f"report takes one workdir, got {', '.join(named) or 'none'}.")
    if values and arguments.config is None:
        raise InputError(
            "--config.section.field=VALUE changes a config: give it with --config=FILE."
        )
    if arguments.watch is None and arguments.port:
        raise InputError("--port is where --watch serves: give both.")
    from dartformer.cli import terminal
    from dartformer.report import page as report

    if arguments.config is not None:
        from dartformer.config import load_config
        from dartformer.stages.study import Run

        with Run(load_config(arguments.config, values), named[0]):
            pass
    files = []
    if arguments.figures is not None:
        from dartformer.report import figures

        files = figures.save(named[0], arguments.figures)
    if arguments.watch is not None:
        from dartformer.report.watch import watch

        try:
            watch(named[0], arguments.port)
        except KeyboardInterrupt:
            return 0
    report.report(named[0])
    data = {"file": str(Path(named[0]) / "report.html"), "figures": [str(f) for f in files]}
    if arguments.json:
        _print_json(data)
    else:
        terminal.show_report(named[0])
        print("".join(f"wrote {f}\n" for f in [data["file"], *data["figures"]]), end="")
    return 0


def _compare(arguments: argparse.Namespace) -> int:
    from dartformer.cli import terminal
    from dartformer.report import compare

    data = compare.compare(arguments.folders)
    if arguments.html:
        compare.write(data, arguments.html)
    if arguments.json:
        _print_json(data)
    else:
        terminal.show_comparison(data)
        if arguments.html:
            print(f"wrote {arguments.html}")
    return 0


def _profile(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    from dartformer.cli import terminal
    from dartformer.config import load_config
    from dartformer.errors import InputError
    from dartformer.stages import profile
    from dartformer.stages.study import Run

    asked = [name for name in ("workdir", "genotype", "export") if getattr(arguments, name)]
    if len(asked) > 1:
        raise InputError(f"--{asked[0]} and --{asked[1]} are two things to profile: give one.")
    if arguments.export and (arguments.config or values):
        raise InputError("an export has its own config: leave --config out.")
    if not arguments.export and not arguments.config:
        raise InputError(
            "profile needs --config (with --workdir, --genotype or neither), or --export."
        )
    at = profile.At(
        arguments.batch, profile.parse_lengths(arguments.length), arguments.phase, arguments.repeats
    )
    from dartformer.machine import compile_cache

    compile_cache.use()
    if arguments.export:
        from dartformer.export.load import load

        model = load(arguments.export).model
        data = profile.profile_all(model.shape, {"exported": model.genotype}, at, True)
    else:
        config = load_config(arguments.config, values)
        if arguments.workdir:
            with Run(config, arguments.workdir) as run:
                data = profile.profile(run, run.genotype(), at, detail=True)
        else:
            given = (
                {"given": profile.read_genotype(arguments.genotype)} if arguments.genotype else {}
            )
            data = profile.profile_asked(config, given, at)
    if arguments.plot:
        from dartformer.report import plots

        plots.save(plots.profile(data), arguments.plot)
    if arguments.json:
        _print_json(data)
    else:
        terminal.show_profile(data)
    return 0


def _print_json(data: Any) -> None:
    from dartformer.machine.workdir import jsonable

    print(json.dumps(jsonable(data), indent=2))


def _new(arguments: argparse.Namespace, values: dict[str, str]) -> int:
    from dartformer import config as configs
    from dartformer.errors import InputError

    if arguments.data:
        from dartformer.cli.new import for_data

        if arguments.task not in (None, "files") or arguments.preset != "recommended":
            raise InputError(
                "--data writes a config of the task files with the recommended preset: leave --task and "
                "--preset out."
            )
        text, values, found = for_data(
            arguments.data, arguments.text or (), arguments.label or "", values
        )
        print(
            "".join(f"guessed: {sentence}\n" for sentence in found.sentences),
            end="",
            file=sys.stderr,
        )
        task = "files"
    elif arguments.text or arguments.label:
        raise InputError("--text and --label name columns of a file: give it with --data FILE.")
    else:
        from dartformer.cli.new import starter

        task = arguments.task or "listops"
        text = starter(task, arguments.preset, values, size=arguments.size)
    if arguments.json:
        config = configs.defaults(task, preset=arguments.preset)
        configs.override(config, values)
        _print_json(configs.to_dict(config))
    else:
        print(text, end="")
    return 0


def _list(arguments: argparse.Namespace) -> int:
    from dartformer.cli import listing

    rows = listing.rows(arguments.what)
    if arguments.json:
        _print_json(rows)
    else:
        listing.show(arguments.what, rows)
    return 0


def _selfcheck(arguments: argparse.Namespace) -> int:
    from dartformer.machine import compile_cache

    compile_cache.use()
    from dartformer.cli import terminal
    from dartformer.cli.selfcheck import selfcheck

    found = selfcheck(report=None if arguments.json else terminal.show_check)
    if arguments.json:
        _print_json(found)
    else:
        print(f"{'passed' if found['passed'] else 'FAILED'} in {found['seconds']:.0f} s")
    return 0 if found["passed"] else NOT_FOUND


def _predict(arguments: argparse.Namespace) -> int:
    from dartformer.errors import InputError
    from dartformer.export.load import load

    served = load(arguments.folder, arguments.device)
    if arguments.jsonl is not None:
        return _predict_jsonl(arguments, served)
    pairs = served.model.shape.inputs == 2
    texts: list[Any]
    if pairs != (arguments.pair is not None) and arguments.file is None:
        raise InputError(
            "this model compares two texts: give them as --pair A B."
            if pairs
            else "this model reads one text: give it as --text."
        )
    if arguments.text is not None or arguments.pair is not None:
        texts = arguments.text or arguments.pair
    else:
        try:
            data = (
                sys.stdin.buffer.read()
                if arguments.file == "-"
                else Path(arguments.file).read_bytes()
            )
            texts = [line for line in data.decode("utf-8").splitlines() if line.strip()]
        except OSError as error:
            raise InputError(f"cannot read {arguments.file}: {error.strerror}.") from None
        except UnicodeDecodeError as error:
            raise InputError(
                f"{arguments.file} is not UTF-8 text: {error.reason} at byte {error.start}."
            ) from None
        if pairs:
            texts = [line.split("\t") for line in texts]
            for i, one in enumerate(texts, 1):
                if len(one) != 2:
                    raise InputError(
                        f"{arguments.file}: text {i} must be two texts with one tab between them."
                    )
    answers = served(texts)
    if arguments.json:
        _print_json([{"text": text, **answer} for text, answer in zip(texts, answers, strict=True)])
    else:
        for text, answer in zip(texts, answers, strict=True):
            text = "\t".join(text) if pairs else text
            if "value" in answer:
                print(f"{answer['value']:.6g}\t{text}")
            elif isinstance(answer["label"], list):  # one for each token
                print(f"{' '.join(answer['label'])}\t{min(answer['probability']):.3f}\t{text}")
            else:
                print(f"{answer['label']}\t{answer['probability']:.3f}\t{text}")
    return 0


def _predict_jsonl(arguments: argparse.Namespace, served: Any) -> int:
    from dartformer.errors import InputError
    from dartformer.export.predict import stream
    from dartformer.machine.workdir import jsonable

    failed = total = 0
    try:
        with contextlib.ExitStack() as stack:
            source = (
                sys.stdin
                if arguments.jsonl == "-"
                else stack.enter_context(open(arguments.jsonl, encoding="utf-8"))
            )
            for answer in stream(served, source, arguments.batch):
                print(json.dumps(jsonable(answer), ensure_ascii=False), flush=True)
                failed, total = failed + ("error" in answer), total + 1
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise InputError(f"cannot read {arguments.jsonl}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InputError(
            f"{arguments.jsonl} is not UTF-8 text: {error.reason} at byte {error.start}."
        ) from None
    if failed:
        raise InputError(f"{failed} of {total} lines could not be read; their 'error' says why.")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from dartformer.export.push import push

    found = push(
        arguments.folder, arguments.repo, private=arguments.private, dry_run=arguments.dry_run
    )
    if arguments.json:
        _print_json(found)
    else:
        for name, size in found["files"].items():
            print(f"{size:>12,}  {name}")
        print(
            f"{'uploaded to' if found['uploaded'] else 'dry run: nothing was sent; would upload to'} {found['url']}"
        )
    return 0


def _doctor(arguments: argparse.Namespace) -> int:
    from dartformer.cli import doctor

    found = doctor.examine()
    if arguments.json:
        _print_json(found)
    else:
        print(doctor.text(found))
    return NOT_FOUND if found["problems"] else 0


def _completion(arguments: argparse.Namespace) -> int:
    from dartformer.cli.completion import script

    print(script(arguments.shell, parser()), end="")
    return 0
