"""A run does not wait for the dead, and not for ever: the watchdog beside verl's trainer, with real Ray actors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from research_rl.errors import RunStoppedError
from research_rl.verl_plugin.watchdog import DOING, Pings, Watchdog, doing_now

ray = pytest.importorskip("ray")


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


class Part:
    def __init__(self, engine=None):
        self.engine, self.number = engine, 0

    def pid(self):
        return os.getpid()

    def busy(self, seconds):
        time.sleep(seconds)

    def turns(self):
        return 7


class Engine:
    errored = True


def watch(actors, limit=None, step=lambda: 3):
    return Watchdog(lambda: actors, step, limit, interval_s=0.1, grace_s=None)  # this process is the tests'


def test_a_trainer_that_waits_for_a_killed_actor_is_interrupted_and_told_which_one_died():
    actor = ray.remote(Part).remote()
    pid = ray.get(actor.pid.remote())
    waiting = ray.remote(Part).remote()
    threading.Timer(1.0, os.kill, (pid, signal.SIGKILL)).start()
    started = time.monotonic()
    with (
        pytest.raises(RunStoppedError, match="engine 0, server 0 has died") as error,
        watch({"engine 0, server 0": actor}).watching(),
    ):
        ray.get(waiting.busy.remote(60))  # a `ray.get` on another, as verl's is on the trainer that sends the weights
    assert time.monotonic() - started < 20
    assert "at step 3" in str(error.value)
    assert "same command goes on" in str(error.value)


def test_a_death_that_the_trainer_meets_itself_gets_its_name():
    actor = ray.remote(Part).remote()
    pid = ray.get(actor.pid.remote())
    watchdog = Watchdog(lambda: {"agent-loop worker 0": actor}, lambda: 3, None, interval_s=60.0)  # it does not ask meanwhile
    with pytest.raises(RunStoppedError, match="agent-loop worker 0 has died"), watchdog.watching():
        os.kill(pid, signal.SIGKILL) or ray.get(actor.pid.remote())


def test_an_engine_whose_own_process_died_is_told_although_its_server_lives():
    actor = ray.remote(Part).remote(Engine())
    with pytest.raises(RunStoppedError, match="the engine's own process has died"), watch({"engine": actor}).watching():
        time.sleep(30)


def test_a_busy_actor_is_not_dead_and_turns_that_are_rolled_out_are_progress():
    busy, worker = ray.remote(Part).remote(), ray.remote(Part).remote()
    busy.busy.remote(3)
    pings = Pings(lambda: {"busy": busy, "worker": worker})
    deadline = time.monotonic() + 20
    while pings.turns != 7 and time.monotonic() < deadline:
        assert pings.dead() is None
        time.sleep(0.1)
    assert pings.turns == 7


def test_nothing_moving_for_long_ends_the_run_and_says_what_it_was_doing():
    def sample():
        time.sleep(30)

    with (
        pytest.raises(RunStoppedError, match=r"waiting for rollouts at step 3, .*stalled_after_s is 0\.5"),
        watch({}, 0.5).watching(),
    ):
        sample()


def test_a_trainer_that_hangs_on_its_way_out_is_ended_with_the_process():
    hanging = """
import time
from research_rl.verl_plugin.watchdog import Watchdog

with Watchdog(dict, lambda: 3, 0.2, interval_s=0.1, grace_s=0.5).watching():
    try:
        time.sleep(300)
    finally:
        time.sleep(300)
"""
    done = subprocess.run([sys.executable, "-c", hanging], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "without progress for" in done.stderr


def test_a_step_that_gets_on_is_left_alone():
    steps = iter(range(10_000))
    with watch({}, 0.5, lambda: next(steps)).watching():
        time.sleep(1.5)


def test_an_interrupt_by_the_user_stays_one():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background a shell has it ignored
    try:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt), watch({}).watching():
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_functions_it_knows_a_part_of_a_step_by_are_the_trainers():
    from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

    assert [name for name in DOING if not any(hasattr(one, name) for one in (ReplayBuffer, PPOTrainer, PPOTrainerSync))] == []
    assert doing_now(None) == "between two parts of a step"


def test_an_actor_that_ray_killed_for_want_of_memory_is_dead(monkeypatch):
    from ray.exceptions import OutOfMemoryError

    actor = ray.remote(Part).remote()
    pings = Pings(lambda: {"engine 0, server 0": actor})
    assert pings.find_dead(1.0) is None

    def killed(_):
        raise OutOfMemoryError("2 worker(s) were killed due to the node running low on memory.\nConsidered workers: [\n…")

    monkeypatch.setattr(ray, "get", killed)
    assert pings.find_dead(10.0) == ("engine 0, server 0", "2 worker(s) were killed due to the node running low on memory.")
