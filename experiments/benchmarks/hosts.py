"""One run over two processes of this machine: what it costs, and what a killed process costs.

    python experiments/benchmarks/hosts.py --rounds=3 > experiments/benchmarks/results/hosts_cpu2.jsonl
    python experiments/benchmarks/hosts.py --sums
    python experiments/benchmarks/hosts.py --kills=20

Prints JSON lines. `step` compares two processes of one device with one process of two devices, in
turns. `sums` times the sum over two processes of many arrays and of one array with as many numbers.
`kills` kills one of two processes again and again, in the middle of steps and of
checkpoints, starts both again, and compares the end with a run that nobody disturbed.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from measure import machine, say

from dartformer.cli.processes import free_port

CONFIG = """
import dartformer as df

def get_config():
    config = df.defaults("recall", granularity="layer")
    config.task.update(length={length}, pairs=4, keys=16, train=2000, valid=64, test=64)
    config.model.update(layers=2, heads=2, head_dim={width}, model_dim={twice}, mlp_dim={twice})
    config.space.candidates = ("full", "linear")
    config.data.update(batch_size=16, eval_batch_size=64)
    config.search.update(steps={steps}, observe=False)
    config.log.update(every={every}, eval_every={steps}, checkpoint_every={every})
    return config
"""

HEARTBEAT = 10
"""Seconds after which a silent process counts as dead."""

ARRAYS, SIZE = 32, 16_384
"""Arrays of a sum, about as many as a small model's gradients, and their numbers."""


class Runs:
    """Commands on configs in one folder."""

    def __init__(self, folder: Path, **values: int):
        self.folder = folder
        self.config = folder / "config.py"
        self.config.write_text(CONFIG.format(twice=2 * values["width"], **values))

    def start(
        self, name: str, processes: int, devices: int, extra: tuple[str, ...] = ()
    ) -> list[subprocess.Popen[bytes]]:
        """A search in the workdir `name`."""
        environment: Mapping[str, str] = {
            **os.environ,
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "DARTFORMER_HEARTBEAT": str(HEARTBEAT),
            "TFDS_DATA_DIR": str(self.folder / "data"),
        }
        address = f"127.0.0.1:{free_port()}"
        started = []
        for number in range(processes):
            command = [sys.executable, "-m", "dartformer", "search", "--quiet", *extra]
            command += [f"--config={self.config}", f"--workdir={self.folder / name}"]
            if processes > 1:
                command.append(f"--hosts={address},{processes},{number}")
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            started.append(subprocess.Popen(command, env=environment, **quiet))  # type: ignore[call-overload]
        return started

    def finish(self, name: str, processes: int, devices: int) -> dict[str, object]:
        """The record of a search that is run to its end."""
        for process in self.start(name, processes, devices):
            if process.wait():
                raise RuntimeError(f"{name} ended with {process.returncode}")
        record: dict[str, object] = json.loads(self._alphas(name).read_text())
        return record

    def is_done(self, name: str) -> bool:
        """Whether a search has ended."""
        return self._alphas(name).exists()

    def _alphas(self, name: str) -> Path:
        return self.folder / name / "search" / "alphas.json"

    def last_step(self, name: str) -> int:
        """The last step in the log of a search."""
        file = self.folder / name / "search" / "metrics.jsonl"
        if not file.exists() or not file.read_text().strip():
            return 0
        return int(json.loads(file.read_text().splitlines()[-1])["step"])


def steps(folder: Path, rounds: int) -> None:
    """Seconds of training by two processes over those by one with two devices."""
    runs = Runs(folder, length=256, width=64, steps=100, every=100)
    ratios = []
    for number in range(rounds):
        one = runs.finish(f"one{number}", 1, 2)["seconds"]
        two = runs.finish(f"two{number}", 2, 1)["seconds"]
        ratios.append(float(two) / float(one))  # type: ignore[arg-type]
    say(name="step", ratio=float(np.median(ratios)), ratios=ratios, target=1.3)


def sums() -> None:
    """Milliseconds of a sum over two processes: of many arrays, and of one with as many numbers."""
    address = f"127.0.0.1:{free_port()}"
    processes = []
    for number in range(2):
        command = [sys.executable, __file__, "--sums", f"--inside={address},{number}"]
        quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        processes.append(subprocess.Popen(command, text=True, **quiet))  # type: ignore[call-overload]
    for process in processes:
        printed, _ = process.communicate()
        if process.returncode:
            raise RuntimeError(f"a process of the sums ended with {process.returncode}")
        # Gloo prints to the same place that it is connected.
        for line in printed.splitlines():
            if line.startswith("{"):
                print(line, flush=True)


def sums_of(address: str, number: int) -> None:
    """One of the two processes of `sums`."""
    import jax
    from jax.sharding import AxisType, NamedSharding, PartitionSpec

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, 2, number)
    mesh = jax.make_mesh((2,), ("data",), axis_types=(AxisType.Auto,))
    shared = PartitionSpec("data")

    @jax.jit
    @jax.shard_map(mesh=mesh, in_specs=shared, out_specs=PartitionSpec(), check_vma=False)
    def total(arrays: list[jax.Array]) -> list[jax.Array]:
        return [jax.lax.psum(array, "data") for array in arrays]

    for count, size in ((ARRAYS, SIZE), (1, ARRAYS * SIZE)):
        rows = np.ones((2, size), np.float32)
        sharding = NamedSharding(mesh, shared)
        array = jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])  # noqa: B023
        arrays = [array] * count
        jax.block_until_ready(total(arrays))
        seconds = []
        for _ in range(50):
            started = time.perf_counter()
            jax.block_until_ready(total(arrays))
            seconds.append(time.perf_counter() - started)
        if number == 0:
            say(name="sums", arrays=count, numbers=size, ms=1e3 * float(np.median(seconds)))


def kills(folder: Path, count: int) -> None:
    """Kill one of two processes so many times, and compare the end."""
    runs = Runs(folder, length=32, width=8, steps=12 * count, every=1)
    quiet = runs.finish("quiet", 2, 1)
    generator = random.Random(0)
    silences, killed = [], 0
    while killed < count:
        before = runs.last_step("killed")
        processes = runs.start("killed", 2, 1)
        target = before + generator.randint(2, 15)
        while runs.last_step("killed") < target and processes[0].poll() is None:
            time.sleep(0.01)
        # Somewhere in a step, or in the checkpoint after it.
        time.sleep(generator.uniform(0, 0.3))
        processes[generator.randrange(2)].kill()
        began = time.monotonic()
        codes = [process.wait() for process in processes]
        silences.append(time.monotonic() - began)
        assert all(codes) or runs.is_done("killed"), codes
        killed += 1
        if runs.is_done("killed"):
            break
    again = runs.finish("killed", 2, 1)
    say(
        name="kills",
        kills=killed,
        same=bool(np.array_equal(np.array(quiet["alphas"]), np.array(again["alphas"]))),
        longest_s=max(silences),
        median_s=float(np.median(silences)),
        heartbeat_s=HEARTBEAT,
        target_s=20,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=0, help="of the comparison of steps")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--sums", action="store_true")
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        address, number = arguments.inside.rsplit(",", 1)
        sums_of(address, int(number))
        return
    machine()
    if arguments.sums:
        sums()
    with tempfile.TemporaryDirectory() as folder:
        if arguments.rounds:
            steps(Path(folder), arguments.rounds)
        if arguments.kills:
            kills(Path(folder), arguments.kills)


if __name__ == "__main__":
    main()
