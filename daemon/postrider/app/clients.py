"""The HTTP clients of a daemon: one, and while a configuration is taken over also the one before it."""

from postrider.edges.config import Config
from postrider.edges.dialing import BlockedAddressError
from postrider.edges.metrics import Metrics
from postrider.edges.network import WebhookClient
from postrider.edges.settings import network_options
from postrider.engine.failures import Failures


class Clients:
    def __init__(self, metrics: Metrics, failures: Failures) -> None:
        self._metrics = metrics
        self._failures = failures
        self._open: list[WebhookClient] = []

    def __repr__(self) -> str:
        return f"<Clients {len(self._open)} open>"

    async def open(self, config: Config) -> WebhookClient:
        """Raises PostriderError for what the configuration says of the network and can't be."""
        client = WebhookClient(network_options(config), on_blocked=self._note_blocked)
        await client.__aenter__()
        self._open.append(client)
        return client

    async def close(self, client: WebhookClient) -> None:
        if client in self._open:
            self._open.remove(client)
            await client.__aexit__(None, None, None)

    async def close_all(self) -> None:
        for client in list(self._open):
            await self.close(client)

    def _note_blocked(self, error: BlockedAddressError) -> None:
        """The delivery's reason names no inner address; this is for the operator."""
        self._metrics.blocked.labels(error.verdict.value).inc()
        self._failures.blocked(error)
