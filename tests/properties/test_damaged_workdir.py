"""A file of a finished workdir is damaged: its stage runs again, or one line names the file."""

import contextlib
import io
import json
import os
import re
import shutil
import threading
from pathlib import Path

import pytest

from dartformer import api
from dartformer.cli.main import main
from dartformer.config import from_dict
from dartformer.errors import InputError
from dartformer.machine.workdir import read_json, write_checked_json
from dartformer.report import reading
from dartformer.stages.layout import Workdir
from dartformer.stages.study import Study

RESULTS = (
    "genotype.json",
    "results.json",
    "search/alphas.json",
    "test_scores.json",
    "attention.json",
    "export/config.json",
    "export/genotype.json",
)
"""What a repeated run must end with, durations aside."""


def to_folder(file, _):
    file.unlink()
    file.mkdir()


def to_link(file, _):
    file.unlink()
    file.symlink_to("/nowhere/at/all")


def to_bytes(change):
    return lambda file, data: file.write_bytes(change(data))


def flipped(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = {
    "empty": to_bytes(lambda data: b""),
    "truncated": to_bytes(lambda data: data[: len(data) // 2]),
    "flipped": to_bytes(flipped),
    "list": to_bytes(lambda data: b"[]"),
    "null": to_bytes(lambda data: b"null"),
    "number": to_bytes(lambda data: b"3"),
    "brackets": to_bytes(lambda data: b"[" * 1000 + b"]" * 1000),
    "folder": to_folder,
    "link": to_link,
    "missing": lambda file, _: file.unlink(),
}


def files_of(workdir, suffix=""):
    names = []
    for file in sorted(workdir.rglob(f"*{suffix}")):
        if file.is_file() and file.stat().st_size:
            names.append(str(file.relative_to(workdir)))
    return names


@contextlib.contextmanager
def damaged(workdir, name, damage):
    """The file `name` of a workdir, damaged and then as it was."""
    file = workdir / name
    data = file.read_bytes()
    DAMAGES[damage](file, data)
    try:
        yield file
    finally:
        if file.is_dir():
            shutil.rmtree(file)
        elif os.path.lexists(file):
            file.unlink()
        file.write_bytes(data)


@pytest.fixture(scope="module")
def copied(whole_run, tmp_path_factory):
    path = tmp_path_factory.mktemp("damaged") / "run [1] *?"  # a glob must not read the name
    shutil.copytree(whole_run[0], path)
    return path


@pytest.fixture(scope="module")
def study(copied):
    return Study(from_dict(read_json(copied / "config.json")))


def unfinished(study, workdir):
    with Workdir(workdir, study.config) as folder:
        session = api.Session(study, folder)
        return [verb for verb in api.VERBS if not api.finished(session, verb)]


def names_file(error, file):
    text = str(error)
    return "\n" not in text and (file.name in text or str(file.parent) in text)


def matters(name):
    """Whether a run needs the file, and can know that it is not as it was written."""
    return not re.search(
        r"metrics\.jsonl$|tensorboard/|^report\.html$|README\.md$|training\.json$|^provenance\.json$|\.lock$",
        name,
    )


def test_a_stage_is_finished_where_all_of_its_files_are_whole(study, copied):
    assert unfinished(study, copied) == ["report"]
    problems = []
    for name in files_of(copied):
        if "/checkpoints/" in name:
            continue
        for damage in DAMAGES:
            with damaged(copied, name, damage) as file:
                try:
                    verbs = unfinished(study, copied)
                except InputError as error:
                    if not names_file(error, file):
                        problems.append((name, damage, str(error)))
                    continue
            # A log changes no result, and a file that was never written is no damage.
            if verbs == ["report"] and matters(name) and damage != "missing":
                problems.append((name, damage, "not noticed"))
    assert not problems, problems


def test_damaged_checkpoints_of_the_found_model_are_noticed(study, copied):
    with Workdir(copied, study.config) as workdir:
        folder = workdir.training(workdir.read_genotype(), study.config.retrain.seeds[0])
    last = folder / f"checkpoints/steps/{study.config.retrain.steps}"
    for name in files_of(last):
        with damaged(copied, (last / name).relative_to(copied), "truncated"):
            assert "retrain" in unfinished(study, copied), name
    assert unfinished(study, copied) == ["report"]


def written(results):
    return json.dumps(results.to_dict())  # as text, because NaN is unequal to itself


def test_readers_show_what_was_written_or_name_the_file(copied):
    problems = []
    whole = reading.read(copied)
    for suffix in (".json", ".jsonl"):
        for name in files_of(copied, suffix):
            if name.startswith("export/") or "/checkpoints/" in name:
                continue
            for damage in DAMAGES:
                with damaged(copied, name, damage) as file:
                    try:
                        read = reading.read(copied)
                    except InputError as error:
                        if not names_file(error, file):
                            problems.append((name, damage, str(error)))
                        continue
                present = read.results.verdict is not None
                if present and written(read.results) != written(whole.results):
                    problems.append((name, damage, "changed results"))
    assert not problems, problems


def test_a_workdir_is_read_while_it_is_rewritten(copied):
    """Files and folders vanish, are cut short and return."""
    stop = threading.Event()

    def rewrite():
        aside = copied.with_name("aside")
        while not stop.is_set():
            copied.rename(aside)
            aside.rename(copied)
            for name in ("results.json", "provenance.json"):
                write_checked_json(copied / name, read_json(copied / name))

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        for _ in range(50):
            with contextlib.suppress(InputError):
                reading.read(copied)
    finally:
        stop.set()
        writer.join()


def command(*words):
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = main([str(word) for word in words])
    lines = error.getvalue().strip().splitlines() or [""]
    return code, lines[-1]


def timeless(data):
    if isinstance(data, list):
        return list(map(timeless, data))
    if not isinstance(data, dict):
        return data
    return {name: timeless(value) for name, value in data.items() if "seconds" not in name}


def outcome(workdir):
    results = [timeless(json.loads((workdir / name).read_text())) for name in RESULTS]
    return results, (workdir / "export/weights.safetensors").read_bytes()


@pytest.mark.slow
def test_a_run_repairs_a_damaged_workdir_or_refuses_it(whole_run, tmp_path):
    workdir, _ = whole_run
    config = workdir.parent / "space.py"
    expected = outcome(workdir)
    problems = []
    for name in files_of(workdir):
        for damage in DAMAGES:
            copy = tmp_path / "copy"
            shutil.copytree(workdir, copy)
            file = copy / name
            DAMAGES[damage](file, file.read_bytes())
            code, line = command("run", f"--config={config}", f"--workdir={copy}", "--quiet")
            if code == 0 and outcome(copy) != expected:
                problems.append((name, damage, "changed results"))
            elif code not in (0, 2) or (code == 2 and not names_file(line, Path(file))):
                problems.append((name, damage, code, line))
            shutil.rmtree(copy)
    assert not problems, problems
