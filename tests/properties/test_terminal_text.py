"""Whatever a text from a file holds, the terminal is sent nothing but characters to be read."""

import ast
import contextlib
import io
import json
import re
import unicodedata
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

import dartformer
from dartformer.cli import main, terminal
from dartformer.cli.output import print_json
from dartformer.cli.predict import Input, _line
from dartformer.errors import InputError
from dartformer.machine import printable, progress
from dartformer.machine.console import Console
from dartformer.report.compare import Compared, Differences, Entry, Pair
from dartformer.results import Diagnostics, Finding, Limit, Results

CONTROLS = "\x00\x07\x08\x1b\x7f\x85\x9b\r\n\t\u00ad\u200b\u200e\u202e\u2028\u2066\ufeff\ud800"
SEQUENCES = ("\x1b[2J", "\x1b]0;title\x07", "\x1b]52;c;Y3VybA==\x1b\\", "\x9b2J", "[bold]", "[/]")

texts = st.lists(
    st.one_of(st.sampled_from(CONTROLS), st.sampled_from(SEQUENCES), st.text(max_size=8)),
    max_size=8,
).map("".join)

LIMIT = {
    "quantity": "",
    "limit": 1.0,
    "predicted": 2.0,
    "measured": 3.0,
    "slack": -1.0,
    "met": False,
    "aimed": 1.0,
}

OWN = re.compile(r"\x1b\[(\?25[lh]|[0-9;]*m|1A|2K)|\r")
"""What rich writes to draw a bar again: cursor, colors, the line above, and its deletion."""

examples = settings(derandomize=True, deadline=None, max_examples=60)


def sent(function, *arguments):
    """What a function prints to standard output and standard error."""
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        function(*arguments)
    return stream.getvalue()


def require_plain(text):
    for character in text:
        assert character in "\n\t" or unicodedata.category(character) not in printable.HIDDEN, (
            character
        )
    text.encode()  # halves of a pair have no bytes


def compared(text):
    entry = Entry(text, text, text, text, 0.5, 0.1, (0.5,), (0,), 8, 0.1, 10, 1.0, 2.0)
    pair = Pair(text, text, text, text, None, Differences(1, 2, (text,)), False)
    return Compared("accuracy", (entry, entry), (pair,))


def redraw(text):
    """The bar of a terminal, drawn once."""
    progress.console._force_terminal, before = True, progress.console._force_terminal
    try:
        with progress.Bar(text, 1) as bar:
            bar.update(1, {text: text})
    finally:
        progress.console._force_terminal = before


def results(text):
    finding = Finding(text, 0.5, 0.5, text, False, text)
    scored = {
        "test": {"accuracy": 0.5, "spread": 0, "per_seed": [0.5], "loss": 1, "examples": 8},
        "valid": {"accuracy": 0.5, "per_seed": [0.5]},
        "parameters": 1,
        "flops": 1.0,
        "steps": 8,
        "genotype": {"format": 1, "layers": [[text, "full"], ["full", text]]},
    }
    whole = {"task": text, "metric": "accuracy", "seeds": [0], **scored}
    whole |= {"verdict": [text], "ties": [text], "seconds": {text: 1.0}}
    whole |= {"baselines": {text: scored, "majority": {"test": {"accuracy": 0.1}}}}
    record = Results.from_dict(whole)
    diagnostics = Diagnostics.from_dict(
        {"findings": [finding.to_dict()], "verdicts": [text], "genotype": scored["genotype"]}
    )
    return record, diagnostics


@examples
@given(texts)
def test_what_verbs_show(text):
    console = Console()
    record, diagnostics = results(text)
    limit = Limit.from_dict(LIMIT | {"quantity": text})
    for output in (
        sent(terminal.say, console, text),
        sent(console.print, terminal.drawing([[text, "full"]])),
        sent(terminal.show_comparison, compared(text)),
        sent(terminal._show_results, console, record, Path(text.replace("\0", ""))),
        sent(terminal._show_findings, console, diagnostics),
        sent(terminal._show_ties, console, [text]),
        sent(terminal.show_limits, console, [limit]),
        sent(progress.say, text),
        sent(printable.note, text),
        sent(main._fail, text, 2),
        sent(main._exit_code, InputError(text), []),
        sent(main._exit_code, ValueError(text), []),
    ):
        require_plain(output)
    bar = progress.Bar(text, 1)
    require_plain(sent(bar.update, 1, {text: text}))
    require_plain(OWN.sub("", sent(redraw, text)))


@examples
@given(texts)
def test_what_predict_and_json_show(text):
    answers = ({"label": text, "probability": 0.5}, {"label": [text], "probability": [0.5]})
    for answer in answers:
        require_plain(printable.printable(_line(Input(text), answer)))
    data = {text: [text]}
    output = sent(print_json, data)
    require_plain(output)
    assert json.loads(output) == data
    dumped = printable.printable_json(json.dumps(data, ensure_ascii=False))
    require_plain(dumped)
    assert json.loads(dumped) == data


@examples
@given(texts)
def test_one_line_is_one_and_repeats_nothing(text):
    line = printable.one_line(text)
    assert len(line.splitlines()) <= 1
    assert printable.one_line(line) == line


def test_readable_text_stays_as_it_is():
    for text in ("naïve, 日本語 שלום عربي", "a\tb\nc", "🙂 100% – ok"):
        assert printable.printable(text) == text
    assert printable.printable("\x1b[2J\u202e") == "\\x1b[2J\\u202e"


def test_everything_is_printed_through_these():
    """A `print` of the package prints a constant, or what `printable` returned; consoles are ours."""
    package = Path(dartformer.__file__).parent
    safe = {"printable", "printable_json", "one_line", "_json_line"}
    for file in package.rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "rich.console":
                assert "Console" not in {name.name for name in node.names}, file
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
                continue
            if node.func.id != "print" or {"conformance", "accelerators"} & set(file.parts):
                continue  # a process of these answers its parent in JSON, and no terminal
            (argument,) = node.args
            names = {n.id for n in ast.walk(argument) if isinstance(n, ast.Name)}
            assert names & safe or not names - CONSTANT, f"{file}: {ast.unparse(node)}"


CONSTANT = {"__version__", "outcome", "result", "script", "arguments", "line"}
"""Names in what is printed as it is: texts of this package, and a line that is safe already."""
