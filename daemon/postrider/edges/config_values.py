"""Values of the configuration: how each kind is read, and what is said of one that it can't be."""

import ipaddress
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from postrider.domain.dsn import DsnMistake, parse_dsn
from postrider.domain.errors import UsageError
from postrider.edges.durations import parse_duration

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HOST_PORT = re.compile(r"(\[[^\[\]\s]+\]|[^:\[\]\s/]*)(?::(\d{1,5}))?", re.ASCII)
_DSN_FILES = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})


class Mistake(Exception):
    """What was expected of a value, or, by their index, of elements of a list."""

    def __init__(self, expected: str = "", elements: Mapping[int, "Mistake"] | None = None) -> None:
        super().__init__(expected)
        self._elements = elements or {}

    def lines(self, path: str, value: Any) -> list[str]:
        if not self._elements:
            return [f"{path}: expected {self}, found {shown(value)}"]
        return [
            line
            for index, mistake in self._elements.items()
            for line in mistake.lines(f"{path}[{index}]", value[index])
        ]


Reader = Callable[[Any], Any]


def integer(low: int, high: int) -> Reader:
    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise Mistake(f"a whole number from {low} to {high}")
        return value

    return read


def fraction(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise Mistake("a number from 0 to 1")
    return float(value)


def boolean(value: Any) -> bool:
    if type(value) is not bool:
        raise Mistake("true or false")
    return value


def text(value: Any) -> str:
    if type(value) is not str or not value.strip() or not value.isprintable():
        raise Mistake("text")
    return value


def header_value(value: Any) -> str:
    found = text(value)
    if not found.isascii():
        raise Mistake("ASCII text")
    return found


def duration(low: str, high: str) -> Reader:
    def read(value: Any) -> float:
        expected = f'a duration from "{low}" to "{high}", such as "15s" (units: ms, s, m, h, d)'
        try:
            seconds = parse_duration(value) if type(value) is str else None
        except UsageError:
            seconds = None
        if seconds is None or not parse_duration(low) <= seconds <= parse_duration(high):
            raise Mistake(expected)
        return seconds

    return read


def choice(*choices: str) -> Reader:
    def read(value: Any) -> str:
        if value not in choices:
            raise Mistake("one of " + ", ".join(f'"{choice}"' for choice in choices))
        return str(value)

    return read


def list_of(item: Reader) -> Reader:
    def read(value: Any) -> tuple[Any, ...]:
        if type(value) is not list:
            raise Mistake("a list")
        items = []
        mistakes = {}
        for index, element in enumerate(value):
            try:
                items.append(item(element))
            except Mistake as mistake:
                mistakes[index] = mistake
        if mistakes:
            raise Mistake(elements=mistakes)
        return tuple(items)

    return read


def dialect_values(value: Any) -> Mapping[str, Mapping[str, str]]:
    """By dialect. The dialects themselves say which values they have."""
    if type(value) is not dict or not all(type(each) is dict for each in value.values()):
        raise Mistake("sections such as [dialect.values.nutshell]")
    if not all(type(text) is str for each in value.values() for text in each.values()):
        raise Mistake("texts in sections such as [dialect.values.nutshell]")
    return dict(value)


def schedule(value: Any) -> tuple[float, ...]:
    delays: tuple[float, ...] = list_of(duration("0s", "30d"))(value)
    if not 1 <= len(delays) <= 100:
        raise Mistake("1 to 100 durations, one before each attempt")
    if zeros := [index for index, delay in enumerate(delays) if index > 0 and delay == 0]:
        raise Mistake(elements=dict.fromkeys(zeros, Mistake("a wait; only the first may be zero")))
    return delays


def network(value: Any) -> Network:
    try:
        return ipaddress.ip_network(value if type(value) is str else "")
    except ValueError:
        pass
    try:
        corrected = ipaddress.ip_network(value if type(value) is str else "", strict=False)
    except ValueError:
        raise Mistake('an address range such as "10.0.0.0/8"') from None
    raise Mistake(f'an address range without host bits: "{corrected}"')


def address(value: Any) -> Address:
    try:
        return ipaddress.ip_address(value if type(value) is str else "")
    except ValueError:
        raise Mistake('an address of this host such as "203.0.113.7"') from None


def dsn(value: Any) -> str:
    scheme, _, rest = value.partition("://") if type(value) is str else ("", "", "")
    if scheme not in {"postgresql", "postgres"}:
        raise Mistake('a URL such as "postgresql://postrider@localhost/crm"')
    user, _, hosts = re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")
    # A bare / or @ in the password would make a host of its rest, and the driver would show that.
    places = [_HOST_PORT.fullmatch(host) for host in hosts.split(",")]
    if "@" in user or not all(places):
        raise Mistake("a URL in which special characters of user and password are percent-encoded")
    if any(place and int(place[2] or 1) not in range(1, 65_536) for place in places):
        raise Mistake("a URL with a port from 1 to 65535")
    try:
        parsed = parse_dsn(value)
    except DsnMistake as mistake:
        raise Mistake(str(mistake)) from None
    for name in _DSN_FILES & parsed.parameters.keys():
        try:
            readable_file(parsed.parameters[name])
        except Mistake as mistake:
            raise Mistake(f"{name} to be {mistake}") from None
    return str(value)


def url(*schemes: str) -> Reader:
    def read(value: Any) -> str:
        expected = f'a URL such as "{schemes[0]}://host:port"'
        try:
            parts = urlsplit(value if type(value) is str else "")
            usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise Mistake(expected)
        return str(value)

    return read


def listen(value: Any) -> str:
    if value == "":
        return ""
    match = _HOST_PORT.fullmatch(value if type(value) is str else "")
    if match is None or not match[1] or int(match[2] or 65_536) > 65_535:
        raise Mistake('"host:port" such as "127.0.0.1:8710", or "" for none')
    return str(value)


def readable_file(value: Any) -> str:
    path = text(value)
    try:
        Path(path).open("rb").close()
    except OSError as error:
        raise Mistake(f"a file that can be read ({error.strerror})") from None
    return path


def shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."
