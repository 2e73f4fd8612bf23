"""The quickstart's recipe on two Ray nodes with files of their own, the service on a third machine; one node dies, and the run goes on.

Run by `make test-cluster`, as root (network namespaces); not by `make test`.
"""

from __future__ import annotations

import json
import os
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
RAY = 6379
STEPS = 4
NODES = "import ray, sys; ray.init(sys.argv[1], logging_level=50); print(sum(node['Alive'] for node in ray.nodes()))"
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
    subprocess.run(
        [*pip, "install", "--no-deps", "--no-index", "--force-reinstall", *map(str, wheels.glob("*.whl"))], check=True
    )
    return directory


class Cluster:
    """Two nodes and a service, and the training on them."""

    def __init__(self, network: Network, shared: Path, directory_of_b: Path) -> None:
        self.network, self.shared, self.directory_of_b = network, shared, directory_of_b
        self.python = {"a": sys.executable, "b": str(directory_of_b / "venv" / "bin" / "python")}

    def join(self, name: str) -> None:
        """Start Ray on a node: the first is the head."""
        own = ["--head", f"--port={RAY}", "--include-dashboard=false"]
        address = f"{self.network.addresses['a']}:{RAY}"
        command = [
            *(self.python[name], "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
            *(own if name == "a" else [f"--address={address}"]),
            *(f"--node-ip-address={self.network.addresses[name]}", "--num-cpus=8", "--num-gpus=1"),
            "--object-store-memory=500000000",
        ]  # fmt: skip
        where = self.directory_of_b if name == "b" else self.shared
        self.network.start(name, command, self.shared / f"ray_{name}.log", CPU, where)
        if name == "a":
            self.wait(lambda: self._nodes() >= 1, "Ray's head")
        else:
            self.wait(lambda: self._nodes() >= 2, "the second node")

    def _nodes(self) -> int:
        """Return how many nodes Ray's head has that live."""
        asked = self.shared / "nodes.txt"
        asked.unlink(missing_ok=True)
        self.network.start(
            "a", [sys.executable, "-c", NODES, f"{self.network.addresses['a']}:{RAY}"], asked, {}, self.shared
        ).wait()
        last = asked.read_text().split()[-1:]
        return int(last[0]) if last and last[0].isdigit() else 0

    def wait(self, condition, what: str, deadline_s: float = 120) -> None:
        """Wait for something."""
        deadline = time.monotonic() + deadline_s
        while not condition():
            assert time.monotonic() < deadline, f"{what} is not there after {deadline_s:g} s"
            time.sleep(1)

    def train(self, run_dir: Path, log: Path) -> subprocess.Popen[bytes]:
        """Start the training, as a user would: on the head node, by one command."""
        service = f"http://{self.network.addresses['service']}"
        overrides = [
            "trainer.nnodes=2", f"trainer.total_training_steps={STEPS}", "trainer.save_freq=1", "trainer.test_freq=-1",
            "trainer.val_before_train=false", "trainer.logger=[console,file]", "data.train_batch_size=8",
            "actor_rollout_ref.actor.ppo_mini_batch_size=8", f"actor_rollout_ref.model.path={self.shared}/model",
            "actor_rollout_ref.rollout.agent.num_workers=2", "research_rl.stalled_after_s=null",
            f"data.train_files=[{self.shared}/data/train.parquet]", f"data.val_files=[{self.shared}/data/test.parquet]",
            "ray_kwargs.ray_init.num_cpus=null", "ray_kwargs.ray_init.num_gpus=null",
        ]  # fmt: skip
        return self.network.start(
            "a",
            [sys.executable, "-m", "research_rl.train", "recipes/quickstart/train.yaml", "--run-dir", str(run_dir), *overrides],
            log,
            CPU | {"RAY_ADDRESS": f"{self.network.addresses['a']}:{RAY}", "RETRIEVAL_URL": f"{service}:8765"},
            ROOT,
        )


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
        cluster = Cluster(network, shared, environment_of_b)
        serve = ["serve", "--index", str(shared / "index"), "--host", network.addresses["service"], "--port", "8765"]
        network.start("service", [sys.executable, "-m", "rag_serving.cli", *serve], shared / "service.log", {}, shared)
        cluster.join("a")
        cluster.join("b")
        yield cluster


def test_two_nodes_train_together_and_a_run_whose_node_dies_goes_on(cluster):
    run_dir, log = cluster.shared / "run", cluster.shared / "train.log"
    latest = run_dir / "checkpoints" / "latest_checkpointed_iteration.txt"
    run = cluster.train(run_dir, log)
    cluster.wait(lambda: latest.exists() or run.poll() is not None, "the first checkpoint", 900)
    assert run.poll() is None, log.read_text()[-5000:]
    shards = sorted(path.name for path in (run_dir / "checkpoints" / f"global_step_{latest.read_text()}").rglob("model_*.pt"))
    assert shards == ["model_world_size_2_rank_0.pt", "model_world_size_2_rank_1.pt"]

    assert cluster.network.kill("b") > 3
    code = run.wait(timeout=300)
    assert code == 1, log.read_text()[-5000:]
    reached = int(latest.read_text())
    assert reached < STEPS

    cluster.join("b")
    log_after = cluster.shared / "train_again.log"
    again = cluster.train(run_dir, log_after)
    assert again.wait(timeout=900) == 0, log_after.read_text()[-5000:]
    text = log_after.read_text()
    assert f"global_step_{reached}" in text
    assert json.loads((run_dir / "done.json").read_text())["step"] == STEPS
    assert {record["step"] for record in read(run_dir / "trajectories")} == set(range(1, STEPS + 1))
    hosts = {path.name.split("-", 1)[1].rsplit("-", 2)[0] for path in (run_dir / "trajectories").iterdir()}
    assert hosts == {"rrl-a", "rrl-b"}  # both sampled
    assert (run_dir / "model" / "config.json").is_file()
