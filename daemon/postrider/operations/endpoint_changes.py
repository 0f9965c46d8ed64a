"""Endpoints that people add, change and verify. One whose dialect demands a handshake takes part once it
answered, and no transaction waits for that answer."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from msgspec import UNSET

from postrider.domain.audit import Actor, Scope
from postrider.domain.dialects import Dialect
from postrider.domain.endpoint_input import EndpointChange, NewEndpoint
from postrider.domain.errors import PostriderError, UsageError
from postrider.domain.model import Endpoint, EndpointState, endpoint_public_id
from postrider.domain.signing import check_new_secret, parse_secret
from postrider.edges.randomness import new_secret, random_id
from postrider.operations import endpoints as operation
from postrider.operations.dialects import known_dialect
from postrider.operations.endpoint_audit import note_endpoint
from postrider.operations.endpoint_rules import (
    check_bounds,
    check_known,
    check_target,
    checked_patterns,
    demand_living,
    demand_usable,
    needed_patterns,
    planned,
    workspace_for,
)
from postrider.operations.single_requests import Sent, shake_hands
from postrider.operations.work import Backend, Setting, UnitOfWork
from postrider.store import endpoints
from postrider.store.endpoint_rows import EndpointRow


@dataclass(frozen=True, slots=True)
class Changed:
    """An endpoint that was added or changed."""

    row: EndpointRow
    secret: str | None = field(repr=False)
    """Where one was made for it."""
    notices: list[str]
    """What whoever did it should know."""
    handshake: Sent | None
    """What came of the handshake that decides whether it takes part; None where none was asked for."""

    @property
    def problem(self) -> str | None:
        """What the endpoint did instead of answering the handshake."""
        return None if self.handshake is None else self.handshake.reason


@dataclass(frozen=True, slots=True)
class Verified:
    row: EndpointRow
    """As it is now."""
    before: EndpointState
    handshake: Sent | None
    """None where its dialect demands none any more."""

    @property
    def problem(self) -> str | None:
        return None if self.handshake is None else self.handshake.reason


@dataclass(frozen=True, slots=True)
class _Plan:
    """A change that keeps the rules."""

    before: Endpoint
    after: Endpoint
    """As the change makes it."""
    change: EndpointChange
    dialect: Dialect
    notices: list[str]
    handshake_first: bool
    """It takes part already, and has to answer at its new URL or in its new dialect before it is changed."""


async def add(
    backend: Backend, actor: Actor, scope: Scope, new: NewEndpoint, *, vouched: bool = False
) -> Changed:
    """Subscribe a URL to events. `vouched`: it takes part without a handshake."""
    async with backend.begin(actor, scope) as work:
        await endpoints.lock(work.connection)
        endpoint, dialect, given, notices = _made(work.setting, scope, new, vouched=vouched)
        await endpoints.add(work.connection, work.setting.sealer, endpoint, [given], work.now)
        await note_endpoint(work, "endpoint.added", after=endpoint)
    handshake = None
    if endpoint.state is EndpointState.UNVERIFIED:
        handshake = await _verify(backend, actor, scope, dialect, endpoint)
    return Changed(
        row=await _row(backend, actor, scope, endpoint.id),
        secret=given if new.secret is None else None,
        notices=notices,
        handshake=handshake,
    )


async def update(
    backend: Backend, actor: Actor, scope: Scope, endpoint_id: int, change: EndpointChange
) -> Changed:
    """Change what is given. A new URL or dialect has to answer the handshake that the dialect demands, else
    nothing is changed."""
    async with backend.begin(actor, scope) as work:
        plan = await _plan(work, endpoint_id, change)
        if not plan.handshake_first:
            await _apply(work, plan)
    handshake = None
    if plan.handshake_first:
        sent = await shake_hands(backend, actor, scope, plan.dialect, plan.after)
        ep = endpoint_public_id(endpoint_id)
        if sent is not None and sent.reason is not None:
            raise PostriderError(
                f"{ep} was not changed: the handshake of {plan.dialect.name} failed: {sent.reason}",
                "Mend the receiver, then try again.",
            )
        async with backend.begin(actor, scope) as work:
            answered = (plan.after.url, plan.after.dialect)
            plan = await _plan(work, endpoint_id, change)
            if (plan.after.url, plan.after.dialect) != answered:
                raise PostriderError(f"{ep} was not changed: somebody else just did", "Look at it again.")
            await _apply(work, plan)
    elif plan.after.state is EndpointState.UNVERIFIED:
        handshake = await _verify(backend, actor, scope, plan.dialect, plan.after)
    return Changed(
        row=await _row(backend, actor, scope, endpoint_id),
        secret=None,
        notices=plan.notices,
        handshake=handshake,
    )


async def verify(backend: Backend, actor: Actor, scope: Scope, endpoint_id: int) -> Verified:
    """Ask an endpoint for the handshake of its dialect; one that answers it takes part from now on."""
    async with backend.begin(actor, scope) as work:
        endpoint = demand_usable(await operation.get(work, endpoint_id))
    dialect = known_dialect(backend.setting.dialects, endpoint.dialect)
    if dialect.handshake is None and endpoint.state is not EndpointState.UNVERIFIED:
        raise UsageError(
            f"the dialect {dialect.name} knows no handshake", "Try the endpoint: postrider endpoint test."
        )
    sent = await _verify(backend, actor, scope, dialect, endpoint)
    return Verified(await _row(backend, actor, scope, endpoint_id), endpoint.state, sent)


async def _verify(
    backend: Backend, actor: Actor, scope: Scope, dialect: Dialect, endpoint: Endpoint
) -> Sent | None:
    """Shake hands where that is demanded, and activate an unverified endpoint that did."""
    sent = await shake_hands(backend, actor, scope, dialect, endpoint)
    if sent is None or sent.reason is None:
        async with backend.begin(actor, scope) as work:
            await endpoints.lock(work.connection)
            before = demand_living(await operation.get(work, endpoint.id))
            if (before.url, before.dialect) != (endpoint.url, endpoint.dialect):
                ep = endpoint_public_id(endpoint.id)
                raise PostriderError(
                    f"{ep} was changed before it had answered", f"postrider endpoint verify {ep}"
                )
            if await endpoints.activate(work.connection, before.workspace_id, before.id, work.now):
                after = replace(before, state=EndpointState.ACTIVE)
                await note_endpoint(work, "endpoint.verified", before=before, after=after)
    return sent


async def _row(backend: Backend, actor: Actor, scope: Scope, endpoint_id: int) -> EndpointRow:
    async with backend.begin(actor, scope) as work:
        return await operation.get(work, endpoint_id)


def _made(
    setting: Setting, scope: Scope, new: NewEndpoint, *, vouched: bool
) -> tuple[Endpoint, Dialect, str, list[str]]:
    """A new endpoint that keeps the rules, its dialect and secret, and notices."""
    workspace = workspace_for(new.workspace_id, scope)
    given = new_secret() if new.secret is None else new.secret
    if new.secret is not None:
        check_new_secret(given)
    dialect = known_dialect(setting.dialects, new.dialect or setting.config.dialect.default)
    notices = check_target(setting, new.url, dialect)
    check_bounds(new.concurrency, new.rate, new.headers)
    endpoint = Endpoint(
        id=random_id(),
        workspace_id=workspace,
        url=new.url,
        patterns=needed_patterns(new.patterns, dialect),
        exclusions=checked_patterns(new.exclusions, dialect),
        dialect=dialect.name,
        secrets=(parse_secret(given),),
        state=EndpointState.UNVERIFIED if dialect.handshake and not vouched else EndpointState.ACTIVE,
        concurrency=new.concurrency,
        headers=new.headers,
        failing_since=None,
        description=new.description,
        rate=new.rate,
    )
    return endpoint, dialect, given, [*notices, *planned(dialect, endpoint.patterns, endpoint.exclusions)]


async def _plan(work: UnitOfWork, endpoint_id: int, change: EndpointChange) -> _Plan:
    """The change, of the endpoint as it stays until the end of the transaction."""
    await endpoints.lock(work.connection)
    before = demand_living(await operation.get(work, endpoint_id))
    setting = work.setting
    dialect = known_dialect(setting.dialects, before.dialect if change.dialect is UNSET else change.dialect)
    notices = [] if change.url is UNSET else check_target(setting, change.url, dialect)
    if change.patterns is not UNSET:
        change = replace(change, patterns=needed_patterns(change.patterns, dialect))
    elif change.dialect is not UNSET:
        check_known(before.patterns, dialect)
    if change.exclusions is not UNSET:
        change = replace(change, exclusions=checked_patterns(change.exclusions, dialect))
    after = _changed(before, change)
    given = change.headers if isinstance(change.headers, Mapping) else {}
    check_bounds(
        None if change.concurrency is UNSET else change.concurrency,
        None if change.rate is UNSET else change.rate,
        given,
    )
    moves = before.state is not EndpointState.UNVERIFIED and (after.url, after.dialect) != (
        before.url,
        before.dialect,
    )
    handshake_first = moves and dialect.handshake is not None
    if (given or handshake_first) and not before.secrets:
        # Most likely the key is another one than the daemon's: nothing may be sealed with it.
        ep = endpoint_public_id(endpoint_id)
        raise PostriderError(f"{ep} can't be used: {before.unusable}", "Mend that first.")
    if change.patterns is not UNSET or change.dialect is not UNSET:
        notices += planned(dialect, after.patterns, after.exclusions)
    return _Plan(before, after, change, dialect, notices, handshake_first)


async def _apply(work: UnitOfWork, plan: _Plan) -> None:
    after = plan.after
    await endpoints.update(
        work.connection, work.setting.sealer, after.workspace_id, after.id, plan.change, now=work.now
    )
    await note_endpoint(work, "endpoint.updated", before=plan.before, after=after)


def _changed(before: Endpoint, change: EndpointChange) -> Endpoint:
    return replace(
        before,
        url=before.url if change.url is UNSET else change.url,
        patterns=before.patterns if change.patterns is UNSET else change.patterns,
        exclusions=before.exclusions if change.exclusions is UNSET else change.exclusions,
        dialect=before.dialect if change.dialect is UNSET else change.dialect,
        headers=before.headers if change.headers is UNSET else change.headers,
        concurrency=before.concurrency if change.concurrency is UNSET else change.concurrency,
        rate=before.rate if change.rate is UNSET else change.rate,
        description=before.description if change.description is UNSET else change.description,
    )
