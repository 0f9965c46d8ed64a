"""Where a delivery may go: the verdict on a URL and on the addresses that it leads to.

The tables are our own, after the IANA special-purpose registries for IPv4 and IPv6 (RFC 6890 and its
updates): `ipaddress.is_global` changes with the Python release and misjudges mapped, translated and
multicast addresses.
"""

import re
import socket
from collections.abc import Iterable
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from yarl import URL

from postrider.domain.errors import UsageError

MAX_URL_LENGTH = 2048
_URL_HINT = "Write it like https://host:8443/path."
_UNPRINTABLE = re.compile(r"[\x00-\x20\x7f\\]")
_NUMBER = re.compile(r"\d+|0[xX][0-9a-fA-F]*", re.ASCII)
_LEADING_ZERO = re.compile(r"0\d+", re.ASCII)
# What browsers refuse, because a server of another protocol could take a request for its own commands (WHATWG
# Fetch, "port blocking"); and Redis and memcached, which read commands line by line too.
_FOREIGN_PORTS = """
    1 7 9 11 13 15 17 19 20 21 22 23 25 37 42 43 53 69 77 79 87 95 101 102 103 104 109 110 111 113 115
    117 119 123 135 137 139 143 161 179 389 427 465 512 513 514 515 526 530 531 532 540 548 554 556 563
    587 601 636 989 990 993 995 1719 1720 1723 2049 3659 4045 4190 5060 5061 6000 6566 6665 6666 6667
    6668 6669 6679 6697 10080 6379 11211
"""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network


class AddressVerdict(StrEnum):
    """What an address is, coarse enough for a metric label. Only `ALLOWED` may be connected to."""

    ALLOWED = "allowed"
    DENIED = "denied"  # by network.deny
    LOOPBACK = "loopback"
    PRIVATE = "private"
    LINK_LOCAL = "link-local"
    METADATA = "cloud-metadata"
    MULTICAST = "multicast"
    RESERVED = "reserved"
    UNSPECIFIED = "unspecified"
    FOREIGN_PORT = "foreign-port"  # the port of another protocol
    TRANSLATED = "translated"  # a tunnel or translator behind it decides where packets end
    MALFORMED = "malformed"


def _table(rows: Iterable[tuple[AddressVerdict, str]]) -> tuple[tuple[Network, AddressVerdict], ...]:
    return tuple((ip_network(cidr), verdict) for verdict, cidrs in rows for cidr in cidrs.split())


