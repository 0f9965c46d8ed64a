"""What a person says of an endpoint: a new one, or what to change of one."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec import UNSET, UnsetType


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEndpoint:
    url: str
    patterns: tuple[str, ...]
    exclusions: tuple[str, ...] = ()
    workspace_id: str | None = None
    """None: the one workspace in which whoever asks may act, else the workspace of events that name none."""
    dialect: str | None = None
    """None: the configuration's default."""
    secret: str | None = field(default=None, repr=False)
    """None: one is made for it."""
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    concurrency: int | None = None
    """Requests at a time; None: as the configuration says."""
    rate: float | None = None
    """Requests per second; None: without a bound."""
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointChange:
    """What is UNSET stays as it is; otherwise the same as of a new one."""

    url: str | UnsetType = UNSET
    patterns: tuple[str, ...] | UnsetType = UNSET
    exclusions: tuple[str, ...] | UnsetType = UNSET
    dialect: str | UnsetType = UNSET
    headers: Mapping[str, str] | UnsetType = field(default=UNSET, repr=False)
    """In place of all that it has."""
    concurrency: int | UnsetType | None = UNSET
    rate: float | UnsetType | None = UNSET
    description: str | UnsetType = UNSET
