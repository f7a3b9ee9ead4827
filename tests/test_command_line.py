"""The command line's help and examples, its one-line errors, --quiet, completion and doctor."""

import errno
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from dartformer import stages
from dartformer.cli import completion, doctor, exhaustion, grammar, listing, predict
from dartformer.cli.grammar import EXAMPLES, parser
from dartformer.cli.main import HANDLERS, main
from dartformer.errors import InputError
from dartformer.machine.progress import Bar, console, say
from dartformer.machine.workdir import write_text

VERBS = next(a for a in parser()._actions if a.dest == "verb").choices


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_examples_that_parse(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([verb, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    for example in EXAMPLES[verb]:
        assert f"  {example}\n" in shown
        words = shlex.split(example.removeprefix("source <(").removesuffix(")"))
        words = words[: next((i for i, w in enumerate(words) if w in "<>"), None)]
        assert words[:2] == ["dartformer", verb]
        arguments, extra = parser().parse_known_args(words[1:])
        assert arguments.verb == verb
        assert all(one.startswith("--config.") for one in extra)


def test_every_verb_has_a_handler():
    assert list(HANDLERS) == list(VERBS) == list(EXAMPLES)


def test_exit_codes_are_documented(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for code in (
        0,
        grammar.FAILED_CHECK,
        grammar.USER_ERROR,
        grammar.DIVERGED,
        grammar.UNEXPECTED,
    ):
        assert f"\n  {code}  " in shown


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["serach"], "unknown verb 'serach'. Did you mean 'search'?"),
        (["run", "--workdir=x"], "required: --config. See dartformer run --help."),
        (["list", "attention"], "invalid choice: 'attention'"),
        (["predict", "x", "--batch=y", "--text=z"], "argument --batch: invalid int value: 'y'"),
    ],
)
def test_what_cannot_be_parsed_is_one_line(given, message, capsys):
    assert main(given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("dartformer: error: ")
    assert message in err


def test_an_error_is_one_line_and_a_traceback_where_asked(capsys, monkeypatch):
    errors = [ZeroDivisionError("two\nlines"), KeyboardInterrupt()]

    def fail(arguments, values):
        raise errors[0]

    monkeypatch.setattr(listing, "command", fail)
    assert main(["list", "tasks"]) == grammar.UNEXPECTED
    assert capsys.readouterr().err == (
        "dartformer: error: unexpected ZeroDivisionError: two lines "
        "(rerun with --debug for the traceback)\n"
    )
    assert main(["list", "tasks", "--debug"]) == grammar.UNEXPECTED
    err = capsys.readouterr().err
    assert err.startswith("Traceback")
    assert err.endswith("error: unexpected ZeroDivisionError: two lines\n")
    errors.pop(0)
    assert main(["list", "tasks"]) == 130
    assert "To continue: dartformer list tasks\n" in capsys.readouterr().err


def _raising(error):
    def fail(arguments, values):
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "size"),
    [
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 274877906944 bytes."),
            "256 GiB",
        ),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 2.50GiB."),
            "2.5 GiB",
        ),
        (RuntimeError("RESOURCE_EXHAUSTED: Failed to allocate request for 8.00GiB (1B)"), "8 GiB"),
        (
            RuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.5G of"
            ),
            "20.5 GiB",
        ),
        (MemoryError("Unable to allocate 512. MiB for an array with shape (1,)"), "512 MiB"),
        (MemoryError(), None),
        (MemoryError("Unable to allocate 8.00 PiB for an array with shape (1,)"), "8 PiB"),
        (RuntimeError("std::bad_alloc"), None),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), None),
    ],
)
def test_out_of_memory_is_one_line_with_the_size_and_a_remedy(error, size, capsys, monkeypatch):
    monkeypatch.setattr(listing, "command", _raising(error))
    assert main(["list", "tasks"]) == grammar.USER_ERROR
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    expected = "out of memory."
    if size is not None:
        expected = f"out of memory: cannot allocate {size}."
    assert err.startswith(f"dartformer: error: {expected} Lower data.batch_size or ")
    assert "disk" not in err
    assert "space" not in err


@pytest.mark.parametrize(
    "error",
    [
        ValueError("Maximum allowed dimension exceeded"),
        ValueError("array is too big; `arr.size * arr.dtype.itemsize` is larger than"),
        OverflowError("cannot fit 'int' into an index-sized integer"),
        OverflowError("Python int too large to convert to C ssize_t"),
    ],
)
def test_a_size_beyond_64_bits_is_out_of_memory(error):
    assert exhaustion.out_of_memory(error).startswith("out of memory")
    assert exhaustion.out_of_memory(ValueError("a value")) is None


def test_a_circle_of_errors_ends():
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert exhaustion.out_of_memory(first) is None


@pytest.mark.parametrize("kind", [IsADirectoryError, NotADirectoryError, PermissionError])
def test_a_path_that_cannot_be_used_is_the_users(kind, capsys, monkeypatch):
    numbers = {IsADirectoryError: errno.EISDIR, NotADirectoryError: errno.ENOTDIR}
    error = kind(numbers.get(kind, errno.EACCES), "not possible", "tmp", None, "page.html")
    monkeypatch.setattr(listing, "command", _raising(error))
    assert main(["list", "tasks"]) == grammar.USER_ERROR
    assert capsys.readouterr().err == "dartformer: error: cannot use page.html: not possible.\n"


