"""Parameters of a database URL: what Postrider does itself, what the driver does, and what neither can.

The driver hands a parameter that it does not know to the server as a setting, which then refuses the
connection. So each one that libpq has is honoured here, or refused with what to do instead.
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import SplitResult, parse_qsl, quote, urlencode, urlsplit, urlunsplit

MAX_CONNECT_TIMEOUT_S = 60
MAX_NAME = 48
"""Characters of an application_name; PostgreSQL cuts it off at 63, and a daemon's own id comes behind it."""

_DRIVER = frozenset(
    {
        *("host", "port", "user", "password", "dbname", "database", "passfile", "options"),
        *("target_session_attrs", "krbsrvname", "gsslib"),
        *("sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation"),
        *("ssl_min_protocol_version", "ssl_max_protocol_version"),
    }
)
"""What the driver honours."""
_HEARTBEAT = "a heartbeat every 5 s finds a connection that is dead"
_CHOICES = {
    "target_session_attrs": (("any", "read-write", "primary"), "Postrider writes"),
    "sslmode": (("disable", "allow", "prefer", "require", "verify-ca", "verify-full"), ""),
    "channel_binding": (
        ("disable", "prefer"),
        "the driver binds to no channel, and sslmode=verify-full protects from the same",
    ),
    "keepalives": (("1",), _HEARTBEAT),
    "gssencmode": (("disable", "prefer"), "the driver does not encrypt by GSSAPI"),
    "client_encoding": (("utf8", "UTF8", "UTF-8", "auto"), "Postrider speaks UTF-8"),
    "load_balance_hosts": (("disable",), "hosts are tried in their order"),
    "sslcompression": (("0",), "it is not secure"),
    "sslsni": (("1",), "the driver names the server always"),
    "pgbouncer": (("true", "false"), ""),
}
"""Values that hold, and why no others do."""
_REFUSED = {
    **dict.fromkeys(
        ("keepalives_idle", "keepalives_interval", "keepalives_count", "tcp_user_timeout"), _HEARTBEAT
    ),
    "service": "write what the service says into the URL",
    "hostaddr": "name the address as the host",
    "replication": "Postrider does not replicate",
    "requirepeer": "the driver does not look at who owns the socket",
    "require_auth": "the driver answers what the server asks for",
    "sslcertmode": "give sslcert and sslkey, or leave both out",
    "sslcrldir": "name one file by sslcrl",
}
_OURS = frozenset({"application_name", "fallback_application_name", "connect_timeout"})
_KNOWN = sorted(_DRIVER | _OURS | _CHOICES.keys() | _REFUSED.keys())


class DsnMistake(ValueError):
    """What was expected, as the rest of a sentence. It quotes no value, which may be a secret."""


@dataclass(frozen=True, slots=True)
class Dsn:
    url: str
    """For the driver: without what Postrider does itself."""
    application_name: str | None = None
    connect_timeout_s: float | None = None
    pooled: bool = False
    """`pgbouncer=true`: the user says that a transaction pooler stands between."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Those that the driver gets."""


def parse_dsn(text: str) -> Dsn:
    """Raises DsnMistake with the first parameter that can't be honoured."""
    parts = urlsplit(text)
    try:
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise DsnMistake("parameters such as ?sslmode=require&connect_timeout=5") from None
    given = {name: value for name, value in given.items() if value}  # libpq takes an empty one as not given
    for name, value in given.items():
        _check(name, value)
    _demand_one_place(parts, given)
    kept = {name: value for name, value in given.items() if name in _DRIVER}
    timeout = given.get("connect_timeout")
    return Dsn(
        url=urlunsplit(parts._replace(query=urlencode(kept, safe="/:,"))),
        application_name=given.get("application_name") or given.get("fallback_application_name"),
        connect_timeout_s=None if timeout is None else float(timeout),
        pooled=given.get("pgbouncer") == "true",
        parameters=kept,
    )


def by_peer(text: str, user: str) -> str:
    """The URL of the same database, reached as `user` over this host's Unix socket. Raises DsnMistake where
    it names another host."""
    parts = urlsplit(text)
    given = {name: value for name, value in parse_qsl(parts.query) if name not in ("user", "password")}
    if not given.get("host", "").startswith("/"):
        host = given.pop("host", None) or parts.hostname
        if host not in (None, "localhost", "127.0.0.1", "::1") or "," in parts.netloc:
            raise DsnMistake("a database on this host")
        if parts.port is not None:
            given.setdefault("port", str(parts.port))
    return urlunsplit(parts._replace(netloc=f"{quote(user)}@", query=urlencode(given, safe="/:,")))


def _demand_one_place(parts: SplitResult, given: Mapping[str, str]) -> None:
    """What stands before the question mark goes first for the driver, what stands behind it for libpq."""
    login, _, hosts = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    for what, there, names in (
        ("host and port", hosts, ("host", "port")),
        ("the user", user, ("user",)),
        ("the password", password, ("password",)),
        ("the database", parts.path.strip("/"), ("dbname", "database")),
    ):
        if there and any(name in given for name in names):
            raise DsnMistake(f"{what} in one place: before the question mark, or behind it as parameters")


def _check(name: str, value: str) -> None:
    if name in _REFUSED:
        raise DsnMistake(f"no {name}: {_REFUSED[name]}")
    if name in _CHOICES:
        choices, reason = _CHOICES[name]
        if value not in choices:
            why = f": {reason}" if reason else ""
            raise DsnMistake(f"{name} to be {' or '.join(choices)}{why}")
    elif name == "connect_timeout":
        if not re.fullmatch("[0-9]{1,3}", value) or not 1 <= int(value) <= MAX_CONNECT_TIMEOUT_S:
            raise DsnMistake(f"connect_timeout to be 1 to {MAX_CONNECT_TIMEOUT_S} seconds")
    elif name in _OURS:
        if not (value.isascii() and value.isprintable() and len(value) <= MAX_NAME):
            raise DsnMistake(f"{name} to be at most {MAX_NAME} printable ASCII characters")
    elif name not in _DRIVER:
        # It may be the end of a password with a bare question mark: only what it comes near to is shown.
        nearest = difflib.get_close_matches(name, _KNOWN, n=1)
        hint = f"; did you mean {nearest[0]}?" if nearest else ""
        raise DsnMistake(
            f"only parameters of libpq{hint} (a setting of the server goes to its user: ALTER ROLE … SET …)"
        )
