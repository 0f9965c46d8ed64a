"""The pool of connections, and the one place where the driver's exceptions become Postrider's."""

import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import structlog

from postrider.domain.errors import PostriderError

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
else:
    Connection = asyncpg.Connection  # generic in its stubs only

COMMAND_TIMEOUT_S = 60.0
"""A statement that takes longer was sent over a dead socket, or the database is not usable anyway."""
CONNECT_TIMEOUT_S = 5.0

log = structlog.get_logger()


class DatabaseError(PostriderError):
    """The database refused: bad credentials, missing rights, wrong schema."""


class DatabaseUnavailable(DatabaseError):
    """The database can't be reached at the moment; the same call may succeed later."""


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
_REFUSED = {
    asyncpg.InvalidPasswordError: "Check user and password in database.dsn.",
    asyncpg.InvalidAuthorizationSpecificationError: "Check the user in database.dsn, and pg_hba.conf.",
    asyncpg.InvalidCatalogNameError: "Create the database, or name another one in database.dsn.",
    asyncpg.InsufficientPrivilegeError: "Grant the role postrider_daemon to the user of database.dsn.",
    asyncpg.UndefinedTableError: "Run `postrider migrate`.",
    asyncpg.UndefinedFunctionError: "Run `postrider migrate`.",
    asyncpg.InvalidSchemaNameError: "Run `postrider migrate`.",
    asyncpg.UndefinedColumnError: "Run `postrider migrate`.",
}


@contextmanager
def translated_errors() -> Iterator[None]:
    try:
        yield
    except ssl.SSLError as error:
        raise DatabaseError(
            f"TLS to the database failed: {error}", "Check sslmode in database.dsn."
        ) from error
    except asyncpg.ClientConfigurationError as error:
        raise DatabaseError(
            f"database.dsn can't be used: {error}", "Mend it in the configuration."
        ) from error
    except _UNAVAILABLE as error:
        raise DatabaseUnavailable(
            f"the database can't be reached: {error or type(error).__name__}",
            "Check that PostgreSQL runs and that database.dsn names it.",
        ) from error
    except tuple(_REFUSED) as error:
        raise DatabaseError(f"the database refused: {error}", _REFUSED[type(error)]) from error


class Database:
    """Lends connections. It reports once that the database is gone, and once that it is back."""

    def __init__(
        self, dsn: str, *, pool_size: int, pooled: bool = False, synchronous_commit: bool = True
    ) -> None:
        """`pooled`: a transaction pooler stands between, or may: a single command gains nothing from what
        needs a session. `synchronous_commit=False` is for the daemon:
        a crash of the server may undo its last results, which costs duplicates, never an event."""
        self._dsn = dsn
        self._pool_size = pool_size
        self._pooled = pooled
        self._synchronous_commit = synchronous_commit
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self.available = True
        self._losses = 0
        self.on_restored: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        return f"<Database {'available' if self.available else 'unavailable'}>"

    async def open(self) -> None:
        """Make the pool. Connections are opened when they are needed."""
        with translated_errors():
            self._pool = await asyncpg.create_pool(
                self._dsn,
                min_size=0,
                max_size=self._pool_size,
                command_timeout=COMMAND_TIMEOUT_S,
                timeout=CONNECT_TIMEOUT_S,
                # Behind a transaction pooler a prepared statement may be on another server connection.
                statement_cache_size=0 if self._pooled else 100,
                max_inactive_connection_lifetime=300.0,
                init=self._prepare,
                reset=_keep_session,
            )

    async def close(self) -> None:
        if self._pool is not None:
            pool, self._pool = self._pool, None
            try:
                await pool.close()
            except _UNAVAILABLE:
                pool.terminate()

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Borrow a connection; DatabaseUnavailable when there is none or it breaks."""
        assert self._pool is not None, "open() comes first"
        losses = self._losses
        try:
            with translated_errors():
                async with self._pool.acquire(timeout=CONNECT_TIMEOUT_S + 1) as connection:
                    yield connection
        except DatabaseUnavailable as error:
            self.mark_lost(error)
            raise
        # What was under way when the database went away says nothing of its return.
        if losses == self._losses:
            self._mark_restored()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with self.connection() as connection, connection.transaction():
            yield connection

    async def dedicated(self) -> Connection:
        """A connection outside the pool, for LISTEN and the session lock; the caller closes it."""
        with translated_errors():
            return await asyncpg.connect(
                self._dsn,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=CONNECT_TIMEOUT_S,
                statement_cache_size=0,
            )

    async def _prepare(self, connection: Connection) -> None:
        if self._pooled:
            return  # what is set here would stay with the pooler's connection, for others
        # Every statement here reads a few rows by key, which a plan made on stale statistics may not turn
        # into a scan; and the price of a forbidden scan may not start the compiler.
        await connection.execute("SET enable_seqscan = off; SET jit = off; SET timezone = 'UTC'")
        if not self._synchronous_commit:
            await connection.execute("SET synchronous_commit = off")

    def mark_lost(self, error: DatabaseError) -> None:
        if self.available:
            self.available = False
            self._losses += 1
            log.error("database.lost", reason=error.message)

    def _mark_restored(self) -> None:
        if not self.available:
            self.available = True
            log.info("database.restored")
            self.on_restored()


async def _keep_session(connection: Connection) -> None:
    """The default reset costs a round trip on every release, and nothing here changes a session."""


async def is_pooled(dsn: str) -> bool:
    """Whether a transaction pooler such as PgBouncer stands between: it makes up its own backend ids."""
    with translated_errors():
        connection = await asyncpg.connect(dsn, timeout=CONNECT_TIMEOUT_S, statement_cache_size=0)
    try:
        with translated_errors():
            backend: Any = await connection.fetchval("SELECT pg_backend_pid()")
        return bool(backend != connection.get_server_pid())
    finally:
        await connection.close(timeout=CONNECT_TIMEOUT_S)
