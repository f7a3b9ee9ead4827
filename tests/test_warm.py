"""Tasks that are forks of a warm process: each is like one that starts cold."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT
from test_sweep import SAVES, wait_for

from dartformer.engines import runner, warm
from dartformer.engines.base import Task
from dartformer.engines.warm import POLL, VISIBLE, Starter

SHOWS = """
import json, os, sys
imported = "jax" in sys.modules
from jax._src import xla_bridge
seen = {
    "imported": imported,
    "started": xla_bridge.backends_are_initialized(),
    "threads": len(os.listdir("/proc/self/task")),
    "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
    "cores": sorted(os.sched_getaffinity(0)),
    "words": sys.argv[1:],
    "leads": os.getsid(0) == os.getppid(),
}
import jax, numpy as np
seen["sum"] = float(jax.numpy.arange(5.0).sum() + np.ones((256, 256)).dot(np.ones((256, 2)))[0, 0])
print(json.dumps(seen))
"""

MODULES = {
    "shows": SHOWS,
    "saves": SAVES,
    "exits": "import sys\nsys.exit(int(sys.argv[1]))",
    "dies": "import os\nos.kill(os.getpid(), 9)",
}

if sys.platform != "linux":
    pytest.skip("only Linux forks", allow_module_level=True)


class Tasks:
    """Starts modules as tasks, with one starter and one environment."""

    def __init__(self, modules):
        self.modules = modules
        self.starter = Starter()
        self.environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{modules}"}

    def start(self, folder, *words, cores=(), **environment):
        folder.mkdir(parents=True, exist_ok=True)
        argv = (sys.executable, "-m", *words)
        task = Task("work", argv, folder, self.modules)
        every = {**self.environment, **environment}
        return self.starter.start(task.command(cores), task.directory, every)

    def server(self):
        """The warm process."""
        (number,) = children(os.getpid(), "dartformer.engines.forks")
        return number


def children(parent, words):
    """The children of a process whose command line has the words."""
    found = []
    for number in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if words in Path(f"/proc/{number}/cmdline").read_text():
            found.append(int(number))
    return found


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("modules")
    for name, code in MODULES.items():
        (folder / f"{name}.py").write_text(code)
    return Tasks(folder)


def seen(folder):
    return json.loads((folder / runner.LOG).read_text())


def test_a_fork_is_like_a_new_process(tasks, tmp_path):
    """Imports are there, and no backend; devices, cores, words and the session are its own."""
    every = sorted(os.sched_getaffinity(0))
    first = tasks.start(tmp_path / "a", "shows", "--x=1", cores=every[:1], **{VISIBLE: "3"})
    second = tasks.start(tmp_path / "b", "shows", **{VISIBLE: "5"})
    assert (first.wait(), second.wait()) == (0, 0)
    a, b = seen(tmp_path / "a"), seen(tmp_path / "b")
    assert a.pop("threads") == b.pop("threads") == 1
    alike = {"imported": True, "started": False, "leads": True, "sum": 266.0}
    assert a == {**alike, "visible": "3", "cores": every[:1], "words": ["--x=1"]}
    assert b == {**alike, "visible": "5", "cores": every, "words": []}
    off = tasks.start(tmp_path / "c", "exits", "3", DARTFORMER_WARM="off")
    assert isinstance(off, subprocess.Popen)
    assert off.wait() == 3
    end = runner.ends(tmp_path / "a")["work"]
    assert end["code"] == 0
    assert end["processor_seconds"] > 0


def test_exit_codes_and_signals_are_those_of_the_task(tasks, tmp_path):
    ended = [tasks.start(tmp_path / "a", "exits", "3"), tasks.start(tmp_path / "b", "dies")]
    assert [process.wait() for process in ended] == [3, 137]
    assert runner.ends(tmp_path / "b")["work"]["code"] == 137
    saves = tasks.start(tmp_path / "c", "saves")
    wait_for(tasks.modules / "begun")
    saves.terminate()
    assert saves.wait() == 143
    (tasks.modules / "begun").unlink()
    (tasks.modules / "saved").unlink()
    # At once, before there may be a task.
    at_once = tasks.start(tmp_path / "d", "saves")
    at_once.terminate()
    assert at_once.wait() in (143, -15)
    at_once.terminate()
    assert at_once.wait() in (143, -15)


def test_tasks_save_where_their_warm_process_is_lost(tasks, tmp_path):
    lost = tasks.start(tmp_path / "a", "saves")
    wait_for(tasks.modules / "begun")
    os.kill(tasks.server(), 9)
    assert lost.wait() == -9
    wait_for(tasks.modules / "saved")
    (tasks.modules / "begun").unlink()
    (tasks.modules / "saved").unlink()
    # The next one has a new warm process.
    assert tasks.start(tmp_path / "b", "shows").wait() == 0
    assert seen(tmp_path / "b")["imported"]


def test_a_warm_process_ends_with_its_owner(tasks, tmp_path):
    code = f"""
import os, pathlib, sys, time
from dartformer.engines.warm import Starter
from dartformer.engines.base import Task
folder = pathlib.Path({str(tmp_path)!r})
task = Task("work", (sys.executable, "-m", "saves"), folder, folder)
starter = Starter()
process = starter.start(task.command(), folder, os.environ)
process.wait()
"""
    owner = subprocess.Popen([sys.executable, "-c", code], env=tasks.environment)
    wait_for(tmp_path / "begun")
    (server,) = children(owner.pid, "dartformer.engines.forks")
    owner.kill()
    owner.wait()
    wait_for(tmp_path / "saved")
    limit = time.monotonic() + 30
    while os.path.exists(f"/proc/{server}"):
        assert time.monotonic() < limit
        time.sleep(POLL)


def test_changed_files_need_another_process(tasks, tmp_path, monkeypatch):
    tasks.start(tmp_path / "a", "exits", "0").wait()
    before = tasks.server()
    tasks.start(tmp_path / "b", "exits", "0").wait()
    assert tasks.server() == before
    monkeypatch.setattr(warm, "_stamp", lambda: 0)
    tasks.start(tmp_path / "c", "exits", "0").wait()
    assert tasks.server() != before


def test_a_process_with_another_thread_does_not_fork(tasks, tmp_path):
    """Its tasks start cold; nor does a task of another environment come from the same process."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    )
    path = f"{tmp_path}:{tasks.environment['PYTHONPATH']}"
    for name in ("a", "b"):
        task = tasks.start(tmp_path / name, "exits", "3", PYTHONPATH=path)
        assert task.wait() == 3
    assert tasks.start(tmp_path / "c", "shows", PYTHONPATH=path).wait() == 0
    shown = seen(tmp_path / "c")
    assert not shown["imported"]
    assert shown["threads"] > 1
