"""What people do about captures: compare the [[capture]] sections with the tables, apply and drop them, and
make events of what triggers set aside.

Captures stand above the workspaces: these acts are for those who may see all of them.
"""

from collections.abc import Sequence

from postrider.domain.audit import Scope
from postrider.domain.capture_steps import Rejection, Retried, SetAside, Step
from postrider.domain.errors import PostriderError, UsageError
from postrider.engine.recovery import recover
from postrider.operations.dialects import known_dialect
from postrider.operations.work import Backend, Setting, UnitOfWork
from postrider.store import capture_guard, capture_rejections
from postrider.store import captures as store

RETRY_BATCH = 500


async def plan(work: UnitOfWork) -> list[Step]:
    """What `apply` would do. Raises UsageError with every mistake in the sections."""
    _demand_everywhere(work.scope)
    check_event_types(work.setting)
    return await store.plan(work.connection, work.setting.config.capture)


async def apply(work: UnitOfWork) -> list[Step]:
    """Make the triggers those of the configuration; return the steps, also those that change nothing."""
    _demand_everywhere(work.scope)
    check_event_types(work.setting)
    steps = await store.apply(work.connection, work.setting.config.capture, work.now)
    for step in steps:
        if step.action == "drop":
            await _note_dropped(work, step)
        elif step.action != "keep":
            await work.note(
                "capture.applied",
                step.name,
                workspace_id=None,
                before=step.applied or {},
                after={**(step.section or {}), "checksum": step.checksum},
            )
    return steps


async def drop(work: UnitOfWork, names: Sequence[str] | None, *, with_rejected: bool = False) -> list[Step]:
    """Remove captures, those of `names` or, with None, all; return the steps. What they set aside stays, and
    becomes events when a capture of that name is applied again, unless `with_rejected`."""
    _demand_everywhere(work.scope)
    steps = await store.drop(work.connection, names)
    gone: dict[str, int] = {}
    if with_rejected:
        gone = await capture_rejections.discard(work.connection, [step.name for step in steps])
    for step in steps:
        await _note_dropped(work, step, deleted=gone.get(step.name, 0))
    return steps


async def rejections(work: UnitOfWork, limit: int) -> list[Rejection]:
    """The latest rows that were set aside, newest first."""
    _demand_everywhere(work.scope)
    return await capture_rejections.latest(work.connection, limit)


async def retry(backend: Backend, scope: Scope, name: str | None) -> Retried:
    """Make events of the rows that were set aside, of one capture or all, oldest first. It changes no
    configuration, so that the audit log has no line of it. It has transactions of its own: what a table's
    owner defined runs there."""
    _demand_everywhere(scope)
    if name is not None:
        async with backend.database.connection() as connection:
            _check_applied(name, await capture_rejections.count_by_capture(connection))
    rows = events = 0
    last: int | None = 0
    while last is not None:
        async with backend.database.connection() as connection:
            # Whoever asks may be a superuser; the daemon has few rights.
            await capture_guard.demand_own_functions(connection)
        batch = await recover(backend.database, limit=RETRY_BATCH, name=name, after=last)
        rows, events, last = rows + batch.rows, events + batch.events, batch.last
    async with backend.database.connection() as connection:
        counted = await capture_rejections.count_by_capture(connection)
    return Retried(rows, events, tuple(each for each in counted.values() if name in (None, each.capture)))


def check_event_types(setting: Setting) -> None:
    """Raise UsageError for a capture whose event types the default dialect's closed catalogue lacks."""
    default = known_dialect(setting.dialects, setting.config.dialect.default)
    for each in setting.config.capture:
        for event_type in each.event_types:
            try:
                default.catalogue.check_type(event_type)
            except UsageError as error:
                raise UsageError(
                    f"capture {each.name}: {error.message} in the catalogue of {default.name}",
                    f"{error.hint} Or leave it out: events = {{ … = false }}.",
                ) from None


def _check_applied(name: str, known: dict[str, SetAside]) -> None:
    if name not in known:
        applied = ", ".join(each.capture for each in known.values() if each.applied)
        raise UsageError(
            f"there is no capture {name!r} in the database", f"Applied are: {applied or 'none'}."
        )
    if not known[name].applied:
        raise UsageError(
            f"the capture {name} is not applied; its rows stay set aside: {known[name].rows}",
            "`postrider capture apply` with its section makes events of them; "
            "`retention.events` deletes them.",
        )


async def _note_dropped(work: UnitOfWork, step: Step, deleted: int = 0) -> None:
    """`deleted`: rows that it had set aside, and that went with it."""
    before = dict(step.applied or {})
    if deleted:
        before["rows_set_aside"] = deleted
    await work.note("capture.dropped", step.name, workspace_id=None, before=before)


def _demand_everywhere(scope: Scope) -> None:
    if scope.workspace_id is not None:
        raise PostriderError(
            "captures concern all workspaces", f"Ask somebody who may see more than {scope.workspace_id!r}."
        )
