"""PgBouncer in transaction mode before the test server, where it is installed."""

import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import pytest

from tests.support.daemon_process import wait_until


@contextmanager
def transaction_pooler(dsn: str, directory: Path) -> Iterator[str]:
    """The DSN of the same database and user through a pooler with one connection to the server."""
    program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if program is None:
        pytest.skip("pgbouncer is not installed")
    parts = urlsplit(dsn)
    host = dict(parse_qsl(parts.query)).get("host") or parts.hostname
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    users = directory / "users.txt"
    users.write_text(f'"{parts.username}" "{parts.password or ""}"\n')
    config = directory / "pgbouncer.ini"
    config.write_text(
        f"""
[databases]
* = host={host} port={parts.port or 5432}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = trust
auth_file = {users}
pool_mode = transaction
default_pool_size = 4
"""
    )
    command = [program, str(config)]
    if os.geteuid() == 0:  # it refuses to run as root
        for each in (directory, *directory.parents):
            if each.stat().st_mode & 0o005 != 0o005:
                each.chmod(each.stat().st_mode | 0o005)
        owner = Path(host).stat().st_uid if host and host.startswith("/") else pwd.getpwnam("nobody").pw_uid
        command = [program, "-u", pwd.getpwuid(owner).pw_name, str(config)]
    with (directory / "pgbouncer.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:

        def listening() -> bool:
            assert process.poll() is None, (directory / "pgbouncer.log").read_text()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listening, "pgbouncer")
        place = f"{parts.username}:{parts.password or ''}@127.0.0.1:{port}"
        yield urlunsplit(parts._replace(netloc=place, query=""))
    finally:
        process.terminate()
        process.wait(10)
