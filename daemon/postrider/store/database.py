"""The pool of connections, and the one place where the driver's exceptions become Postrider's.

Every session looks names up in `pg_catalog` alone, whatever the role's or the database's settings say: a
login that may create functions in another schema would else have its own called in place of the built-in
ones. PostgreSQL takes that as a parameter of the connection, which beats those settings. Behind a transaction
pooler a session belongs to others, too, so there each use is one transaction that begins with its settings.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import asyncpg
import structlog

from postrider.domain.dsn import parse_dsn
from postrider.domain.errors import PostriderError, UsageError

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Connection = asyncpg.Connection  # generic in its stubs only

COMMAND_TIMEOUT_S = 60.0
"""A statement that takes longer was sent over a dead socket, or the database is not usable anyway."""
CONNECT_TIMEOUT_S = 5.0
CLOSE_TIMEOUT_S = 5.0

KEPT_FROM_POOL_SIZE = 2
"""Of a pool with more connections than these one service may keep one."""

PINNED = {"search_path": "pg_catalog, pg_temp"}
"""What every session of Postrider's sets."""
_VANISHED = {
    # Else a server keeps the session of a host that vanished, and its locks, for two hours.
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "3",
    "tcp_keepalives_count": "4",
    "tcp_user_timeout": "15000",
}
_KEYED = {
    # Every statement of the daemon reads a few rows by key, which a plan made on stale statistics may not
    # turn into a scan; and the price of a forbidden scan may not start the compiler.
    "enable_seqscan": "off",
    "jit": "off",
}

log = structlog.get_logger()


class DatabaseError(PostriderError):
    """The database refused: bad credentials, missing rights, wrong schema."""


class DatabaseUnavailable(DatabaseError):
    """The database can't be reached at the moment; the same call may succeed later."""


class Busy(Exception):
    """A lock was not to be had in the time that others may wait behind it."""


_UNAVAILABLE = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a statement that was about to be sent when the server hung up
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # admin_shutdown, crash_shutdown, cannot_connect_now
    asyncpg.TooManyConnectionsError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # the database accepts no connections at the moment
    asyncpg.ReadOnlySQLTransactionError,  # a standby, for the time of a failover
)
_OTHER_SCHEMA = "`postrider check` says whether the program is older than the schema, or newer."
_REFUSED = {
    asyncpg.InvalidPasswordError: "Check user and password in database.dsn.",
    asyncpg.InvalidAuthorizationSpecificationError: "Check the user in database.dsn, and pg_hba.conf. Peer "
    "authentication wants the system user of that name: runuser -u NAME -- postrider …",
    asyncpg.InvalidCatalogNameError: "Create the database, or name another one in database.dsn.",
    asyncpg.InsufficientPrivilegeError: "Grant the role postrider_daemon to the user of database.dsn.",
    asyncpg.UndefinedTableError: _OTHER_SCHEMA,
    asyncpg.UndefinedFunctionError: _OTHER_SCHEMA,
    asyncpg.InvalidSchemaNameError: _OTHER_SCHEMA,
    asyncpg.UndefinedColumnError: _OTHER_SCHEMA,
}


@contextmanager
def translated_errors() -> Iterator[None]:
    """Raises DatabaseError, and UsageError for text that PostgreSQL has no bytes for."""
    try:
        yield
    except asyncpg.DataError as error:
        # The server's errors of that class have no cause; those of the driver, which come before anything was
        # sent, have the codec's. The text is not quoted: no terminal could show it.
        if isinstance(error.__cause__, UnicodeEncodeError):
            raise UsageError("an argument is not UTF-8", "Give it in UTF-8.") from None
        raise
    except ssl.SSLError as error:
        raise DatabaseError(
            f"TLS to the database failed: {error}", "Check sslmode in database.dsn."
        ) from error
    except asyncpg.ClientConfigurationError as error:
        raise DatabaseError(
            f"database.dsn can't be used: {error}", "Mend it in the configuration."
        ) from error
    except asyncpg.LockNotAvailableError:
        raise  # whoever set a lock_timeout knows what it means
    except _UNAVAILABLE as error:
        raise DatabaseUnavailable(
            f"the database can't be reached: {error or type(error).__name__}",
            "Check that PostgreSQL runs and that database.dsn names it.",
        ) from error
    except tuple(_REFUSED) as error:
        raise DatabaseError(f"the database refused: {error}", _REFUSED[type(error)]) from error


