"""What the audit log keeps of an endpoint: how it is configured, without secrets."""

from urllib.parse import urlsplit, urlunsplit

from postrider.domain.model import Endpoint, endpoint_public_id
from postrider.operations.work import UnitOfWork


async def note_endpoint(
    work: UnitOfWork, action: str, *, before: Endpoint | None = None, after: Endpoint | None = None
) -> None:
    """Leave a line of an act on an endpoint, which is told as it was, or is, or both."""
    told = after or before
    assert told is not None
    then, now = (None if each is None else _facts(each) for each in (before, after))
    if before is not None and after is not None and now is not None:
        now["replaced"] = _replaced(before, after) or None
    await work.note(
        action, endpoint_public_id(told.id), workspace_id=told.workspace_id, before=then, after=now
    )


def _facts(endpoint: Endpoint) -> dict[str, object]:
    return {
        "url": _without_password(endpoint.url),
        "description": endpoint.description,
        "state": endpoint.state.value,
        "events": list(endpoint.patterns),
        "exclude": list(endpoint.exclusions),
        "dialect": endpoint.dialect,
        "concurrency": endpoint.concurrency,
        "rate_per_s": endpoint.rate,
        "headers": sorted(endpoint.headers),
    }


def _replaced(before: Endpoint, after: Endpoint) -> list[str]:
    """What differs in a part that is not told."""
    same = before.headers.keys() & after.headers.keys()
    return ["headers"] if any(before.headers[name] != after.headers[name] for name in same) else []


def _without_password(url: str) -> str:
    """None is taken from a person; a row may have been written by hand."""
    try:
        parts = urlsplit(url)
        user, at, host = parts.netloc.rpartition("@")
        return urlunsplit(parts._replace(netloc=f"{user.partition(':')[0]}:***@{host}")) if at else url
    except ValueError:  # a damaged one
        return ""
