"""Changes of endpoints reach their lanes: what a lane that closed gives back waits in the database, and what
was for an endpoint that is gone is cancelled."""

from collections.abc import Collection, Sequence

from postrider.domain.model import DeliveryState, Endpoint
from postrider.engine.lanes import Lanes
from postrider.engine.recorder import Recorder


class LaneChanges:
    def __init__(self, lanes: Lanes, recorder: Recorder) -> None:
        self._lanes = lanes
        self._recorder = recorder

    def __call__(self, changed: Sequence[Endpoint], gone: Collection[int]) -> None:
        for job in self._lanes.update(changed, gone):
            if job.endpoint_id in gone:
                self._recorder.put(job, DeliveryState.CANCELLED, reason="the endpoint was deleted")
            else:
                self._recorder.put(job, DeliveryState.WAITING)
