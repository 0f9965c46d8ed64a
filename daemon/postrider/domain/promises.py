"""What a dialect promises, put together with what the configuration says: a promise goes first."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

from postrider.domain.dialects import Dialect
from postrider.domain.policy import DEFAULT_DELAYS, DEFAULT_JITTER, RetryPolicy


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """The section [retry] of the configuration."""

    schedule: tuple[float, ...] | None
    """Seconds before each attempt; None takes the dialect's."""
    jitter: float | None
    """Likewise."""
    disable_after: float
    """Seconds, where the dialect says nothing of it."""


def retry_policy(dialect: Dialect | None, settings: RetrySettings) -> RetryPolicy:
    """How deliveries of a dialect are tried; None stands for one that is not known."""
    if dialect is None:
        return RetryPolicy(
            settings.schedule or DEFAULT_DELAYS,
            _first_given(settings.jitter, DEFAULT_JITTER),
            disable_after=settings.disable_after,
        )
    schedule, jitter = settings.schedule, settings.jitter
    if dialect.promised_schedule:
        schedule = jitter = None
    disable_after = dialect.disable_after or settings.disable_after
    return RetryPolicy(
        schedule or dialect.retry_delays,
        _first_given(jitter, dialect.retry_jitter, DEFAULT_JITTER),
        disable_when_exhausted=dialect.disable_when_exhausted,
        gone_disables=dialect.gone == "disable",
        heeds_retry_after=dialect.retry_after,
        disable_after=None if disable_after == "never" else disable_after,
        promised=dialect.promised_schedule,
    )


def overruled(dialect: Dialect, settings: RetrySettings) -> list[str]:
    """The keys of the configuration that would have another effect if the dialect promised nothing."""
    policy = retry_policy(dialect, settings)
    keys = []
    if settings.schedule is not None and settings.schedule != policy.delays:
        keys.append("retry.schedule")
    if settings.jitter is not None and settings.jitter != policy.jitter:
        keys.append("retry.jitter")
    return keys


def broken_promises(dialect: Dialect, sources: Iterable[str]) -> list[str]:
    """Those of the addresses that requests leave from, which the dialect does not promise."""
    promised = [ip_network(network) for network in dialect.sending_addresses]
    return [each for each in sources if not any(ip_address(each) in network for network in promised)]


def _first_given(*values: float | None) -> float:
    return next(value for value in values if value is not None)
