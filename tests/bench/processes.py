"""Processes on a core of their own: what ends with them, and what they used."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

CORES = sorted(os.sched_getaffinity(0))
DAEMON_CORE, OTHER_CORE = CORES[0], CORES[-1]
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def start(core: int, *arguments: str, within: Sequence[str] = (), **streams: Any) -> subprocess.Popen[str]:
    """`python ARGUMENTS`, pinned; `within` a command that becomes it."""
    process = subprocess.Popen([*within, sys.executable, *arguments], text=True, **streams)
    os.sched_setaffinity(process.pid, {core})
    return process


async def output_of(core: int, *arguments: str, timeout: float = 120) -> Any:
    """What a Python process prints as JSON; it is ended with us."""
    process = start(core, *arguments, stdout=subprocess.PIPE)
    try:
        printed, _ = await asyncio.to_thread(process.communicate, timeout=timeout)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0, f"{arguments} failed"
    return json.loads(printed)


async def until(holds: Callable[[], bool], what: str, timeout: float = 120) -> None:
    """Poll for what happens in another process."""
    ends_at = time.monotonic() + timeout
    while not holds():
        if time.monotonic() > ends_at:
            raise TimeoutError(f"waited {timeout:.0f} s in vain for {what}")
        await asyncio.sleep(0.05)


class Sink:
    """A running receiver, see sink.py."""

    def __init__(self, url: str) -> None:
        self.url = url

    def reset(self, *, keep: bool = False) -> None:
        """Start over; `keep` arrivals, at the price of some µs each."""
        urlopen(Request(self.url + ("/_reset_keep" if keep else "/_reset"), data=b""), timeout=10).close()

    def stats(self) -> dict[str, Any]:
        return dict(self._get("/_stats"))

    def group(self, name: str = "ok") -> tuple[int, float, float]:
        """Requests received, and the epoch seconds of the first and the last."""
        group = self.stats()["groups"].get(name, {"received": 0, "first_at": 0.0, "last_at": 0.0})
        return group["received"], group["first_at"], group["last_at"]

    def received(self, name: str = "ok") -> int:
        return self.group(name)[0]

    def rate(self, name: str = "ok") -> float:
        """Requests per second between the first arrival and the last."""
        received, first_at, last_at = self.group(name)
        return (received - 1) / (last_at - first_at)

    def arrivals(self) -> dict[tuple[str, str], float]:
        """Epoch seconds of the first arrival by path and webhook id."""
        found: dict[str, float] = self._get("/_arrivals")
        return {(key.split(" ")[0], key.split(" ")[1]): at for key, at in found.items()}

    def _get(self, path: str) -> Any:
        with urlopen(self.url + path, timeout=30) as response:
            return json.load(response)


@contextmanager
def sink(core: int) -> Iterator[Sink]:
    process = start(core, "-m", "tests.bench.sink", stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        yield Sink(f"http://127.0.0.1:{int(process.stdout.readline())}")
    finally:
        process.kill()
        process.wait()


class Daemon:
    """`postrider run` on the daemon's core."""

    def __init__(self, config: Path, log: Path, within: Sequence[str] = ()) -> None:
        self._log = log
        with log.open("w") as stream:
            self.started_at = time.time()
            arguments = ("-m", "postrider", "run", "--config", str(config))
            self._process = start(DAEMON_CORE, *arguments, within=within, stderr=stream)

    def lives(self) -> bool:
        """True; fails with the end of its log once it is dead."""
        if self._process.poll() is not None:
            raise RuntimeError(f"the daemon ended with {self._process.returncode}:\n{self._tail()}")
        return True

    def _tail(self) -> str:
        return self._log.read_text()[-4000:]

    async def until(self, holds: Callable[[], bool], what: str, timeout: float = 120) -> None:
        try:
            await until(lambda: self.lives() and holds(), what, timeout)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; the daemon's log ends:\n{self._tail()}") from None

    def cpu_s(self) -> float:
        return cpu_s(self._process.pid)

    def peak_rss_mb(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


def cpu_s(pid: int, *, with_ended_children: bool = False) -> float:
    """User and system seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11 : 15 if with_ended_children else 13])) / _TICKS_PER_S


def cpu_s_with_children(pid: int) -> float:
    """User and system seconds of a process and of all its children, those that ended included."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return cpu_s(pid, with_ended_children=True) + sum(cpu_s(int(child)) for child in children)
