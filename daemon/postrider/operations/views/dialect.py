"""Dialects as JSON, and as facts for a person."""

from postrider.domain.dialects import Dialect
from postrider.domain.promises import retry_policy
from postrider.edges.config import Config
from postrider.edges.durations import format_duration
from postrider.edges.settings import retry_settings


def listed(dialect: Dialect, config: Config) -> dict[str, object]:
    return {
        "name": dialect.name,
        "description": dialect.description,
        "default": dialect.name == config.dialect.default,
        "events": len(dialect.events),
        "closed_catalogue": dialect.closed_catalogue,
    }


def event_types(dialect: Dialect) -> list[dict[str, object]]:
    return [
        {"type": each.type, "group": each.group, "description": each.description, "status": each.status}
        for each in dialect.events
    ]


def facts(dialect: Dialect, config: Config) -> dict[str, object]:
    """Its habits, as endpoints get them under this configuration."""
    policy = retry_policy(dialect, retry_settings(config))
    return {
        "name": dialect.name,
        "description": dialect.description,
        "signature": [each.header for each in dialect.signatures]
        + (["webhook-signature"] if dialect.standard_webhooks else []),
        "user_agent": dialect.user_agent or config.delivery.user_agent,
        "https_only": dialect.https_only,
        "https": _https(dialect, config),
        "timeout": format_duration(dialect.timeout or config.delivery.timeout),
        "connect_timeout": format_duration(dialect.connect_timeout or config.delivery.connect_timeout),
        "retry_schedule": [format_duration(delay) for delay in policy.delays],
        "promised_schedule": dialect.promised_schedule,
        "retry_after": "puts the next attempt off" if policy.heeds_retry_after else "is ignored",
        "on_410": "the endpoint is disabled" if policy.gone_disables else "as any other failure",
        "when_exhausted": "the endpoint is disabled"
        if dialect.disable_when_exhausted
        else "the delivery is failed",
        "disable_after": "never"
        if policy.disable_after is None
        else f"{format_duration(policy.disable_after)} of nothing but failures",
        "handshake": dialect.handshake.type if dialect.handshake else None,
        "sending_addresses": list(dialect.sending_addresses),
        "closed_catalogue": dialect.closed_catalogue,
        "values": [f"{name} = {value}" for name, value in dialect.values.items()],
    }


def _https(dialect: Dialect, config: Config) -> str:
    """Whether endpoints need it, and by whose choice."""
    if not config.network.https_only:
        return "not demanded: network.https_only = false"
    return "demanded, as the CRM promises it" if dialect.https_only else "demanded by network.https_only"
