"""What an endpoint may be: its workspace, URL, patterns, headers and bounds, each refused with the next step;
and what whoever adds or changes one should know (`notices`)."""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite

from postrider.domain.audit import Scope
from postrider.domain.dialects import Dialect, check_headers
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.matching import parse_pattern
from postrider.domain.model import (
    DEFAULT_WORKSPACE,
    MAX_WORKSPACE_ID_LENGTH,
    Endpoint,
    EndpointState,
    endpoint_public_id,
)
from postrider.edges.addresses import check_url
from postrider.edges.settings import address_policy
from postrider.operations.work import Setting
from postrider.store.endpoint_rows import EndpointRow

MAX_CONCURRENCY = 10_000
MAX_PLANNED = 5
"""Names of event types that are told."""


class UrlRefused(UsageError):
    """Nothing is ever sent to this URL."""


def workspace_for(given: str | None, scope: Scope) -> str:
    """The workspace of a new endpoint."""
    workspace = given if given is not None else scope.workspace_id or DEFAULT_WORKSPACE
    if not 1 <= len(workspace) <= MAX_WORKSPACE_ID_LENGTH:
        raise UsageError(
            f"a workspace has 1 to {MAX_WORKSPACE_ID_LENGTH} characters, and this one {len(workspace):,}",
            "No event could ever match: emit has the same limit. Leave it out to use the workspace default.",
        )
    if scope.workspace_id not in (None, workspace):
        raise UsageError(
            f"endpoints can only be added to the workspace {scope.workspace_id}",
            "Leave the workspace out, or name that one.",
        )
    return workspace


def check_target(setting: Setting, url: str, dialect: Dialect) -> list[str]:
    """Raise UrlRefused for a URL that is never sent to; notices tell of one that only a configuration for
    development permits."""
    https_only = setting.config.network.https_only
    try:
        check_url(url, https_only, address_policy(setting.config))
    except UsageError as error:
        raise UrlRefused(error.message, error.hint) from None
    if https_only or url.lower().startswith("https:"):
        return []
    lifted = (
        f"the HTTPS that {dialect.name} promises" if dialect.https_only else "Postrider's default of HTTPS"
    )
    return [f"network.https_only = false lifts {lifted}; that is for development only"]


def checked_patterns(texts: Iterable[str], dialect: Dialect) -> tuple[str, ...]:
    patterns = tuple(dict.fromkeys(map(parse_pattern, texts)))
    check_known(patterns, dialect)
    return patterns


def needed_patterns(texts: Iterable[str], dialect: Dialect) -> tuple[str, ...]:
    """The same, where there has to be one."""
    patterns = checked_patterns(texts, dialect)
    if not patterns:
        raise UsageError(
            "an endpoint needs an event pattern", "Name event types (deal.updated), prefixes (deal.*) or *."
        )
    return patterns


def check_known(patterns: Sequence[str], dialect: Dialect) -> None:
    """Raise UsageError for a pattern that matches nothing of the catalogue."""
    for pattern in patterns:
        try:
            dialect.catalogue.check_pattern(pattern)
        except UsageError as error:
            raise UsageError(f"dialect {dialect.name}: {error.message}", error.hint) from None


def planned(dialect: Dialect, patterns: Sequence[str], exclusions: Sequence[str]) -> list[str]:
    """Notices of event types that the CRM only plans; what it emits of them is delivered nonetheless."""
    types = dialect.catalogue.planned(patterns, exclusions)
    if not types:
        return []
    more = f" and {len(types) - MAX_PLANNED} more" if len(types) > MAX_PLANNED else ""
    told = ", ".join(types[:MAX_PLANNED])
    return [f"planned by {dialect.name}, and delivered once they are emitted: {told}{more}"]


def check_bounds(concurrency: int | None, rate: float | None, headers: Mapping[str, str]) -> None:
    if concurrency is not None and not 1 <= concurrency <= MAX_CONCURRENCY:
        raise UsageError(
            f"an endpoint gets 1 to {MAX_CONCURRENCY:,} requests at a time, not {concurrency:,}",
            "Leave it out for delivery.endpoint_concurrency.",
        )
    if rate is not None and not (isfinite(rate) and rate > 0):
        raise UsageError(f"a rate is more than 0 requests a second, not {rate}", "Leave it out for no bound.")
    check_headers(headers)


def demand_living(row: EndpointRow) -> Endpoint:
    """The endpoint; PostriderError if it is deleted."""
    if row.endpoint.state is EndpointState.DELETED:
        raise PostriderError(
            f"endpoint {endpoint_public_id(row.endpoint.id)} is deleted",
            "Add it anew with `postrider endpoint add`.",
        )
    return row.endpoint


def demand_verified(row: EndpointRow) -> Endpoint:
    """The endpoint, if it takes part or did; else PostriderError."""
    endpoint = demand_living(row)
    if endpoint.state is EndpointState.UNVERIFIED:
        ep = endpoint_public_id(endpoint.id)
        raise PostriderError(
            f"{ep} has not answered the handshake of its dialect yet; it gets no events",
            f"postrider endpoint verify {ep}",
        )
    return endpoint


def demand_usable(row: EndpointRow) -> Endpoint:
    """The endpoint, if something can be sent to it; else PostriderError."""
    endpoint = demand_living(row)
    if endpoint.unusable is not None:
        raise PostriderError(
            f"{endpoint_public_id(endpoint.id)} can't be used: {endpoint.unusable}",
            "Restore what it lacks (secrets.key_file?), or delete it and add it anew.",
        )
    return endpoint
