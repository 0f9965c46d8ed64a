"""Parameters that users of libpq have in their URLs."""

import pytest

from postrider.domain.dsn import DsnMistake, parse_dsn
from postrider.domain.errors import UsageError
from postrider.edges.config import parse_config

BASE = "postgresql://u:p%40ss@a:5432,b:5433/crm"


def test_what_postrider_does_itself_is_kept_from_the_driver() -> None:
    dsn = parse_dsn(
        f"{BASE}?passfile=/etc/pgpass&connect_timeout=3&application_name=crm%20hooks&pgbouncer=true"
        "&keepalives=1&channel_binding=prefer&sslmode=require&target_session_attrs=read-write&sslcert="
    )
    assert dsn.url == f"{BASE}?passfile=/etc/pgpass&sslmode=require&target_session_attrs=read-write"
    assert (dsn.application_name, dsn.connect_timeout_s, dsn.pooled) == ("crm hooks", 3.0, True)


@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [
        ("channel_binding=require", "channel_binding to be disable or prefer: .*sslmode=verify-full"),
        ("connect_timeout=0", "connect_timeout to be 1 to 60 seconds"),
        ("connect_timeout=5s", "connect_timeout to be 1 to 60 seconds"),
        ("keepalives=0", "keepalives to be 1: a heartbeat"),
        ("keepalives_idle=30", "no keepalives_idle: a heartbeat"),
        ("target_session_attrs=standby", "target_session_attrs to be any or .*: Postrider writes"),
        ("sslmode=on", "sslmode to be disable or "),
        ("pgbouncer=1", "pgbouncer to be true or false"),
        ("service=crm", "no service: write what"),
        ("aplication_name=x", r"did you mean application_name\?"),
        (f"application_name={'x' * 49}", "at most 48 printable"),
        ("statement_timeout=5000", "ALTER ROLE"),
        ("port=5433", "host and port in one place"),
        ("host=/run/postgresql", "host and port in one place"),
        ("user=v", "the user in one place"),
        ("password=q", "the password in one place"),
        ("dbname=other", "the database in one place"),
        ("sslmode", r"parameters such as \?sslmode=require"),
    ],
)
def test_what_can_not_be_honoured_is_refused_with_a_sentence(parameter: str, sentence: str) -> None:
    with pytest.raises(DsnMistake, match=sentence):
        parse_dsn(f"{BASE}?{parameter}")
    with pytest.raises(UsageError, match=f"database.dsn: expected .*{sentence}") as caught:
        parse_config({"database": {"dsn": f"{BASE}?{parameter}"}}, "test.toml")
    assert "p%40ss" not in str(caught.value)


@pytest.mark.parametrize(
    ("dsn", "sentence"),
    [
        ("postgresql://u@h:70000/crm", "a port from 1 to 65535"),
        ("postgresql://u@h:0/crm", "a port from 1 to 65535"),
        ("postgresql://u@h/crm?sslrootcert=/nowhere/ca.pem", "sslrootcert to be a file that can be read"),
    ],
)
def test_a_place_that_can_not_be_is_refused(dsn: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        parse_config({"database": {"dsn": dsn}}, "test.toml")
