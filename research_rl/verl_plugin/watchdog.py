"""A watchdog, so that no failure makes a run wait for ever: a thread beside verl's trainer that checks its progress and its actors.

verl waits without a limit: for rollouts of a worker that has died, or for an engine that died while weights were sent to it. The thread
asks every actor whether it is alive, and checks whether the trainer makes progress. If an actor is dead, or there was no progress for
`research_rl.stalled_after_s`, it reports what was going on and ends the run; the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import ray
import wrapt
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayActorError, RayError, RayTaskError

from research_rl.errors import RunStoppedError
from research_rl.verl_plugin.config import settings_of
from research_rl.verl_plugin.full_disk import full_disk

INTERVAL_S = 5.0
WAIT_S = 10.0  # to find out which actor has died
GRACE_S = 60.0  # in which verl may close its loggers and its queue
MEMORY_ALARM = 90.0  # percent; Ray kills processes from 95 on

# Functions of verl's trainer, and what the trainer does in them. The innermost one on the stack counts.
DOING = {
    "_validate": "validating", "_save_checkpoint": "writing a checkpoint", "_load_checkpoint": "loading a checkpoint",
    "on_step_end": "sending the weights to the engines", "on_sample_end": "putting the engines to sleep",
    "_update_actor": "updating the policy", "_update_critic": "updating the critic", "_compute_values": "computing values",
    "_compute_old_log_prob": "computing log-probabilities", "_compute_ref_log_prob": "computing the reference's log-probabilities",
    "sample": "waiting for rollouts", "_compute_metrics": "computing metrics",
}  # fmt: skip  # a table


def install(trainer_base: Any) -> None:
    """Wrap the trainer's `fit` (hooked to the import of `verl.trainer.ppo.v1.trainer_base`)."""
    wrapt.wrap_function_wrapper(trainer_base.PPOTrainer, "fit", _fit)


def _fit(fit: Any, trainer: Any, args: Any, kwargs: Any) -> Any:
    if "research_rl" not in trainer.config:
        return fit(*args, **kwargs)
    watchdog = Watchdog(lambda: actors_of(trainer), lambda: trainer.global_steps, settings_of(trainer.config).stalled_after_s)
    with watchdog.watching():
        try:
            return fit(*args, **kwargs)
        except Exception as error:
            if (why := full_disk(Path(trainer.config.trainer.default_local_dir), error)) is None:
                raise
            raise watchdog.stopped(why) from error


def actors_of(trainer: Any) -> dict[str, Any]:
    """Return the run's Ray actors by a readable name."""
    found: dict[str, Any] = {}
    for name, title in (("actor_rollout_wg", "trainer"), ("ref_policy_wg", "reference model"), ("critic_wg", "critic")):
        for rank, worker in enumerate(getattr(getattr(trainer, name, None), "workers", None) or ()):
            if worker not in found.values():
                found[f"{title}, rank {rank}"] = worker
    for manager in trainer._rollout_server_managers():
        for replica in manager.get_replicas():
            for node, server in enumerate(replica.servers):
                found[f"engine {replica.replica_rank}, server {node}"] = server
    for number, worker in enumerate(getattr(trainer.agent_loop_manager, "agent_loop_workers", None) or ()):
        found[f"agent-loop worker {number}"] = worker
    return found


def _state(actor: Any) -> int:
    """Run in an actor: return the number of turns it has rolled out.

    Raises:
        RuntimeError: it is an engine's server, and its engine has died.
    """
    if getattr(getattr(actor, "engine", None), "errored", False):
        raise RuntimeError("the engine's own process has died")
    return getattr(actor, "turns", lambda: 0)()


class Pings:
    """Calls actors without waiting, at most one call at a time to each. A busy actor answers later, a dead one fails at once."""

    def __init__(self, actors: Callable[[], Mapping[str, Any]]) -> None:
        self._actors = actors
        self._asked: dict[str, Any] = {}
        self._turns: dict[str, int] = {}

    @property
    def turns(self) -> int:
        """The number of turns that the agent-loop workers have rolled out, as last reported."""
        return sum(self._turns.values())

    def dead(self) -> tuple[str, str] | None:
        """Return (name, cause) of an actor that is dead, None if none is known to be."""
        for name, actor in self._actors().items():
            if (asked := self._asked.get(name)) is not None and not ray.wait([asked], timeout=0)[0]:
                continue
            try:
                if asked is not None:
                    self._turns[name] = ray.get(asked)
            except ActorUnavailableError:  # perhaps a network failure: ask again
                pass
            except OutOfMemoryError as error:  # Ray killed it, and says so at every call
                return name, str(error).strip().splitlines()[0]
            except (RayActorError, RayTaskError) as error:
                return name, str(getattr(error, "cause", None) or error).strip()
            except RayError:  # the answer was lost, which says nothing about the actor
                pass
            self._asked[name] = actor.__ray_call__.remote(_state)
        return None

    def find_dead(self, wait_s: float) -> tuple[str, str] | None:
        """Return an actor that is dead, as `dead` does; look for at most `wait_s` seconds."""
        deadline = time.monotonic() + wait_s
        while (found := self.dead()) is None and time.monotonic() < deadline:
            time.sleep(0.2)
        return found


