"""The configuration: one TOML file, validated strictly, every mistake told at once with its path in the file.

Sections and keys are the contract's; config/postrider.toml explains each of them.
"""

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any, get_type_hints

from postrider import __version__
from postrider.domain.capture import Capture
from postrider.domain.capture_sections import parse_captures
from postrider.domain.errors import UsageError
from postrider.edges import config_values as kinds
from postrider.edges.durations import format_duration

DEFAULT_PATH = Path("/etc/postrider/postrider.toml")
DAY_S = 86_400.0

_PASSWORD = re.compile(r"(//[^:@/]*:)[^@/]*(?=@)|([?&](?:ssl)?password=)[^&#]*")


def key(read: kinds.Reader, default: Any = MISSING, *, secret: bool = False) -> Any:
    """A key of a section: how its value is read, and what it is where the file leaves it out.

    One that may hold a secret is shown neither in `repr` nor in errors.
    """
    if default is MISSING:
        return field(metadata={"read": read}, repr=not secret)
    return field(default=default, metadata={"read": read}, repr=not secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseConfig:
    dsn: str = key(kinds.dsn, secret=True)
    pool_size: int = key(kinds.integer(2, 100), 4)
    notify: bool | None = key(kinds.boolean, None)

    @property
    def safe_dsn(self) -> str:
        """The DSN for people and logs: its password is masked."""
        return _PASSWORD.sub(r"\1\2***", self.dsn)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryConfig:
    concurrency: int = key(kinds.integer(1, 10_000), 256)
    endpoint_concurrency: int = key(kinds.integer(1, 10_000), 16)
    timeout: float = key(kinds.duration("100ms", "5m"), 15.0)
    connect_timeout: float = key(kinds.duration("50ms", "1m"), 5.0)
    drain_timeout: float = key(kinds.duration("0s", "10m"), 30.0)
    max_response_bytes: int = key(kinds.integer(0, 1_048_576), 16_384)
    user_agent: str = key(kinds.header_value, f"Postrider/{__version__}")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkConfig:
    https_only: bool = key(kinds.boolean, True)
    allow: tuple[kinds.Network, ...] = key(kinds.list_of(kinds.network), ())
    deny: tuple[kinds.Network, ...] = key(kinds.list_of(kinds.network), ())
    allow_ports: tuple[int, ...] = key(kinds.list_of(kinds.integer(1, 65_535)), ())
    source_addresses: tuple[kinds.Address, ...] = key(kinds.list_of(kinds.address), ())
    proxy: str | None = key(kinds.url("http"), None, secret=True)
    ca_file: str | None = key(kinds.readable_file, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DialectConfig:
    default: str = key(kinds.text, "standard")
    paths: tuple[str, ...] = key(kinds.list_of(kinds.text), ())
    values: Mapping[str, Mapping[str, str]] | None = key(kinds.dialect_values, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryConfig:
    schedule: tuple[float, ...] | None = key(kinds.schedule, None)
    jitter: float | None = key(kinds.fraction, None)
    disable_after: float = key(kinds.duration("1m", "365d"), 5 * DAY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminConfig:
    listen: str = key(kinds.listen, "127.0.0.1:8710")
    public_url: str | None = key(kinds.url("https", "http"), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    level: str = key(kinds.choice("debug", "info", "warning", "error"), "info")
    format: str = key(kinds.choice("auto", "json", "text"), "auto")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionConfig:
    events: float = key(kinds.duration("1d", "3650d"), 30 * DAY_S)
    attempts: float = key(kinds.duration("1d", "3650d"), 14 * DAY_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretsConfig:
    key_file: str | None = key(kinds.readable_file, None)


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
            except kinds.Mistake as mistake:
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
