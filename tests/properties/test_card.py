"""A model card shows texts from data and plug-ins as they are, and an export names no folder."""

import html
import re
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from dartformer import config as configs
from dartformer.config.places import own_name
from dartformer.errors import HEAD, TAIL, InputError, unknown
from dartformer.export.card import markdown
from dartformer.machine.printable import one_line

PIECES = (
    "<script>alert(1)</script>",
    "<img src=x onerror=y>",
    "[a](javascript:b)",
    "![a](http://b)",
    "**a**",
    "_b_",
    "`c`",
    "~~d~~",
    "| e |",
    "# f",
    "1. g",
    "- h",
    "&lt;",
    "\\",
    "https://example.org",
    "www.example.org",
    "<!--",
    "\n\n",
    "```",
    "uniform_mixing",
    "\x1b[2J",
)
texts = st.lists(st.one_of(st.sampled_from(PIECES), st.text(max_size=6)), max_size=6).map("".join)
examples = settings(derandomize=True, deadline=None, max_examples=100)
READER = MarkdownIt("gfm-like", {"html": True, "linkify": False})


@examples
@given(texts)
def test_a_text_is_shown_as_it_is(text):
    for before, tags in (("* x ", "ul|li"), ("Classes: ", "p"), ("* ", "ul|li")):
        page = READER.render(f"{before}{markdown(text)}.")
        shown = re.sub(rf"</?(?:{tags})>", "", page)
        assert "<" not in shown, page
        expected = f"{before}{one_line(text)}.".removeprefix("* ")
        assert " ".join(html.unescape(shown).split()) == " ".join(expected.split())


@examples
@given(texts)
def test_a_text_stays_in_its_cell(text):
    page = READER.render(f"| a | b |\n|---|---|\n| {markdown(text)} | 1 |\n| c | 2 |")
    assert page.count("<td>") == 4
    assert "<td>1</td>" in page
    assert not re.search(r"<(?!/?(?:table|thead|tbody|tr|th|td)>)", page)


def test_names_stay_readable():
    assert markdown("uniform_mixing") == "uniform_mixing"
    assert markdown("homogeneous.local(window=4)") == "homogeneous.local(window=4)"


@examples
@given(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=5), st.sampled_from("/\\"))
def test_a_place_is_its_own_name(parts, separator):
    name = own_name(separator + separator.join(parts))
    assert "/" not in name
    assert "\\" not in name


def test_places_of_a_config():
    home = str(Path.home())
    config = configs.defaults("listops").to_dict()
    config["data"]["dir"] = f"{home}/secret/data/"
    config["task"] = {"name": "files", "path": "C:\\Users\\ann\\a.csv", "valid": "../b/v.csv"}
    config["task"] |= {"label_names": ("/r/python", "km/h"), "test": "", "folder_of_plugin": home}
    config["search"]["budget"] = {"table": "/mnt/x/prices.json", "latency_ms": 1.0}
    public = configs.without_places(config)
    assert public["data"]["dir"] == "data"
    assert public["task"]["path"] == "a.csv"
    assert public["task"]["valid"] == "v.csv"
    assert public["task"]["label_names"] == ("/r/python", "km/h")
    assert public["search"]["budget"] == {"table": "prices.json", "latency_ms": 1.0}
    assert home not in repr(public)
    assert own_name("tfds:imdb_reviews/plain_text") == "tfds:imdb_reviews/plain_text"
    assert config["data"]["dir"].startswith(home)  # the config itself is as it was


@settings(derandomize=True, deadline=None, max_examples=30)
@given(st.text(max_size=40), st.integers(0, 2), st.sampled_from(("x", " y", "\n", "é ")))
def test_messages_are_short(text, power, filler):
    value = text + filler * 10 ** (2 * power)
    for error in (unknown("task", value, ["a"]), InputError(f"got {value!r}. Use less.")):
        assert len(str(error)) < HEAD + TAIL + 100
    assert str(InputError(f"got {value!r}. Use less.")).endswith("Use less.")
