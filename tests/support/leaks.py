"""What a test may not leave behind: asyncio tasks, sockets, sessions of its database, other processes.

`asyncio.run` cancels what is left without a word, and a test's database is dropped with whoever is connected:
both would hide what never ends.
"""

import asyncio
import asyncio.runners
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from postrider.store.database import Connection

CHILDREN = Path(f"/proc/self/task/{os.getpid()}/children")
SESSIONS = """
SELECT application_name || ': ' || query FROM pg_stat_activity
WHERE datname = $1 AND backend_type = 'client backend'
"""
SESSIONS_END_S = 10.0
"""A server looks for the end of a session when it is through with what it does."""

_left: list[str] = []


def watch_event_loops() -> None:
    """Note from now on which tasks are left when an event loop ends."""
    runners: Any = asyncio.runners
    cancel_all = runners._cancel_all_tasks

    def note_and_cancel_all(loop: asyncio.AbstractEventLoop) -> None:
        _left.extend(repr(task) for task in asyncio.all_tasks(loop))
        cancel_all(loop)

    runners._cancel_all_tasks = note_and_cancel_all


@contextmanager
def nothing_left() -> Iterator[None]:
    """Fail where more is there afterwards than before."""
    _left.clear()
    sockets, children = _sockets(), _children()
    yield
    tasks = list(_left)
    _left.clear()
    assert not tasks, f"asyncio tasks that never ended: {tasks}"
    assert not (left := _sockets() - sockets), f"sockets that are open: {_described(left)}"
    left_running = {each: command for each, command in _children().items() if each not in children}
    assert not left_running, f"processes that run: {left_running}"


async def wait_for_no_sessions(connection: Connection, database: str) -> list[str]:
    """Return what is left of the sessions of a database that is about to be dropped."""
    ends_at = time.monotonic() + SESSIONS_END_S
    while (rows := await connection.fetch(SESSIONS, database)) and time.monotonic() < ends_at:
        await asyncio.sleep(0.005)
    return [row[0] for row in rows]


def _sockets() -> set[str]:
    found = set()
    for each in os.scandir("/proc/self/fd"):
        try:
            target = str(Path(each.path).readlink())
        except OSError:  # the one of this scan
            continue
        if target.startswith("socket:"):
            found.add(target)
    return found


def _children() -> dict[str, str]:
    """Processes that this one started, with their commands; but for those of multiprocessing, which stay."""
    if not CHILDREN.exists():
        return {}
    commands = {each: _command(each) for each in CHILDREN.read_text().split()}
    return {each: command for each, command in commands.items() if "from multiprocessing" not in command}


def _command(process: str) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return "gone meanwhile"


def _described(sockets: set[str]) -> list[str]:
    inodes = {each.removeprefix("socket:[").removesuffix("]") for each in sockets}
    lines = [
        line
        for table in ("tcp", "tcp6", "udp", "unix")
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()
        if inodes & set(line.split())
    ]
    return lines or sorted(sockets)
