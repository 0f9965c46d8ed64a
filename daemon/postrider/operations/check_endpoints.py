"""What `postrider check` finds of endpoints: whether they get events, and whether they can be reached as
their deliveries would."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from urllib.parse import urlsplit

from postrider.domain.dialects import Dialect
from postrider.domain.model import Endpoint, EndpointState, endpoint_public_id
from postrider.edges.config import Config
from postrider.edges.probe import Probe, probe
from postrider.edges.settings import network_options
from postrider.edges.sources import SourceAddresses
from postrider.operations.finding import Finding
from postrider.operations.problems import Concern
from postrider.operations.wording import printable

MAX_ENDPOINTS = 200
PROBES_AT_A_TIME = 16

# One that a person paused is in order.
_NOTHING_SENT = {
    EndpointState.DISABLED: ("disabled", "resume"),
    EndpointState.UNVERIFIED: ("not verified", "verify"),
}
"""And the command that mends it."""


class Prober:
    """Looks at endpoints as their deliveries would, and gathers by dialect where these leave from."""

    def __init__(
        self,
        config: Config,
        dialects: Mapping[str, Dialect],
        tls: ssl.SSLContext,
        leave_from: SourceAddresses,
        sources: Mapping[str, set[str]],
    ) -> None:
        self._config = config
        self._dialects = dialects
        self._tls = tls
        self._leave_from = leave_from
        self._sources = sources
        self._policy = network_options(config).policy
        self._gate = asyncio.Semaphore(PROBES_AT_A_TIME)

    async def probe(self, endpoint: Endpoint) -> Probe:
        dialect = self._dialects.get(endpoint.dialect)
        promised = dialect.connect_timeout if dialect is not None else None
        async with self._gate:
            result = await probe(
                endpoint.url,
                self._policy,
                https_only=self._config.network.https_only,
                tls=self._tls,
                sources=self._leave_from,
                timeout=promised or self._config.delivery.connect_timeout,
            )
        if result.source is not None:
            self._sources[endpoint.dialect].add(result.source)
        return result


async def endpoint_findings(endpoints: Sequence[Endpoint], prober: Prober) -> AsyncIterator[Finding]:
    unusable = [each for each in endpoints if each.unusable is not None]
    for endpoint in unusable[:MAX_ENDPOINTS]:
        hint = "Its deliveries wait. Restore the key file, or delete the endpoint and add it anew."
        yield Finding("fail", _named(endpoint), str(endpoint.unusable), hint)
    given_up = [each for each in endpoints if each.state in _NOTHING_SENT and each.unusable is None]
    for endpoint in given_up[:MAX_ENDPOINTS]:
        state, command = _NOTHING_SENT[endpoint.state]
        hint = f"Once it works: postrider endpoint {command} {endpoint_public_id(endpoint.id)}"
        yield Finding("fail", _named(endpoint), f"it is {state}, and gets nothing", hint, Concern.ENDPOINT)
    active = [each for each in endpoints if each.state is EndpointState.ACTIVE and each.unusable is None]
    probed = active[:MAX_ENDPOINTS]
    results = await asyncio.gather(*map(prober.probe, probed))
    for endpoint, result in zip(probed, results, strict=True):
        yield _judged(endpoint, result)
    for count, what in (
        (len(unusable), "are unusable"),
        (len(given_up), "are disabled or unverified"),
        (len(active), "are active, and were not all probed"),
    ):
        if count > MAX_ENDPOINTS:
            yield Finding("warn", "endpoints", f"{count} {what}; only the first {MAX_ENDPOINTS} are shown")


def _judged(endpoint: Endpoint, result: Probe) -> Finding:
    """A connection is not all that it takes."""
    if endpoint.failing_since is None or result.level == "fail":
        return Finding(result.level, _named(endpoint), result.message, scope=Concern.ENDPOINT)
    message = f"{result.message}; but every attempt has failed since {printable(endpoint.failing_since)}"
    hint = f"`postrider delivery list --endpoint {endpoint_public_id(endpoint.id)}` shows why."
    return Finding("fail", _named(endpoint), message, hint, Concern.ENDPOINT)


def _named(endpoint: Endpoint) -> str:
    return f"endpoint {endpoint_public_id(endpoint.id)} ({urlsplit(endpoint.url).hostname})"
