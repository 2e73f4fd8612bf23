"""The quickstart's recipe on two Ray nodes with files of their own, the service on a third machine; one node dies, and the run goes on.

Run by `make test-cluster`, as root (network namespaces); not by `make test`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_preprocess.world.write import write_world
from research_rl.training.trajectory_log import read
from tests.cluster.machines import Network, unavailable

ROOT = Path(__file__).parents[2]
HEAD = "rrl-a"  # the machine on which the training is started
STEPS = 4
TOKEN = secrets.token_hex(32)  # without one, whoever reaches Ray's port runs what he likes
pytestmark = pytest.mark.skipif(bool(reason := unavailable()), reason=reason)
CPU = {"VERL_PLATFORM": "cpu"}


def link(source: str, target: str) -> str:
    """Copy a file by a hard link where that can be done."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


@pytest.fixture(scope="module")
def environment_of_b(tmp_path_factory) -> Path:
    """An environment of its own, into which the wheel was installed: this one's libraries, and nothing of this directory."""
    directory = tmp_path_factory.mktemp("b")
    shutil.copytree(os.path.realpath(sys.prefix), directory / "venv", symlinks=True, copy_function=link)
    python = str(directory / "venv" / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheels = directory / "wheels"
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(wheels), str(ROOT)], check=True)
    ray = directory / "venv" / "bin" / "ray"
    text = ray.read_text(encoding="utf-8")
    ray.unlink()  # the other environment has the same file
    ray.write_text(f"#!{python}\n{text.split(chr(10), 1)[1]}", encoding="utf-8")
    ray.chmod(0o755)
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--force-reinstall", *map(str, wheels.glob("*.whl"))], check=True
    )
    return directory


class Cluster:
    """Two nodes and a service, and the training on them."""

    def __init__(self, network: Network, shared: Path, directory_of_b: Path) -> None:
        self.network, self.shared, self.run_dir = network, shared, shared / "run"
        self._directory = {"a": ROOT, "b": directory_of_b}
        self._bin = {"a": Path(sys.prefix) / "bin", "b": directory_of_b / "venv" / "bin"}

    def train(self, name: str, log: Path) -> subprocess.Popen[bytes]:
        """Start the command on a node: the same on both, as docs/howto/cluster.md has it."""
        overrides = [
            "trainer.nnodes=2", f"trainer.total_training_steps={STEPS}", "trainer.save_freq=1", "trainer.test_freq=-1",
            "trainer.val_before_train=false", "data.train_batch_size=8", "actor_rollout_ref.actor.ppo_mini_batch_size=8",
            f"actor_rollout_ref.model.path={self.shared}/model", "actor_rollout_ref.rollout.agent.num_workers=2",
            f"data.train_files=[{self.shared}/data/train.parquet]", f"data.val_files=[{self.shared}/data/test.parquet]",
            "ray_kwargs.ray_init.num_cpus=null", "ray_kwargs.ray_init.num_gpus=null", # it is a cluster's: they were told to its nodes
        ]  # fmt: skip
        command = [
            *("ray", "symmetric-run", "--address", f"{HEAD}:6379", "--min-nodes", "2", "--num-cpus=8", "--num-gpus=1"),
            *("--object-store-memory=500000000", "--", "python", "-m", "research_rl.train"),
            *("recipes/quickstart/train.yaml", "--run-dir", str(self.run_dir), *overrides),
        ]  # fmt: skip
        environment = {
            "PATH": f"{self._bin[name]}:{os.environ['PATH']}", "VERL_PLATFORM": "cpu",
            "RETRIEVAL_URL": (url := f"http://{self.network.addresses['service']}:8765"), "CONTROL_RETRIEVAL_URL": url,
            "RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT": "180", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN,
        }  # fmt: skip
        return self.network.start(name, command, log, environment, self._directory[name])


@pytest.fixture
def cluster(tmp_path, environment_of_b):
    """The cluster, before any training."""
    shared = tmp_path / "shared"
    shared.mkdir()
    write_world(shared / "data", 1, 1.0, {"train": 200, "dev": 10, "test": 10})
    shutil.copytree(ROOT / "quickstart" / "start_model" / "weights", shared / "model")
    index = [sys.executable, "-m", "rag_serving.cli", "index", "--corpus", str(shared / "data" / "corpus.jsonl")]
    subprocess.run([*index, "--out", str(shared / "index")], check=True, capture_output=True)
    with Network(["a", "b", "service"], shared) as network:
        network.hide("b", ROOT, Path(os.path.realpath(sys.prefix)))
        serve = ["serve", "--index", str(shared / "index"), "--host", network.addresses["service"], "--port", "8765"]
        network.start("service", [sys.executable, "-m", "rag_serving.cli", *serve], shared / "service.log", {}, shared)
        yield Cluster(network, shared, environment_of_b)


def wait(condition, what: str, deadline_s: float) -> None:
    """Wait for something."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} is not there after {deadline_s:g} s"
        time.sleep(1)


def test_two_nodes_train_together_and_a_run_whose_node_dies_goes_on(cluster):
    latest = cluster.run_dir / "checkpoints" / "latest_checkpointed_iteration.txt"
    log, log_of_b = cluster.shared / "a.log", cluster.shared / "b.log"
    run, node = cluster.train("a", log), cluster.train("b", log_of_b)
    wait(lambda: latest.exists() or run.poll() is not None, "the first checkpoint", 900)
    assert run.poll() is None, log.read_text()[-5000:] + log_of_b.read_text()[-2000:]
    shards = sorted(path.name for path in (latest.parent / f"global_step_{latest.read_text()}").rglob("model_*.pt"))
    assert shards == ["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"]

    assert cluster.network.kill("b") > 3
    assert run.wait(timeout=600) != 0, log.read_text()[-5000:]
    node.wait(timeout=60)
    reached = int(latest.read_text())
    assert reached < STEPS

    log = cluster.shared / "a_again.log"
    again, _ = cluster.train("a", log), cluster.train("b", log_of_b)
    assert again.wait(timeout=900) == 0, log.read_text()[-5000:]
    assert f"Resuming from {latest.parent}/global_step_{reached}" in log.read_text()
    assert json.loads((cluster.run_dir / "done.json").read_text())["step"] == STEPS
    assert {record["step"] for record in read(cluster.run_dir / "trajectories")} == set(range(1, STEPS + 1))
    hosts = {path.name.split("-", 1)[1].rsplit("-", 2)[0] for path in (cluster.run_dir / "trajectories").iterdir()}
    assert hosts == {"rrl-a", "rrl-b"}  # both sampled
    assert (cluster.run_dir / "model" / "config.json").is_file()
