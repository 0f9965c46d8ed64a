"""What `postrider check` finds of the promises of dialects: which keys they overrule, and whether requests
leave from the addresses that their documents name."""

from collections.abc import Collection, Iterable, Iterator, Mapping

from postrider.domain.dialects import Dialect
from postrider.domain.promises import broken_promises, overruled
from postrider.edges.addresses import AddressPolicy, AddressVerdict
from postrider.edges.config import Config
from postrider.edges.settings import retry_settings
from postrider.operations.finding import Finding

MAX_SHOWN = 5


def overruled_findings(dialects: Iterable[Dialect], config: Config) -> Iterator[Finding]:
    """`dialects` are those that endpoints speak."""
    for dialect in dialects:
        for key in overruled(dialect, retry_settings(config)):
            yield Finding(
                "warn",
                f"dialect {dialect.name}",
                f"{key} has no effect on its endpoints: it promises its schedule",
                "To change it, copy its file, change the copy, and name that in dialect.paths.",
            )


def sending_findings(
    dialects: Iterable[Dialect], sources: Mapping[str, Collection[str]], config: Config
) -> Iterator[Finding]:
    """`sources`: the addresses that endpoints of a dialect were reached from, by its name."""
    for dialect in dialects:
        if dialect.sending_addresses:
            found = {*map(str, config.network.source_addresses), *sources.get(dialect.name, ())}
            yield _sending_finding(dialect, sorted(found), proxied=config.network.proxy is not None)


def _sending_finding(dialect: Dialect, sources: Collection[str], *, proxied: bool) -> Finding:
    what = f"dialect {dialect.name}"
    promised = ", ".join(dialect.sending_addresses)
    if proxied:
        message = (
            f"requests leave from the proxy of network.proxy; it promises that they come from {promised}"
        )
        return Finding("warn", what, message, "Make sure that the proxy sends from there.")
    hint = f"Set network.source_addresses to addresses of this host in {promised}."
    if not sources:
        message = f"it promises that requests come from {promised}; nothing shows where they leave from"
        return Finding("warn", what, message, hint)
    broken = broken_promises(dialect, sources)
    if not broken:
        return Finding("ok", what, f"requests leave from {_some(sources)}, as it promises ({promised})")
    message = f"requests leave from {_some(broken)}, and it promises that they come from {promised}"
    if any(_is_public(each) for each in broken):
        return Finding("fail", what, message, hint)
    return Finding(
        "warn",
        what,
        message,
        f"{hint} Or, where they pass an address translation, make sure that it sends from there.",
    )


def _is_public(address: str) -> bool:
    """Whether others see it as it is; what is private may yet be translated on its way."""
    return AddressPolicy().verdict(address) is AddressVerdict.ALLOWED


def _some(addresses: Collection[str]) -> str:
    shown = ", ".join(list(addresses)[:MAX_SHOWN])
    return shown if len(addresses) <= MAX_SHOWN else f"{shown} and {len(addresses) - MAX_SHOWN} more"
