"""`dartformer clean`: what goes from a finished workdir, and that everything else works after it."""

import json
import shutil

import pytest

from dartformer.cli.main import main
from dartformer.errors import InputError
from dartformer.machine.workdir import read_json
from dartformer.stages import clean
from dartformer.training.checkpoint import superfluous


@pytest.fixture
def finished(whole_run, tmp_path):
    """A copy of a finished workdir, which a test may change."""
    path = tmp_path / "run"
    shutil.copytree(whole_run[0], path, symlinks=True)
    return path


def files_of(path):
    return {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}


def test_a_dry_run_removes_nothing(finished, capsys):
    before = files_of(finished)
    assert main(["clean", str(finished), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "would remove" in out
    assert files_of(finished) - {".lock"} == before - {".lock"}
    promised = clean.clean(finished, dry_run=True)
    done = clean.clean(finished)
    assert promised.groups == done.groups
    assert (promised.files, promised.bytes) == (done.files, done.bytes)
    assert len(before) - sum(group.files for group in done.groups) == done.files


def test_reports_and_exports_work_afterwards(finished, capsys):
    config = read_json(finished / "config.json")
    assert main(["clean", str(finished), "--json"]) == 0
    cleaned = json.loads(capsys.readouterr().out)
    assert cleaned["removed"]
    assert not list(finished.glob("search/**/checkpoints"))
    assert not list(finished.glob("trainings/**/tensorboard"))
    # The winner's last checkpoint is there, from which another format can be exported.
    winner = (finished / "retrain").resolve()
    for seed in config["retrain"]["seeds"]:
        assert (winner / f"seed{seed}/checkpoints/steps" / str(config["retrain"]["steps"])).exists()
        assert not superfluous(winner / f"seed{seed}/checkpoints")
    trainings = {folder.name for folder in (finished / "trainings").iterdir()}
    kept = {file.parents[2].name for file in finished.glob("trainings/*/*/checkpoints/steps")}
    assert winner.name in kept
    assert kept < trainings
    assert main(["report", str(finished)]) == 0
    # There is nothing left to remove.
    assert clean.clean(finished).groups == ()


def test_a_run_that_is_not_finished_keeps_its_checkpoints(finished, tmp_path):
    (finished / "results.json").unlink()
    with pytest.raises(InputError, match="not evaluated yet"):
        clean.clean(finished)
    with pytest.raises(InputError, match="not a workdir"):
        clean.clean(tmp_path)


def test_the_newest_and_the_best_checkpoint_stay(tmp_path):
    for step, score in ((1, 0.2), (2, 0.9), (3, 0.5), (4, None)):
        folder = tmp_path / f"steps/{step}/metrics"
        folder.mkdir(parents=True)
        if score is not None:
            (folder / "metrics").write_text(json.dumps({"score": score}))
        (tmp_path / f"{step}.json").write_text("{}")
    (tmp_path / "damaged").mkdir()
    names = [str(path.relative_to(tmp_path)) for path in superfluous(tmp_path)]
    assert names == ["damaged", "steps/1", "1.json", "steps/3", "3.json"]


def test_a_finished_training_leaves_two_checkpoints_and_one_file_of_events(whole_run):
    workdir, _ = whole_run
    for checkpoints in workdir.glob("trainings/*/*/checkpoints"):
        assert superfluous(checkpoints) == []
        assert len(list((checkpoints.parent / "tensorboard").iterdir())) == 1
