"""The addresses of this host that connections leave from."""

import socket
from collections.abc import Sequence
from contextlib import suppress
from itertools import cycle
from typing import Any

from postrider.domain.errors import UsageError

_BIND_ADDRESS_NO_PORT = 24
"""Linux's IP_BIND_ADDRESS_NO_PORT (Python names it from 3.12 on): the port is chosen when the other side is
known, so that all receivers together may have more connections than there are ports."""


class NoSourceAddress(OSError):
    """None of the addresses that connections leave from is of the family of the other side."""

    def __init__(self, family: int) -> None:
        version = "IPv6" if family == socket.AF_INET6 else "IPv4"
        super().__init__(f"nothing is sent from here to {version} addresses")


class SourceAddresses:
    """Sockets bound to these addresses, those of a family by turns; without any the system chooses."""

    def __init__(self, addresses: Sequence[str] = ()) -> None:
        """Raises UsageError for an address that this host does not have."""
        by_family: dict[int, list[Any]] = {}
        for address in addresses:
            family, *_, name = socket.getaddrinfo(address, 0, flags=socket.AI_NUMERICHOST)[0]
            by_family.setdefault(family, []).append(name)
            with socket.socket(family) as probe:
                try:
                    probe.bind(name)
                except OSError as error:
                    raise UsageError(
                        f"network.source_addresses: nothing can be sent from {address}: {error.strerror}",
                        "Name addresses of this host; `ip address` lists them.",
                    ) from None
        self._turns = {family: cycle(names) for family, names in by_family.items()}

    def open(self, family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """A new socket. Raises OSError, NoSourceAddress among them."""
        if not self._turns:
            return socket.socket(family, kind, protocol)
        turns = self._turns.get(family)
        if turns is None:
            raise NoSourceAddress(family)
        opened = socket.socket(family, kind, protocol)
        try:
            with suppress(OSError):  # of systems that don't know it
                opened.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            opened.bind(next(turns))
        except BaseException:
            opened.close()
            raise
        return opened
