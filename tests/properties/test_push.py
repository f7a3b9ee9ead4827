"""`push` sends the files that its dry run lists, by their names, and no other file of the machine."""

import contextlib
import json
import sys
import tempfile
import types
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dartformer.errors import InputError
from dartformer.export import checksums
from dartformer.export.push import push

NAMES = ("README.md", "model.onnx", "saved_model/saved_model.pb", "a b.json", "größe.json")
ODD = ("*", "?", "[a]", "a*", ".env", ".git/config", "a\\b", "a\nb", "\x1b[2J", "a/.env", "~", "-x")

entries = st.lists(
    st.tuples(
        st.one_of(
            st.sampled_from(NAMES),
            st.sampled_from(ODD),
            st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1, max_size=9),
        ).filter(lambda name: name not in (".", "..", checksums.CHECKSUMS)),
        st.sampled_from(("file", "file", "link out", "link in", "linked folder", "unlisted")),
    ),
    max_size=5,
)


class Hub:
    """What is used of huggingface_hub."""

    sent: ClassVar[dict] = {}

    def create_repo(self, *_, **__):
        pass

    def create_commit(self, *, operations, **_):
        for file in operations:
            Hub.sent[file["path_in_repo"]] = Path(file["path_or_fileobj"])


HUB = types.SimpleNamespace(HfApi=Hub, CommitOperationAdd=dict, __spec__=object())


def write(folder, outside, name, kind):
    file = folder / name
    with contextlib.suppress(OSError):  # a name that this disk does not take
        file.parent.mkdir(parents=True, exist_ok=True)
        if kind == "link out":
            file.symlink_to(outside / "secret")
        elif kind == "link in":
            file.symlink_to(folder / "weights")
        elif kind == "linked folder":
            file.symlink_to(outside)
        elif not file.is_symlink():
            file.write_text("x")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(entries)
def test_the_dry_run_lists_what_is_sent(entries):
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "huggingface_hub", HUB)
        folder, outside = Path(temporary) / "e", Path(temporary) / "outside"
        folder.mkdir()
        outside.mkdir()
        (outside / "secret").write_text("token")
        (folder / "weights").write_text("w")
        for name, kind in entries:
            if kind != "unlisted":
                write(folder, outside, name, kind)
        checksums.note(folder)
        for name, kind in entries:
            if kind == "unlisted" and not (folder / name).exists():
                write(folder, outside, name, kind)
        Hub.sent = {}
        try:
            listed = push(folder, "me/found", dry_run=True)["files"]
        except InputError:
            with pytest.raises(InputError):
                push(folder, "me/found")
            assert not Hub.sent
            return
        push(folder, "me/found")
        assert Hub.sent.keys() == listed.keys()
        for name, file in Hub.sent.items():
            assert file == folder / name
            assert file.resolve() == (folder / name).absolute().resolve()
            assert file.resolve().is_relative_to(folder.resolve())
            assert not file.is_symlink()
            assert not any(sign in name for sign in "*?[]\\\n")
            assert not any(part.startswith(".") for part in Path(name).parts)


@pytest.mark.parametrize("name", [*ODD, "../secret", "/etc/passwd", "a//b", "b/../a", ""])
def test_names_that_no_export_writes(name, tmp_path):
    for file in ("README.md", "x"):
        (tmp_path / file).write_text("x")
    checksums.note(tmp_path)
    table = tmp_path / checksums.CHECKSUMS
    digest = checksums._sha256(tmp_path / "x")
    table.write_text(table.read_text().replace("{", "{" + f'{_quoted(name)}: "{digest}",', 1))
    with pytest.raises(InputError):
        push(tmp_path, "me/found", dry_run=True)


def _quoted(name):
    return json.dumps(name)
