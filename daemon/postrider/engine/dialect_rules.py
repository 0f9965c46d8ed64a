"""What the configured dialects say of endpoints: how their deliveries are tried, and which can be sent to at
all. A reload of the configuration exchanges it for all who ask."""

from collections.abc import Mapping
from dataclasses import replace

from postrider.domain.dialects import Dialect
from postrider.domain.model import Endpoint
from postrider.domain.policy import RetryPolicy
from postrider.domain.promises import RetrySettings, retry_policy


class DialectRules:
    def __init__(self, dialects: Mapping[str, Dialect], retry: RetrySettings) -> None:
        self.configure(dialects, retry)

    def __repr__(self) -> str:
        return f"<DialectRules {', '.join(sorted(self._policies))}>"

    def configure(self, dialects: Mapping[str, Dialect], retry: RetrySettings) -> None:
        self._policies = {name: retry_policy(dialect, retry) for name, dialect in dialects.items()}
        self._unknown = retry_policy(None, retry)

    def retry_policy(self, dialect: str) -> RetryPolicy:
        """That of a dialect by its name; one that is not configured has our own."""
        return self._policies.get(dialect, self._unknown)

    def judged(self, endpoint: Endpoint) -> Endpoint:
        """The endpoint, unusable where its dialect is not configured."""
        if endpoint.dialect in self._policies:
            return endpoint
        reason = f"its dialect {endpoint.dialect!r} is not configured"
        return replace(endpoint, unusable=f"{endpoint.unusable}; {reason}" if endpoint.unusable else reason)