class Watchdog:
    """Watches the thread that enters `watching`."""

    def __init__(
        self, actors: Callable[[], Mapping[str, Any]], step: Callable[[], int], stalled_after_s: float | None,
        interval_s: float = INTERVAL_S, grace_s: float | None = GRACE_S,
    ) -> None:  # fmt: skip  # many parameters
        """`actors`: the run's actors by name; `step`: the trainer's step; `grace_s`: seconds after the end of a
        run after which the whole process is ended if the trainer still hangs (None: never)."""
        self._pings = Pings(actors)
        self._step, self._stalled_after_s, self._interval_s, self._grace_s = step, stalled_after_s, interval_s, grace_s
        self._over = threading.Event()
        self._error: RunStoppedError | None = None
        self._memory_told = -1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the calling thread, which must be the process's main thread, because no other can be interrupted.

        Raises:
            RunStoppedError: the run was ended; the message says why.
        """
        before = signal.signal(signal.SIGUSR2, _interrupt)
        thread = threading.Thread(target=self._watch, args=(threading.get_ident(),), daemon=True, name="watchdog")
        thread.start()
        try:
            yield
        except KeyboardInterrupt:  # the only exception that ends a `ray.get`
            if self._error is None:
                raise
            raise self._error from None
        except Exception as error:  # verl noticed a dead actor first, but does not say which
            if not (isinstance(error, RayActorError | OutOfMemoryError) or type(error).__name__ == "EngineDeadError"):  # vLLM's
                raise
            self._over.set()
            if (dead := self._pings.find_dead(WAIT_S)) is None:
                raise
            raise self.stopped(f"{dead[0]} has died: {dead[1]}") from error
        finally:
            self._over.set()
            thread.join(self._interval_s)
            signal.signal(signal.SIGUSR2, before)

    def _watch(self, watched: int) -> None:
        seen: tuple[Any, ...] = ()
        since = time.monotonic()
        while not self._over.wait(self._interval_s):
            doing = doing_now(sys._current_frames().get(watched))
            now = (doing, self._step(), self._pings.turns)
            if now != seen:
                seen, since = now, time.monotonic()
            waited = time.monotonic() - since
            told = f"The trainer was {doing} at step {self._step()}, without progress for {waited:.0f} s"
            if dead := self._pings.dead():
                return self._stop(f"{dead[0]} has died: {dead[1]}\n{told}")
            if self._stalled_after_s and waited > self._stalled_after_s:
                faulthandler.dump_traceback(file=sys.__stderr__ or sys.stderr)  # the stacks of all threads of the trainer
                return self._stop(
                    f"{told}: research_rl.stalled_after_s is {self._stalled_after_s:g}; raise it if such a part may take longer"
                )
            self._tell_memory()
        return None

    def _stop(self, why: str) -> None:
        if self._over.is_set():  # the trainer has ended in the meantime, or has met the same failure itself
            return
        self.stopped(why)
        os.kill(os.getpid(), signal.SIGUSR2)
        if self._grace_s is None:
            return
        # verl's cleanup may wait for the dead actor, too
        timer = threading.Timer(self._grace_s, os._exit, (1,))
        timer.daemon = True
        timer.start()

    def stopped(self, why: str) -> RunStoppedError:
        """Print why the run ends, and return the error that ends it."""
        self._error = RunStoppedError(f"{why}\nThe run is ended. The same command goes on from the last checkpoint.")
        print(f"research_rl: {self._error}", file=sys.stderr, flush=True)
        return self._error

    def _tell_memory(self) -> None:
        """Warn, once per step, that Ray is about to kill processes, and name the largest ones."""
        used, step = psutil.virtual_memory().percent, self._step()
        if used < MEMORY_ALARM or self._memory_told == step:
            return
        self._memory_told = step
        print(
            f"research_rl: {used:.0f} % of this machine's memory is in use, and Ray ends processes at 95 %. "
            f"The largest: {'; '.join(largest())}",
            file=sys.stderr,
            flush=True,
        )


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def doing_now(frame: FrameType | None) -> str:
    """Return what the trainer does, by the innermost function of DOING on the stack of `frame`."""
    while frame is not None:
        if (name := frame.f_code.co_name) in DOING:
            return DOING[name]
        frame = frame.f_back
    return "between two parts of a step"


def largest(number: int = 4) -> list[str]:
    """Return the largest processes of this machine as texts, with their resident memory in GiB."""
    found = []
    for process in psutil.process_iter(["pid", "name", "memory_info"]):
        if (memory := process.info["memory_info"]) is not None:
            found.append((memory.rss, f"{process.info['name']} ({process.info['pid']}) {memory.rss / 2**30:.1f} GiB"))
    return [text for _, text in sorted(found, reverse=True)[:number]]
