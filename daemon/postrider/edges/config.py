"""The configuration: one TOML file, validated strictly, every mistake told at once with its path in the file.

Sections and keys are the contract's; config/postrider.toml explains each of them.
"""

import difflib
import ipaddress
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints
from urllib.parse import urlsplit

from postrider import __version__
from postrider.domain.capture import Capture, parse_captures
from postrider.domain.dsn import DsnMistake, parse_dsn
from postrider.domain.errors import UsageError
from postrider.edges.durations import format_duration, parse_duration

DEFAULT_PATH = Path("/etc/postrider/postrider.toml")
DAY_S = 86_400.0

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST_PORT = re.compile(r"(\[[^\[\]\s]+\]|[^:\[\]\s/]*)(?::(\d{1,5}))?", re.ASCII)
_DSN_FILES = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
_PASSWORD = re.compile(r"(//[^:@/]*:)[^@/]*(?=@)|([?&](?:ssl)?password=)[^&#]*")


class _Mistake(Exception):
    """What was expected of a value, or, by their index, of elements of a list."""

    def __init__(self, expected: str = "", elements: Mapping[int, "_Mistake"] | None = None) -> None:
        super().__init__(expected)
        self._elements = elements or {}

    def lines(self, path: str, value: Any) -> list[str]:
        if not self._elements:
            return [f"{path}: expected {self}, found {_shown(value)}"]
        return [
            line
            for index, mistake in self._elements.items()
            for line in mistake.lines(f"{path}[{index}]", value[index])
        ]


Reader = Callable[[Any], Any]


def _integer(low: int, high: int) -> Reader:
    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise _Mistake(f"a whole number from {low} to {high}")
        return value

    return read


