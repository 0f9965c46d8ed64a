"""Who changed what: the actor of an act, the scope in which he may act, and the line that it leaves."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Actor:
    """Somebody who acts."""

    who: str
    """A system user, an API key's id, a session."""
    how: str
    """The surface: cli, api, console, portal."""
    origin: str
    """The host or address that he acts from."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The workspaces whose rows somebody may see and change: one, or all. It goes into each statement's
    conditions; what lies outside of it is not there."""

    workspace_id: str | None = None


EVERYWHERE = Scope()


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A change of configuration by a person."""

    id: int
    at: datetime
    actor: Actor
    workspace_id: str | None
    """None where it concerns the installation."""
    action: str
    """`endpoint.updated`, as an event type would say it."""
    subject: str
    """The public id or name of what was changed."""
    before: Mapping[str, object] | None
    after: Mapping[str, object] | None
    """What was different, without secrets; None where there was nothing, or is nothing any more."""
