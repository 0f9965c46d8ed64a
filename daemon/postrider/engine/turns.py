"""Whose turn it is: lanes that wait for a slot, and the shares of the slots that some of them have together.

Workspaces take turns, and within each of them its lanes. Lanes that are slow, or never answered yet, have
every other turn while their share lasts; of these, lanes whose endpoint was known to fail come last, and have
a part of that share.
"""

from collections import OrderedDict
from typing import Generic, TypeVar

from postrider.engine.lane import Lane

T = TypeVar("T")


class Queue(Generic[T]):
    """What waits for its turn: workspaces take turns, each with what it put in first."""

    def __init__(self) -> None:
        self._workspaces: OrderedDict[str, OrderedDict[T, None]] = OrderedDict()
        """Those that have something in it, the one whose turn it is first."""
        self.length = 0

    def __len__(self) -> int:
        return self.length

    @property
    def workspaces(self) -> int:
        """How many have something in it."""
        return len(self._workspaces)

    def append(self, workspace_id: str, item: T, *, ahead: bool = False) -> None:
        """Let an item that is not in it wait behind all of its workspace, or `ahead` of it."""
        items = self._workspaces.get(workspace_id)
        if items is None:
            items = self._workspaces[workspace_id] = OrderedDict()
        items[item] = None
        if ahead:
            items.move_to_end(item, last=False)
        self.length += 1

    def pop(self) -> T:
        workspace_id, items = self._workspaces.popitem(last=False)
        item, _ = items.popitem(last=False)
        if items:
            self._workspaces[workspace_id] = items
        self.length -= 1
        return item

    def remove(self, workspace_id: str, item: T) -> None:
        """Take an item out, if it is in."""
        items = self._workspaces.get(workspace_id)
        if items is None or item not in items:
            return
        del items[item]
        if not items:
            del self._workspaces[workspace_id]
        self.length -= 1

    def has(self, workspace_id: str, item: T) -> bool:
        return item in self._workspaces.get(workspace_id, ())


class Turns:
    def __init__(self, slots: int, unproven_share: float, failing_share: float) -> None:
        """Of the slots, a share is for all lanes together that are slow or did not answer yet; of these, one
        for lanes among them whose endpoint was failing when the daemon began to know it."""
        self._unproven_slots = max(1, int(slots * unproven_share))
        self._failing_slots = max(1, int(self._unproven_slots * failing_share))
        self._proven: Queue[Lane] = Queue()
        self._unproven: Queue[Lane] = Queue()
        self._failing: Queue[Lane] = Queue()
        self._proven_next = False
        self._unproven_running = 0
        self._failing_running = 0

    def __repr__(self) -> str:
        return (
            f"<Turns unproven={self._unproven_running}/{self._unproven_slots} "
            f"failing={self._failing_running}/{self._failing_slots}>"
        )

    @property
    def proven(self) -> int:
        """How many lanes that answer wait for their turn."""
        return self._proven.length

    @property
    def unproven(self) -> int:
        """How many others do, if the slots that they have together are not used up."""
        if self._unproven_may_run() or self._failing_may_run():
            return self._unproven.length + self._failing.length
        return 0

    def give(self, lane: Lane) -> None:
        """Let a lane wait for its turn, if it has something to send and a slot free."""
        if not lane.has_turn and lane.ready:
            lane.has_turn = True
            self._queue_of(lane).append(lane.endpoint.workspace_id, lane)

    def next(self, *, unproven: bool) -> Lane | None:
        """The lane whose turn it is, among all or the proven ones; it may have become unable to use it."""
        self._proven_next = not self._proven_next
        if self._proven.length and self._proven_next:
            lane = self._proven.pop()
        elif unproven and self._unproven_may_run():
            lane = self._unproven.pop()
        elif unproven and self._failing_may_run():
            lane = self._failing.pop()
        elif self._proven.length:
            lane = self._proven.pop()
        else:
            return None
        lane.has_turn = False
        return lane

    def withdraw(self, lane: Lane) -> None:
        """Let a lane not wait for its turn any more."""
        if lane.has_turn:
            self._queue_of(lane).remove(lane.endpoint.workspace_id, lane)
            lane.has_turn = False

    def count(self, lane: Lane, requests: int) -> None:
        """So many more requests of a lane are under way, or fewer."""
        if lane.unproven:
            self._unproven_running += requests
            if lane.failing:
                self._failing_running += requests

    def reclassify(self, lane: Lane, *, unproven: bool, failing: bool) -> None:
        """Take a lane from one kind to another."""
        self.withdraw(lane)
        self.count(lane, -len(lane.running))
        lane.unproven, lane.failing = unproven, failing
        self.count(lane, len(lane.running))
        self.give(lane)

    def _queue_of(self, lane: Lane) -> Queue[Lane]:
        if not lane.unproven:
            return self._proven
        return self._failing if lane.failing else self._unproven

    def _unproven_may_run(self) -> bool:
        return self._unproven.length > 0 and self._unproven_running < self._unproven_slots

    def _failing_may_run(self) -> bool:
        return (
            self._failing.length > 0
            and self._failing_running < self._failing_slots
            and self._unproven_running < self._unproven_slots
        )