# The first match counts, so an address that lies inside a wider range stands before it.
_IPV4 = _table(
    [
        # AWS, Google, Azure and others; AWS containers; Alibaba; Azure's wire server, a public address.
        (AddressVerdict.METADATA, "169.254.169.254 169.254.170.2 100.100.100.200 168.63.129.16"),
        (AddressVerdict.UNSPECIFIED, "0.0.0.0/32"),
        (AddressVerdict.LOOPBACK, "127.0.0.0/8"),
        (AddressVerdict.PRIVATE, "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10"),
        (AddressVerdict.LINK_LOCAL, "169.254.0.0/16"),
        (AddressVerdict.MULTICAST, "224.0.0.0/4"),
        (AddressVerdict.TRANSLATED, "192.88.99.0/24"),  # 6to4 relays
        (AddressVerdict.RESERVED, "0.0.0.0/8 192.0.0.0/24 240.0.0.0/4"),
        (AddressVerdict.RESERVED, "192.0.2.0/24 198.51.100.0/24 203.0.113.0/24"),  # documentation
        (AddressVerdict.RESERVED, "198.18.0.0/15"),  # benchmarks
    ]
)
_IPV6 = _table(
    [
        (AddressVerdict.METADATA, "fd00:ec2::254 fd20:ce::254"),
        (AddressVerdict.UNSPECIFIED, "::"),
        (AddressVerdict.LOOPBACK, "::1"),
        (AddressVerdict.PRIVATE, "fc00::/7 fec0::/10"),
        (AddressVerdict.LINK_LOCAL, "fe80::/10"),
        (AddressVerdict.MULTICAST, "ff00::/8"),
        (AddressVerdict.TRANSLATED, "64:ff9b:1::/48 2001::/32"),  # local NAT64, Teredo
        (AddressVerdict.RESERVED, "2001::/23 2001:db8::/32 3fff::/20"),
    ]
)
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_EMBEDDINGS = (
    # Network, and how far the IPv4 address inside lies from the low end, in bits.
    (IPv6Network("::ffff:0:0/96"), 0),  # mapped: the kernel connects over IPv4
    (IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (IPv6Network("2002::/16"), 80),  # 6to4
)


class InsecureUrlError(UsageError):
    """An http:// URL where https:// is required."""


class AddressPolicy:
    """The rules of `network.allow`, `deny` and `allow_ports` over the built-in tables.

    `allow` lifts the built-in rules, `deny` wins over both; each is a list of CIDRs. An IPv6 address that
    carries an IPv4 address is judged by that one, though `deny` may name either.
    """

    def __init__(
        self, allow: Iterable[str] = (), deny: Iterable[str] = (), allow_ports: Iterable[int] = ()
    ) -> None:
        """Raises `UsageError` for a text that is no network."""
        self._allow = _networks("network.allow", allow)
        self._deny = _networks("network.deny", deny)
        self._foreign_ports = set(map(int, _FOREIGN_PORTS.split())).difference(allow_ports)

    def verdict(self, address: str | Address) -> AddressVerdict:
        """Judge one address; a text may carry an IPv6 scope (`fe80::1%eth0`)."""
        try:
            outer = ip_address(address)
        except ValueError:
            return AddressVerdict.MALFORMED
        inner = _inner(outer)
        if _contains(self._deny, outer) or _contains(self._deny, inner):
            return AddressVerdict.DENIED
        if _contains(self._allow, inner):
            return AddressVerdict.ALLOWED
        return _classify(inner)

    def port_verdict(self, port: int) -> AddressVerdict:
        return AddressVerdict.FOREIGN_PORT if port in self._foreign_ports else AddressVerdict.ALLOWED


def explain(address: str, verdict: AddressVerdict) -> str:
    """One sentence for the operator: why `address` got this verdict and what lifts it.

    For a port, `address` is the port.
    """
    match verdict:
        case AddressVerdict.DENIED:
            return f"{address} is denied by network.deny"
        case AddressVerdict.MALFORMED:
            return f"{address} is malformed; write the address in its standard form"
        case AddressVerdict.METADATA:
            return f"{address} is {verdict}: whoever reaches it may get this host's own credentials"
        case AddressVerdict.FOREIGN_PORT:
            return f"port {address} belongs to another protocol; add it to network.allow_ports to permit it"
        case _:
            return f"{address} is {verdict}; add it to network.allow to permit it"


def explain_to_customer(verdict: AddressVerdict) -> str:
    """The same for the endpoint's owner, whom neither inner addresses nor the configuration concern."""
    if verdict is AddressVerdict.FOREIGN_PORT:
        return "the port belongs to another protocol, and the network policy forbids it"
    return f"the host leads to an address that the network policy forbids ({verdict})"


def parse_url(url: str, https_only: bool) -> URL:
    """The URL to send to, its host in standard form. Addresses are judged when connecting.

    Raises `UsageError`, whose message repeats nothing of the URL: its path or user may be a secret.
    """
    parsed = _parse(url)
    if https_only and parsed.scheme != "https":
        raise InsecureUrlError(
            "the URL is not https://, which is required here",
            "Use https://, or set network.https_only = false for development.",
        )
    return parsed


def check_url(url: str, https_only: bool, policy: AddressPolicy) -> None:
    """Raise `UsageError` where `url` can't be an endpoint's, or will never be sent to under `policy`.

    Names are not looked up: what they lead to may change at any time.
    """
    parsed = parse_url(url, https_only)
    host, port = parsed.raw_host or "", parsed.port or 0
    # A name of the loopback interface whatever the name servers say (RFC 6761).
    address = "127.0.0.1" if f".{host}".endswith(".localhost") else host
    verdict = policy.verdict(address)
    if verdict not in (AddressVerdict.ALLOWED, AddressVerdict.MALFORMED):
        sentence, _, hint = explain(address, verdict).partition("; ")
        hint = hint and f"To permit it, add {_network_of(address)} to network.allow."
        raise UsageError(
            f"nothing will ever be sent to this URL: {sentence}",
            hint or "Name a host on the public internet.",
        )
    if policy.port_verdict(port) is not AddressVerdict.ALLOWED:
        raise UsageError(
            f"nothing will ever be sent to this URL: port {port} belongs to another protocol",
            f"To permit it, add {port} to network.allow_ports.",
        )


def _network_of(address: str) -> Network:
    return ip_network(_inner(ip_address(address.partition("%")[0])))


def _networks(setting: str, cidrs: Iterable[str]) -> tuple[Network, ...]:
    networks = []
    for cidr in cidrs:
        try:
            networks.append(ip_network(cidr))
        except ValueError as error:
            raise UsageError(f"{setting}: {error}", "Write networks like 10.1.0.0/16 or fd00::/8.") from error
    return tuple(networks)


def _contains(networks: Iterable[Network], address: Address) -> bool:
    return any(address in network for network in networks)


def _inner(address: Address) -> Address:
    if isinstance(address, IPv6Address):
        for network, shift in _EMBEDDINGS:
            if address in network:
                return IPv4Address((int(address) >> shift) & 0xFFFF_FFFF)
    return address


def _classify(address: Address) -> AddressVerdict:
    for network, verdict in _IPV4 if isinstance(address, IPv4Address) else _IPV6:
        if address in network:
            return verdict
    if isinstance(address, IPv6Address) and address not in _GLOBAL_UNICAST:
        return AddressVerdict.RESERVED
    return AddressVerdict.ALLOWED


@lru_cache(maxsize=4096)
def _parse(url: str) -> URL:
    if len(url) > MAX_URL_LENGTH:
        raise UsageError(f"the URL is {len(url)} characters long", f"At most {MAX_URL_LENGTH} are possible.")
    if _UNPRINTABLE.search(url):
        raise UsageError("the URL holds a space, backslash or control character", "Percent-encode it.")
    try:
        parsed = URL(url)
        host, port = parsed.raw_host, parsed.port
    except (ValueError, IndexError) as error:  # some versions of yarl index into an empty host
        raise UsageError("the URL has a bad host or port", _URL_HINT) from error
    if parsed.scheme not in ("http", "https") or not host or not port:
        raise UsageError("the URL needs http:// or https://, a host and no port 0", _URL_HINT)
    if parsed.raw_user is not None or parsed.raw_password is not None:
        raise UsageError("the URL holds a user or password", "Send credentials in a header of the endpoint.")
    if "#" in url:
        raise UsageError("the URL has a fragment (#)", "Leave it out: it would never be sent.")
    return _with_plain_ipv4(parsed, host)


def _with_plain_ipv4(url: URL, host: str) -> URL:
    """Write 2130706433, 0x7f.1 and the like as the address that the system takes them for: 127.0.0.1.

    A host that ends in a number is no name (WHATWG URL), and no reader may take it for another address.
    """
    parts = host.removesuffix(".").split(".")
    if ":" in host or not _NUMBER.fullmatch(parts[-1]):
        return url
    if any(_LEADING_ZERO.fullmatch(part) for part in parts):
        raise UsageError(
            "the URL's IPv4 address has a part with a leading zero, which some read as octal",
            "Leave the zero out.",
        )
    try:
        return url.with_host(socket.inet_ntoa(socket.inet_aton(".".join(parts))))
    except OSError as error:
        raise UsageError("the URL's host ends in a number, but is no IPv4 address", _URL_HINT) from error
