"""How the whole installation is doing."""

from dataclasses import dataclass
from datetime import datetime

from postrider.domain.errors import PostriderError
from postrider.domain.status import DaemonReport
from postrider.operations.problems import fresh_reports
from postrider.operations.work import UnitOfWork
from postrider.store import daemons, situation
from postrider.store.daemons import DaemonRow
from postrider.store.situation import Situation


@dataclass(frozen=True, slots=True)
class Status:
    """What there is to tell, at one moment."""

    now: datetime
    situation: Situation
    daemons: list[DaemonRow]
    reports: list[tuple[DaemonRow, DaemonReport]]
    """Of living daemons, where they still hold."""


async def look(work: UnitOfWork) -> Status:
    """Raises PostriderError for those who may see one workspace: counts and daemons are of all."""
    if work.scope.workspace_id is not None:
        raise PostriderError(
            "the status concerns all workspaces",
            f"Ask somebody who may see more than {work.scope.workspace_id!r}.",
        )
    known = await daemons.list_all(work.connection)
    reports = fresh_reports(known, work.now)
    slow = {lane.endpoint_id for _, report in reports for lane in report.lanes}
    alive = {row.id for row in known if row.alive}
    return Status(work.now, await situation.read(work.connection, slow, alive), known, reports)