def _fraction(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise _Mistake("a number from 0 to 1")
    return float(value)


def _boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise _Mistake("true or false")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or not value.strip() or not value.isprintable():
        raise _Mistake("text")
    return value


def _header_value(value: Any) -> str:
    text = _text(value)
    if not text.isascii():
        raise _Mistake("ASCII text")
    return text


def _duration(low: str, high: str) -> Reader:
    def read(value: Any) -> float:
        expected = f'a duration from "{low}" to "{high}", such as "15s" (units: ms, s, m, h, d)'
        try:
            seconds = parse_duration(value) if type(value) is str else None
        except UsageError:
            seconds = None
        if seconds is None or not parse_duration(low) <= seconds <= parse_duration(high):
            raise _Mistake(expected)
        return seconds

    return read


def _choice(*choices: str) -> Reader:
    def read(value: Any) -> str:
        if value not in choices:
            raise _Mistake("one of " + ", ".join(f'"{choice}"' for choice in choices))
        return str(value)

    return read


def _list(item: Reader) -> Reader:
    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise _Mistake("a list")
        items = []
        mistakes = {}
        for index, element in enumerate(value):
            try:
                items.append(item(element))
            except _Mistake as mistake:
                mistakes[index] = mistake
        if mistakes:
            raise _Mistake(elements=mistakes)
        return tuple(items)

    return read


def _values(value: Any) -> Mapping[str, Mapping[str, str]]:
    """By dialect. The dialects themselves say which values they have."""
    if type(value) is not dict or not all(type(each) is dict for each in value.values()):
        raise _Mistake("sections such as [dialect.values.nutshell]")
    if not all(type(text) is str for each in value.values() for text in each.values()):
        raise _Mistake("texts in sections such as [dialect.values.nutshell]")
    return dict(value)


def _schedule(value: Any) -> tuple[float, ...]:
    delays: tuple[float, ...] = _list(_duration("0s", "30d"))(value)
    if not 1 <= len(delays) <= 100:
        raise _Mistake("1 to 100 durations, one before each attempt")
    if zeros := [index for index, delay in enumerate(delays) if index > 0 and delay == 0]:
        raise _Mistake(elements=dict.fromkeys(zeros, _Mistake("a wait; only the first may be zero")))
    return delays


def _network(value: Any) -> Network:
    try:
        return ipaddress.ip_network(value if type(value) is str else "")
    except ValueError:
        pass
    try:
        corrected = ipaddress.ip_network(value if type(value) is str else "", strict=False)
    except ValueError:
        raise _Mistake('an address range such as "10.0.0.0/8"') from None
    raise _Mistake(f'an address range without host bits: "{corrected}"')


def _address(value: Any) -> Address:
    try:
        return ipaddress.ip_address(value if type(value) is str else "")
    except ValueError:
        raise _Mistake('an address of this host such as "203.0.113.7"') from None


def _dsn(value: Any) -> str:
    scheme, _, rest = value.partition("://") if type(value) is str else ("", "", "")
    if scheme not in {"postgresql", "postgres"}:
        raise _Mistake('a URL such as "postgresql://postrider@localhost/crm"')
    user, _, hosts = re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")
    # A bare / or @ in the password would make a host of its rest, and the driver would show that.
    places = [_HOST_PORT.fullmatch(host) for host in hosts.split(",")]
    if "@" in user or not all(places):
        raise _Mistake("a URL in which special characters of user and password are percent-encoded")
    if any(place and int(place[2] or 1) not in range(1, 65_536) for place in places):
        raise _Mistake("a URL with a port from 1 to 65535")
    try:
        parsed = parse_dsn(value)
    except DsnMistake as mistake:
        raise _Mistake(str(mistake)) from None
    for name in _DSN_FILES & parsed.parameters.keys():
        try:
            _readable_file(parsed.parameters[name])
        except _Mistake as mistake:
            raise _Mistake(f"{name} to be {mistake}") from None
    return str(value)


def _url(*schemes: str) -> Reader:
    def read(value: Any) -> str:
        expected = f'a URL such as "{schemes[0]}://host:port"'
        try:
            parts = urlsplit(value if type(value) is str else "")
            usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise _Mistake(expected)
        return str(value)

    return read


def _listen(value: Any) -> str:
    if value == "":
        return ""
    match = _HOST_PORT.fullmatch(value if type(value) is str else "")
    if match is None or not match[1] or int(match[2] or 65_536) > 65_535:
        raise _Mistake('"host:port" such as "127.0.0.1:8710", or "" for none')
    return str(value)


def _readable_file(value: Any) -> str:
    path = _text(value)
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise _Mistake(f"a file that can be read ({error.strerror})") from None
    return path


def key(read: Reader, default: Any = MISSING, *, secret: bool = False) -> Any:
    """A key of a section: how its value is read, and what it is where the file leaves it out.

    One that may hold a secret is shown neither in `repr` nor in errors.
    """
    if default is MISSING:
        return field(metadata={"read": read}, repr=not secret)
    return field(default=default, metadata={"read": read}, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseConfig:
    dsn: str = key(_dsn, secret=True)
    pool_size: int = key(_integer(2, 100), 4)
    notify: bool | None = key(_boolean, None)

    @property
    def safe_dsn(self) -> str:
        """The DSN for people and logs: its password is masked."""
        return _PASSWORD.sub(r"\1\2***", self.dsn)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryConfig:
    concurrency: int = key(_integer(1, 10_000), 256)
    endpoint_concurrency: int = key(_integer(1, 10_000), 16)
    timeout: float = key(_duration("100ms", "5m"), 15.0)
    connect_timeout: float = key(_duration("50ms", "1m"), 5.0)
    drain_timeout: float = key(_duration("0s", "10m"), 30.0)
    max_response_bytes: int = key(_integer(0, 1_048_576), 16_384)
    user_agent: str = key(_header_value, f"Postrider/{__version__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    https_only: bool = key(_boolean, True)
    allow: tuple[Network, ...] = key(_list(_network), ())
    deny: tuple[Network, ...] = key(_list(_network), ())
    allow_ports: tuple[int, ...] = key(_list(_integer(1, 65_535)), ())
    source_addresses: tuple[Address, ...] = key(_list(_address), ())
    proxy: str | None = key(_url("http"), None, secret=True)
    ca_file: str | None = key(_readable_file, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DialectConfig:
    default: str = key(_text, "standard")
    paths: tuple[str, ...] = key(_list(_text), ())
    values: Mapping[str, Mapping[str, str]] | None = key(_values, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    schedule: tuple[float, ...] | None = key(_schedule, None)
    jitter: float | None = key(_fraction, None)
    disable_after: float = key(_duration("1m", "365d"), 5 * DAY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminConfig:
    listen: str = key(_listen, "127.0.0.1:8710")
    public_url: str | None = key(_url("https", "http"), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    level: str = key(_choice("debug", "info", "warning", "error"), "info")
    format: str = key(_choice("auto", "json", "text"), "auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionConfig:
    events: float = key(_duration("1d", "3650d"), 30 * DAY_S)
    attempts: float = key(_duration("1d", "3650d"), 14 * DAY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsConfig:
    key_file: str | None = key(_readable_file, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Durations are seconds; everything is checked. Sections that a caller leaves out have their defaults."""

    database: DatabaseConfig
    delivery: DeliveryConfig = field(default_factory=DeliveryConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    dialect: DialectConfig = field(default_factory=DialectConfig)
    retry: RetryConfig = field(default_factory=RetryConfig)
    admin: AdminConfig = field(default_factory=AdminConfig)
    log: LogConfig = field(default_factory=LogConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    secrets: SecretsConfig = field(default_factory=SecretsConfig)
    capture: tuple[Capture, ...] = ()


SECTIONS: dict[str, type[Any]] = {
    name: kind for name, kind in get_type_hints(Config).items() if name != "capture"
}
_AT_MOST = {
    ("delivery", "connect_timeout"): "timeout",
    ("delivery", "endpoint_concurrency"): "concurrency",
    ("retention", "attempts"): "events",
}
"""Section and key whose value must not exceed that of another key of the section."""


def config_source(path: Path | None, environ: Mapping[str, str]) -> Path:
    """The file that `load_config` reads."""
    return path or Path(environ.get("POSTRIDER_CONFIG") or DEFAULT_PATH)


def holds_password(file: Path) -> bool:
    """Whether a URL in a configuration file, even one commented out, carries a password."""
    return any(_PASSWORD.search(line) for line in file.read_text(encoding="utf-8").splitlines())


def load_config(path: Path | None, environ: Mapping[str, str], *, with_database: bool = True) -> Config:
    """Read `path`, else $POSTRIDER_CONFIG, else /etc/postrider/postrider.toml.

    $POSTRIDER_DATABASE_DSN overrides `database.dsn`, and alone is enough where no file was named and the
    default one does not exist; without `with_database` nothing has to name one. Raises UsageError with every
    mistake.
    """
    source = config_source(path, environ)
    named = path or environ.get("POSTRIDER_CONFIG")
    dsn = environ.get("POSTRIDER_DATABASE_DSN")
    try:
        text = source.read_text(encoding="utf-8")
    except FileNotFoundError:
        if named or (with_database and not dsn):
            raise UsageError(
                f"there is no configuration file {source}",
                "Write one with `postrider init FILE`, and name it with --config FILE or $POSTRIDER_CONFIG.",
            ) from None
        text = ""
    except OSError as error:
        raise UsageError(
            f"{source} can't be read: {error.strerror}", "Make it a file that this user may read."
        ) from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{source} is not UTF-8 text: byte {error.start}", "Save it as UTF-8.") from None
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{source} is not TOML: {error}", "Mend that line.") from None
    if not with_database and isinstance(table.setdefault("database", {}), dict):
        table["database"].setdefault("dsn", "postgresql://localhost/")
    if not dsn:
        return parse_config(table, str(source))
    if isinstance(table.setdefault("database", {}), dict):
        table["database"]["dsn"] = dsn
    return parse_config(table, f"{source} with $POSTRIDER_DATABASE_DSN")


def parse_config(table: Mapping[str, Any], source: str) -> Config:
    """Check a configuration as TOML reads it. Raises UsageError with every mistake."""
    mistakes: list[str] = []
    sections = {name: _section(name, kind, table.get(name, {}), mistakes) for name, kind in SECTIONS.items()}
    captures, capture_mistakes = parse_captures(table.get("capture", []))
    mistakes += capture_mistakes
    known = {*SECTIONS, "capture"}
    mistakes += [_unknown(name, dict.fromkeys(known), f"[{name}]") for name in table if name not in known]
    if not mistakes:
        return Config(**sections, capture=captures)
    count = "a mistake" if len(mistakes) == 1 else f"{len(mistakes)} mistakes"
    raise UsageError(
        f"{source} has {count}:\n" + "\n".join(f"  {mistake}" for mistake in mistakes),
        "`postrider init -` prints every key with its default.",
    )


def _section(name: str, kind: type[Any], table: Any, mistakes: list[str]) -> Any:
    if not isinstance(table, dict):
        # A DSN may stand here by mistake, so the value is not told.
        mistakes.append(f"{name}: expected a section [{name}], found {type(table).__name__}")
        return None
    before = len(mistakes)
    values = {}
    known = {each.name: each for each in fields(kind)}
    for each in known.values():
        path = f"{name}.{each.name}"
        if each.name in table:
            value = table[each.name]
            try:
                values[each.name] = each.metadata["read"](value)
            except _Mistake as mistake:
                mistakes += mistake.lines(path, value) if each.repr else [f"{path}: expected {mistake}"]
        elif each.default is MISSING:
            mistakes.append(f"{path}: missing; set it, or $POSTRIDER_DATABASE_DSN")
        else:
            values[each.name] = each.default
    mistakes += _contradictions(name, values)
    mistakes += [_unknown(each, known, f"{name}.{each}") for each in table if each not in known]
    return kind(**values) if len(mistakes) == before else None


def _unknown(name: str, known: Mapping[str, object], path: str) -> str:
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f'did you mean "{nearest[0]}"?' if nearest else "known here: " + ", ".join(known)
    return f"{path}: unknown; {hint}"


def _contradictions(section: str, values: Mapping[str, Any]) -> list[str]:
    def shown(value: Any) -> str:
        return format_duration(value) if isinstance(value, float) else str(value)

    return [
        f"{where}.{smaller}: expected at most {where}.{larger} ({shown(values[larger])}), "
        f"found {shown(values[smaller])}"
        for (where, smaller), larger in _AT_MOST.items()
        if where == section and {smaller, larger} <= values.keys() and values[smaller] > values[larger]
    ]


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."
