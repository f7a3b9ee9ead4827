"""Refuse phrases that the style page of CONTRIBUTING.md rules out, wherever a person reads them."""

import ast
import io
import json
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

REFUSED = {
    r"\bdear(er|est|ly)?\b": "expensive",
    r"\b(mend|mends|mended|mending)\b": "fix",
    r"\banew\b": "again",
    r"\b(to be|had to be|can(not)? be|could(n't| not)? be) had\b": "available",
    r"\bbeneath it\b": "below it, or name it",
    r"\bif nothing is (said|asked|given)\b": "default: X",
    r"\bnone that\b": "no ... that",
    r"\bcannot be taken with\b": "does not work with",
    r"\b(is|are|was|were) asked for\b": "say what the user does",
    r"\bstands? where\b": "is where",
    r"\bfor want of\b": "because ... is missing",
    r"\bas it were\b": "",
    r"\bof one's own\b": "your own",
}
"""Pattern and what to write instead."""

PAGES = [
    *ROOT.glob("*.md"),
    *ROOT.glob("*.cff"),
    *(ROOT / "docs").glob("*.md"),
    *(ROOT / "experiments").rglob("*.md"),
    *(ROOT / "tests/oracles").glob("*.md"),
    *(ROOT / ".github").rglob("*.*"),
    *(ROOT / "dartformer/report/templates").iterdir(),
    ROOT / "Makefile",
    ROOT / "setup.cfg",
    ROOT / "mkdocs.yml",
]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = [
    *sorted((ROOT / "dartformer").rglob("*.py")),
    *sorted((ROOT / "experiments").rglob("*.py")),
    *sorted((ROOT / "search_spaces").glob("*.py")),
    *sorted((ROOT / "docs").glob("*.py")),
]


def refused(text):
    """The refused phrases of a text, whatever its line breaks."""
    text = re.sub(r"\s+", " ", text)
    hits = []
    for pattern, better in REFUSED.items():
        for match in re.finditer(pattern, text, re.IGNORECASE):
            around = text[max(0, match.start() - 40) : match.end() + 40]
            hits.append(f"...{around}... (better: {better})")
    return hits


def prose(page):
    """A page without its code blocks and without the style page's examples."""
    text = page.read_text("utf-8")
    if page.name == "CONTRIBUTING.md":
        before, after = text.split("| instead of | write |")
        text = before + after[after.index("\n\n") :]
    if page.suffix == ".md":
        text = re.sub(r"```.*?```", "", text, flags=re.S)
    return text


def words(module):
    """What people read of a module: its text literals, docstrings among them, and its comments."""
    source = module.read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value
    comments = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments.append(token.string.lstrip("# "))
    yield " ".join(comments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_the_words_of_a_page(page):
    assert refused(prose(page)) == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_the_words_of_a_notebook(notebook):
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    text = " ".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    assert refused(text) == []


def test_the_words_of_the_code():
    hits = []
    for module in MODULES:
        for text in words(module):
            hits += [f"{module.relative_to(ROOT)}: {hit}" for hit in refused(text)]
    assert not hits, "\n".join(hits)


def test_it_refuses_what_it_should():
    assert refused("A program is compiled\nanew where nothing could be had.")
    assert refused("the dearest of them")
    assert not refused("The amended program takes a dozen items.")
