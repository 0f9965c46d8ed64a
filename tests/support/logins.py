"""Logins that tests need beside the superuser, as people make them on a server of theirs."""

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from tests.conftest import execute


@contextmanager
def login(dsn: str, *statements: str, member_of: Sequence[str] = ()) -> Iterator[str]:
    """The DSN of a new login, which is gone afterwards with all that it owns in that database. `{login}` in
    `statements`, which the superuser runs first, is its name."""
    name, password = f"test_{secrets.token_hex(4)}", secrets.token_hex(8)
    grants = [f"GRANT {role} TO {name}" for role in member_of]
    made = [f"CREATE ROLE {name} LOGIN PASSWORD '{password}'", *grants]
    execute(dsn, *made, *(each.format(login=name) for each in statements))
    try:
        yield with_user(dsn, name, password)
    finally:
        ended = f"SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{name}'"
        execute(dsn, ended, f"DROP OWNED BY {name} CASCADE", f"DROP ROLE {name}")


def user_of(dsn: str) -> str:
    return urlsplit(dsn).username or dict(parse_qsl(urlsplit(dsn).query))["user"]


def with_user(dsn: str, name: str, password: str) -> str:
    parts = urlsplit(dsn)
    place = parts.netloc.rpartition("@")[2]
    kept = [(key, value) for key, value in parse_qsl(parts.query) if key not in ("user", "password")]
    return urlunsplit(
        parts._replace(netloc=f"{name}:{quote(password)}@{place}", query=urlencode(kept, safe="/"))
    )
