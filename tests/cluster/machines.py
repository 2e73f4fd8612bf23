"""Machines made of this one: each with a name, an address, processes, shared memory and a Ray directory of its own, in Linux namespaces.

Directories can be hidden from a machine; all others are as if on a shared file system.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

HUB, BRIDGE, DEVICE = "rrl-hub", "br0", "eth0"


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


def unavailable() -> str:
    """Return why namespaces cannot be made here; empty: they can."""
    try:
        _ip("netns", "add", f"{HUB}-{os.getpid()}")
        _ip("netns", "del", f"{HUB}-{os.getpid()}")
    except FileNotFoundError:
        return "needs `ip` (iproute2)"
    except subprocess.CalledProcessError as error:
        return f"needs network namespaces, which only root may make: {error.stderr.strip()}"
    return ""


class Network:
    """Machines on one bridge, 10.77.0.1 and onwards in the order of their names; a context manager."""

    def __init__(self, names: Sequence[str], directory: Path) -> None:
        self.addresses = {name: f"10.77.0.{number}" for number, name in enumerate(names, 1)}
        self._hidden: dict[str, list[Path]] = {}
        self._hosts = directory / "hosts"
        hosts = {"localhost": "127.0.0.1"} | {self._space(name): address for name, address in self.addresses.items()}
        self._hosts.write_text("".join(f"{address}\t{name}\n" for name, address in hosts.items()), encoding="utf-8")

    def __enter__(self) -> Network:
        self._remove()
        _ip("netns", "add", HUB)
        _ip("-n", HUB, "link", "add", BRIDGE, "type", "bridge")
        _ip("-n", HUB, "link", "set", BRIDGE, "up")
        for number, (name, address) in enumerate(self.addresses.items(), 1):
            space = self._space(name)
            _ip("netns", "add", space)
            _ip("-n", HUB, "link", "add", f"veth{number}", "type", "veth", "peer", "name", DEVICE, "netns", space)
            _ip("-n", HUB, "link", "set", f"veth{number}", "master", BRIDGE, "up")
            _ip("-n", space, "addr", "add", f"{address}/24", "dev", DEVICE)
            for device in ("lo", DEVICE):
                _ip("-n", space, "link", "set", device, "up")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.addresses:
            self.kill(name)
        self._remove()

    def hide(self, name: str, *directories: Path) -> None:
        """Let a machine see nothing in these directories."""
        self._hidden[name] = [one for one in directories if not any(other in one.parents for other in directories)]

    def start(
        self, name: str, command: Sequence[str], log: Path, environment: Mapping[str, str], directory: Path
    ) -> subprocess.Popen[bytes]:
        """Start a command on a machine, in a directory, its output appended to `log`."""
        own = [Path("/tmp/ray"), Path("/dev/shm"), *self._hidden.get(name, [])]
        script = " && ".join(
            [
                f"hostname {self._space(name)}",
                f"mount --bind {shlex.quote(str(self._hosts))} /etc/hosts",
                "mkdir -p /tmp/ray",
                *(f"mount -t tmpfs none {shlex.quote(str(path))}" for path in own),
                f"cd {shlex.quote(str(directory))}",
                f"exec {shlex.join(command)}",
            ]
        )
        own_view = ["unshare", "--mount", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", script]
        with log.open("ab") as output:
            return subprocess.Popen(
                ["ip", "netns", "exec", self._space(name), *own_view],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env={**os.environ, **environment},
                start_new_session=True,
            )  # fmt: skip

    def kill(self, name: str) -> int:
        """Kill everything that runs on a machine, as a power cut would; return how many processes that were."""
        killed = 0
        for _ in range(5):  # some are started while others are killed
            found = subprocess.run(
                ["ip", "netns", "pids", self._space(name)], capture_output=True, text=True, check=False
            ).stdout.split()
            for pid in found:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
                    killed += 1
            if not found:
                break
            psutil.wait_procs([psutil.Process(int(pid)) for pid in found if psutil.pid_exists(int(pid))], timeout=1)
        return killed

    @staticmethod
    def _space(name: str) -> str:
        return f"rrl-{name}"

    def _remove(self) -> None:
        for space in (HUB, *(self._space(name) for name in self.addresses)):
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