@contextmanager
def _connecting() -> Iterator[None]:
    """The same where a connection is made: what else the server or the driver says is about database.dsn."""
    try:
        with translated_errors():
            yield
    except (asyncpg.PostgresError, ValueError, OverflowError) as error:
        raise DatabaseError(
            f"database.dsn can't be used: {error}", "Mend it in the configuration."
        ) from error


class Database:
    """Lends connections. It reports once that the database is gone, and once that it is back."""

    def __init__(
        self,
        dsn: str,
        *,
        pool_size: int,
        keyed: bool = True,
        synchronous_commit: bool = True,
        process: str | None = None,
    ) -> None:
        """`keyed=False`: people's questions, which may read whole tables. `synchronous_commit=False` is for
        the daemon: a crash of the server may undo its last results, which costs duplicates, never an
        event. `process` is what no other process has in the name of its sessions: whoever takes a daemon for
        dead ends them by it."""
        self._dsn = parse_dsn(dsn)
        self._connect_timeout_s = self._dsn.connect_timeout_s or CONNECT_TIMEOUT_S
        self._pool_size = pool_size
        self._settings = PINNED | {"timezone": "UTC"} | (_KEYED if keyed else {})
        if not synchronous_commit:
            self._settings["synchronous_commit"] = "off"
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        name = self._dsn.application_name or "postrider"
        self.application_name = name if process is None else f"{name} {process}"
        """Of all its sessions."""
        self.pooled = False
        """Whether a transaction pooler such as PgBouncer stands between; known once it is open."""
        self.available = True
        self._losses = 0
        self.restored = asyncio.Event()
        """Set while nothing says that the database is away."""
        self.restored.set()

    def __repr__(self) -> str:
        return f"<Database {'available' if self.available else 'unavailable'}>"

    async def open(self) -> None:
        """Learn what stands between, and make the pool. Raises DatabaseError."""
        with _connecting():
            self.pooled = self._dsn.pooled or await self._reaches_pooler()
            self._pool = await self._make_pool()

    async def _make_pool(self) -> "asyncpg.Pool[asyncpg.Record]":
        return await asyncpg.create_pool(
            self._dsn.url,
            min_size=0,  # connections are opened when they are needed
            max_size=self._pool_size,
            command_timeout=COMMAND_TIMEOUT_S,
            timeout=self._connect_timeout_s,
            # Behind a transaction pooler a prepared statement may be on another server connection.
            statement_cache_size=0 if self.pooled else 100,
            max_inactive_connection_lifetime=300.0,
            server_settings=self._session_settings(),
            reset=_keep_session,
        )

    def _session_settings(self) -> dict[str, str]:
        name = {"application_name": self.application_name}
        # A pooler refuses other parameters, or leaves them out without a word.
        return name if self.pooled else name | _VANISHED | self._settings

    async def close(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            try:
                # A pool whose connections broke at the wrong moment waits for one that nobody has.
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await pool.close()
            except _UNAVAILABLE:
                pool.terminate()

    async def renew(self) -> None:
        """Let go of all connections: their server has vanished, and an answer would be awaited for long."""
        old, self._pool = self._pool, await self._make_pool()
        if old is not None:
            old.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection; DatabaseUnavailable when there is none or it breaks."""
        async with self._borrow() as connection:
            if self.pooled:
                async with connection.transaction():
                    await connection.execute(_local(self._settings))
                    yield connection
            else:
                yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """A transaction that only reads, and sees the database as of one moment."""
        async with (
            self._borrow() as connection,
            connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            if self.pooled:
                await connection.execute(_local(self._settings))
            yield connection

    @asynccontextmanager
    async def _borrow(self) -> AsyncIterator[Connection]:
        async with self.watched():
            loan = await self.lend()
            try:
                yield loan.connection
            finally:
                await loan.give_back()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Say once that the database is lost, and once that it is back."""
        losses = self._losses
        try:
            with translated_errors():
                yield
        except DatabaseUnavailable as error:
            self.mark_lost(error)
            raise
        # What was under way when the database went away says nothing of its return.
        if losses == self._losses:
            self._mark_restored()

    async def lend(self) -> "Loan":
        assert self._pool is not None, "open() comes first"
        pool, timeout = self._pool, self._connect_timeout_s + 1
        # The pool's own timeout would make a task of it, which takes the event loop two turns more.
        async with asyncio.timeout(timeout):
            return Loan(await pool.acquire(), pool, timeout)

    @property
    def spares_one(self) -> bool:
        """Whether one service may keep a connection of its own, with enough left for the others."""
        return not self.pooled and self._pool_size > KEPT_FROM_POOL_SIZE

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with self.connection() as connection, connection.transaction():
            yield connection

    @asynccontextmanager
    async def brief_transaction(self, what: str, lock_ms: int) -> AsyncIterator[Connection]:
        """One that waits for each lock only so long, because others wait behind it. Raises Busy, which says
        `what` was given up."""
        try:
            async with self.transaction() as connection:
                await connection.execute(f"SET LOCAL lock_timeout = {lock_ms}")
                yield connection
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            raise Busy(f"{what}: {error}") from error

    async def dedicated(self, *, command_timeout: float | None = CONNECT_TIMEOUT_S) -> Connection:
        """A connection outside the pool, which the caller closes: for LISTEN and the session lock, and for
        migrations. Behind a pooler its transactions have to begin with `pin`."""
        with _connecting():
            return await asyncpg.connect(
                self._dsn.url,
                timeout=self._connect_timeout_s,
                command_timeout=command_timeout,
                statement_cache_size=0,
                server_settings=self._session_settings(),
            )

    async def _reaches_pooler(self) -> bool:
        connection = await asyncpg.connect(
            self._dsn.url, timeout=self._connect_timeout_s, statement_cache_size=0
        )
        try:
            return await is_pooled(connection)
        finally:
            await connection.close(timeout=CLOSE_TIMEOUT_S)

    def mark_lost(self, error: DatabaseError) -> None:
        if self.available:
            self.available = False
            self.restored.clear()
            self._losses += 1
            log.error("database.lost", reason=error.message)

    def _mark_restored(self) -> None:
        if not self.available:
            self.available = True
            log.info("database.restored")
            self.restored.set()


class Loan:
    """A connection out of a pool."""

    def __init__(
        self,
        connection: "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]",
        pool: "asyncpg.Pool[asyncpg.Record]",
        timeout_s: float,
    ) -> None:
        self.connection = connection
        self._pool = pool
        self._timeout_s = timeout_s

    @property
    def usable(self) -> bool:
        try:
            return not self.connection.is_closed()
        except asyncpg.InterfaceError:  # the pool has taken it back: the server ended it
            return False

    async def give_back(self) -> None:
        # Even if the database renewed its pool meanwhile, to the one that it is of.
        await self._pool.release(self.connection, timeout=self._timeout_s)


async def _keep_session(connection: Connection) -> None:
    """The default reset costs a round trip on every release, and nothing here changes a session."""


async def pin(connection: Connection) -> None:
    """Look names up in pg_catalog alone, until the end of the transaction."""
    await connection.execute(_local(PINNED))


def _local(settings: dict[str, str]) -> str:
    # No setting but the search path has a value that would need quotes, and its quotes would make one name.
    return "; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())


async def is_pooled(connection: Connection) -> bool:
    """Whether the server has another id for the session than the client: poolers make up their own."""
    backend: int = await connection.fetchval("SELECT pg_catalog.pg_backend_pid()")
    return backend != connection.get_server_pid()
