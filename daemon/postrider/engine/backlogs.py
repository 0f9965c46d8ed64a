"""Lanes with deliveries in the database, which take turns to be refilled, workspace by workspace."""

from collections.abc import Callable

from postrider.engine.lane import Lane
from postrider.engine.turns import Queue


class Backlogs:
    """Open lanes alone: of others nothing is sent."""

    def __init__(self, most_looked_at: int) -> None:
        """`most_looked_at`: lanes, at one look for some to refill."""
        self._most_looked_at = most_looked_at
        self._lanes: Queue[Lane] = Queue()

    def __repr__(self) -> str:
        return f"<Backlogs {len(self._lanes)}>"

    def add(self, lane: Lane) -> None:
        if lane.open and not self._lanes.has(lane.endpoint.workspace_id, lane):
            self._lanes.append(lane.endpoint.workspace_id, lane)

    def remove(self, lane: Lane) -> None:
        self._lanes.remove(lane.endpoint.workspace_id, lane)

    def pick(self, most: int, wants: Callable[[Lane], bool]) -> tuple[list[Lane], bool]:
        """Some that want to be refilled; and whether there may be more."""
        found: list[Lane] = []
        looked_at: list[Lane] = []
        while self._lanes and len(found) < most and len(looked_at) < self._most_looked_at:
            lane = self._lanes.pop()
            looked_at.append(lane)
            if wants(lane):
                found.append(lane)
        more = bool(self._lanes)
        for lane in looked_at:  # not before: it would come again where its workspace has no other
            self._lanes.append(lane.endpoint.workspace_id, lane)
        return found, more