@pytest.mark.parametrize("name", ["folder", "file/page.html", "x" * 300])
def test_a_file_that_cannot_be_written(name, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        write_text(tmp_path / name, "text")
    assert len(list(tmp_path.iterdir())) == 2


def test_out_of_memory_in_a_prediction_names_its_option(capsys, monkeypatch):
    monkeypatch.setattr(predict, "command", _raising(MemoryError()))
    assert main(["predict", "exported", "--text=1"]) == grammar.USER_ERROR
    assert "out of memory. Lower --batch" in capsys.readouterr().err


def test_a_full_disk_is_told_from_other_exhausted_resources():
    status = "RESOURCE_EXHAUSTED: Error writing file"
    assert exhaustion.disk_full(OSError(errno.ENOSPC, "full"))
    assert exhaustion.disk_full(ValueError(f"{status}: No space left on device"))
    wrapped = ValueError("cannot save")
    wrapped.__cause__ = OSError(errno.ENOSPC, "full")
    assert exhaustion.disk_full(wrapped)
    assert exhaustion.out_of_memory(wrapped) is None
    memory = RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.")
    assert not exhaustion.disk_full(memory)
    files = RuntimeError("RESOURCE_EXHAUSTED: Too many open files")
    assert not exhaustion.disk_full(files)
    assert exhaustion.out_of_memory(files) is None


def test_stages_report_progress_where_quiet_hides_it():
    """By `say`: a `note` is printed whatever the flags are."""
    modules = Path(stages.__file__).parent.glob("*.py")
    assert not [module.name for module in modules if "import note" in module.read_text()]


def test_quiet_and_without_colours(capsys, monkeypatch):
    """Progress, in words or in bars, is not shown inside a quiet command, and is again after it."""

    def work(arguments, values):
        say("working")
        with Bar("work", 2) as bar:
            bar.update(2, {"loss": 0.5})
        return 0

    monkeypatch.setattr(doctor, "command", work)
    assert main(["doctor", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert console.quiet is False
    assert main(["doctor"]) == 0
    err = capsys.readouterr().err
    assert "working" in err
    assert "s left" in err
    assert main(["list", "tasks"]) == 0
    assert "\x1b" not in capsys.readouterr().out + err


def test_the_doctor(capsys, monkeypatch):
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"]
    assert found["versions"]["jax"]
    assert found["places"]["compile cache"]["free_bytes"] > 0
    assert set(found["extras"]) == set(doctor.EXTRAS)
    monkeypatch.setattr(doctor, "needed", lambda: ["jax", "no-such-thing"])
    monkeypatch.setattr(doctor, "EXTRAS", {"fly": (("no_such_module",), "wings")})
    assert main(["doctor"]) == grammar.FAILED_CHECK
    shown = capsys.readouterr().out
    assert "PROBLEM: no-such-thing is not installed" in shown
    assert "optional: fly is not installed (`pip install 'dartformer[fly]'` adds wings)." in shown


@pytest.mark.parametrize("shell", completion.SCRIPTS)
def test_completion_knows_the_grammar(shell, tmp_path, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for name, _, options, words in completion.grammar():
        for one in (name, *(option.removeprefix("--") for option, _, _ in options), *words):
            assert one in script
    for setting in completion.settings():
        assert all(word in script for word in (setting.flag.removeprefix("--"), *setting.names))
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed: what it makes of the script was not tried")
    (tmp_path / "script").write_text(script)
    subprocess.run([shell, "-n", tmp_path / "script"], check=True)
    if shell == "bash":
        ask = "COMP_WORDS=({0}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _dartformer; echo ${{COMPREPLY[*]}}\n"
        code = script + "".join(
            ask.format(words)
            for words in (
                "dartformer se",
                "dartformer list at",
                "dartformer push --d",
                "dartformer run --config.search.strategy.n",
                "dartformer run --config.search.strategy.name = dar",
                "dartformer push --config.s",
            )
        )
        done = subprocess.run(["bash", "-c", code], check=True, capture_output=True, text=True)
        assert done.stdout.splitlines() == [
            "search selfcheck",
            "attentions",
            "--dry-run --debug",
            "--config.search.strategy.name=",
            "darts",
            "",
        ]


@pytest.mark.parametrize("flags", [["--causal"], ["--linear"], ["--causal", "--linear"]])
def test_attentions_are_listed_by_their_traits(flags, capsys):
    assert main(["list", "attentions", *flags, "--json"]) == 0
    listed = {row["name"] for row in json.loads(capsys.readouterr().out)}
    expected = set()
    for row in listing.rows("attentions"):
        if "--causal" in flags and not row["causal"]:
            continue
        if "--linear" in flags and row["growth"] > 1:
            continue
        expected.add(row["name"])
    assert listed == expected
    assert 0 < len(expected) < len(listing.rows("attentions"))
    assert main(["list", "tasks", *flags]) == 2
    assert "does not work with" in capsys.readouterr().err
