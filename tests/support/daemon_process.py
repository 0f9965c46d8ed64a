"""`postrider run` as a process of its own, and the endpoints and events that tests need."""

import asyncio
import json
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import asyncpg
import psycopg

from postrider.domain.model import Endpoint, EndpointState
from postrider.domain.sealing import Sealer
from postrider.store import endpoints

QUEUED = """
SELECT (SELECT count(*) FROM postrider.pending)
     + (SELECT coalesce(sum(cardinality(event_ids)), 0) FROM postrider.claim)
"""
"""Events of which something is to be recorded."""
ROOT = Path(__file__).parents[2]
PATIENCE_S = 60.0
"""How long a test waits for what has to come: a bound of a loaded machine, not of the daemon."""
SECRET = "whsec_" + "c2VjcmV0" * 6


def write_config(directory: Path, dsn: str, name: str = "postrider", **sections: dict[str, Any]) -> Path:
    """A configuration that permits loopback; `sections` adds to it or replaces keys."""
    merged: dict[str, dict[str, Any]] = {
        "database": {"dsn": dsn},
        "network": {"https_only": False, "allow": ["127.0.0.0/8"]},
        "admin": {"listen": ""},
        "log": {"format": "json"},
    }
    for section, keys in sections.items():
        merged.setdefault(section, {}).update(keys)
    lines = []
    for section, keys in merged.items():
        lines.append(f"[{section}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
    path = directory / f"{name}.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


class DaemonProcess:
    """A running daemon; a context manager that ends it. Its log lines go to a file."""

    def __init__(
        self, config: Path, *, within: Sequence[str] = (), program: Sequence[str] = ("postrider",)
    ) -> None:
        """`within`: a command that runs it, such as `ip netns exec NAME`; `program`: the module, and what
        goes before the command."""
        self.log_path = config.with_suffix(f".{time.monotonic_ns()}.log")
        self._log = self.log_path.open("wb")
        self.process = subprocess.Popen(
            [*within, sys.executable, "-m", *program, "run", "--config", str(config)],
            stderr=self._log,
            cwd=ROOT,
        )
        self.started_at = time.time()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()
        self.process.wait(60)
        self._log.close()

    def logged(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of one event name."""
        lines = [json.loads(line) for line in self.log_path.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    def wait_for_log(self, event: str, timeout: float = PATIENCE_S) -> dict[str, Any]:
        wait_until(lambda: bool(self.logged(event)) or self.process.poll() is not None, event, timeout)
        return self.logged(event)[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def terminate(self, timeout: float = PATIENCE_S) -> int:
        self.process.terminate()
        return self.process.wait(timeout)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


def wait_until(holds: Callable[[], bool], what: str, timeout: float = PATIENCE_S) -> None:
    """Poll for a condition in another process."""
    ends_at = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < ends_at, f"waited {timeout} s in vain for {what}"
        time.sleep(0.02)


def add_endpoint(dsn: str, url: str, *patterns: str, secret: str = SECRET, **fields: Any) -> int:
    """Subscribe a URL; return the endpoint's id."""
    endpoint = Endpoint(
        id=secrets.randbits(63) or 1,
        workspace_id=fields.pop("workspace_id", "default"),
        url=url,
        patterns=patterns or ("*",),
        exclusions=fields.pop("exclusions", ()),
        dialect=fields.pop("dialect", "standard"),
        secrets=(),
        state=fields.pop("state", EndpointState.ACTIVE),
        concurrency=fields.pop("concurrency", None),
        headers=fields.pop("headers", {}),
        failing_since=None,
    )
    assert not fields, fields

    async def add() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await endpoints.add(connection, Sealer(), endpoint, [secret], datetime.now(UTC))
        finally:
            await connection.close()

    asyncio.run(add())
    return endpoint.id


def query(dsn: str, statement: str, *arguments: object) -> list[asyncpg.Record]:
    async def run() -> list[asyncpg.Record]:
        connection = await asyncpg.connect(dsn)
        try:
            return await connection.fetch(statement, *arguments)
        finally:
            await connection.close()

    return asyncio.run(run())


def emit(dsn: str, count: int = 1, event_type: str = "deal.updated") -> list[str]:
    """Emit events in one transaction; return their ids."""
    rows = query(
        dsn,
        """SELECT postrider.emit($1, json_build_object('n', n)) AS id FROM generate_series(1, $2) AS n""",
        event_type,
        count,
    )
    return [row["id"] for row in rows]


class Writers:
    """Threads that each commit events one by one, and repeat what a lost connection cut off, by
    idempotency key. `join` returns the ids of all events whose commit was acknowledged."""

    def __init__(self, dsn: str, *, writers: int, each: int, pause_s: float = 0.0, name: str = "") -> None:
        """`name` sets the keys of these writers apart from those of others."""
        self._dsn = dsn
        self._name = name
        self._each = each
        self._pause_s = pause_s
        self._ids: list[str] = []
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(writers)]
        for thread in self._threads:
            thread.start()

    @property
    def writing(self) -> bool:
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> list[str]:
        """Let them write no more; return what `join` does."""
        self._stopped.set()
        return self.join()

    def join(self) -> list[str]:
        for thread in self._threads:
            thread.join()
        return self._ids

    def _write(self, writer: int) -> None:
        number = 0
        while number < self._each and not self._stopped.is_set():
            try:
                with psycopg.connect(self._dsn, autocommit=True) as connection:
                    while number < self._each and not self._stopped.is_set():
                        row = connection.execute(
                            """SELECT postrider.emit('deal.updated', json_build_object('n', %s::int),
                                                     idempotency_key => %s)""",
                            (number, f"{self._name}{writer}-{number}"),
                        ).fetchone()
                        assert row is not None
                        self._ids.append(row[0])
                        number += 1
                        time.sleep(self._pause_s)
            except psycopg.OperationalError:
                time.sleep(0.05)


def assert_settled(dsn: str, states: Sequence[str] = ("succeeded",)) -> None:
    """Nothing is pending, and every delivery has come to an end."""
    wait_until(lambda: query(dsn, QUEUED)[0][0] == 0, "an empty queue")
    # What was claimed apart from its event is recorded apart, a moment later.
    under_way = "SELECT count(*) FROM postrider.delivery WHERE state = 'sending'"
    wait_until(lambda: query(dsn, under_way)[0][0] == 0, "no delivery under way")
    found = {row["state"] for row in query(dsn, "SELECT DISTINCT state FROM postrider.delivery")}
    assert found <= set(states), found
