"""What goes wrong at endpoints, as the log tells it: the first failure at once, then counts once a minute.

A dead endpoint fails thousands of deliveries. Each of them is a line at debug; its row says the same.
"""

import logging
from dataclasses import dataclass
from typing import cast

import structlog

from postrider.domain.digest import Digest, Summary
from postrider.domain.model import DeliveryState, endpoint_public_id
from postrider.edges.addresses import explain
from postrider.edges.clock import Clock
from postrider.edges.dialing import BlockedAddressError

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class FailuresTuning:
    interval_s: float = 1.0


@dataclass(frozen=True, slots=True)
class FailureCounts:
    written: int
    """Lines."""


class Failures:
    def __init__(self, clock: Clock, tuning: FailuresTuning | None = None) -> None:
        self._clock = clock
        self._tuning = tuning or FailuresTuning()
        self._deliveries = Digest()
        """By endpoint."""
        self._blocked = Digest()
        """By host and address."""

    def __repr__(self) -> str:
        return f"<Failures of {len(self._deliveries)} endpoints>"

    def level(self, endpoint_id: int, state: DeliveryState, reason: str) -> int:
        """Take in a delivery that failed; return the level of its own log line."""
        if not self._deliveries.note(endpoint_id, state.value, reason, self._clock.monotonic()):
            return logging.DEBUG
        return logging.WARNING if state is DeliveryState.FAILED else logging.INFO

    def blocked(self, error: BlockedAddressError) -> None:
        """Tell of an address that the network policy forbids."""
        verdict = error.verdict.value
        if self._blocked.note((error.host, error.address), verdict, verdict, self._clock.monotonic()):
            reason = explain(error.address, error.verdict)
            log.warning("address.blocked", host=error.host, address=error.address, reason=reason)

    async def run(self) -> None:
        while True:
            await self._clock.sleep(self._tuning.interval_s)
            self.run_once()

    def run_once(self) -> FailureCounts:
        """Write the lines that are due."""
        now = self._clock.monotonic()
        return self._write(self._deliveries.due(now), self._blocked.due(now))

    def flush(self) -> FailureCounts:
        """Write all that is counted: this is the end."""
        now = self._clock.monotonic()
        return self._write(self._deliveries.drain(now), self._blocked.drain(now))

    @staticmethod
    def _write(deliveries: list[Summary], blocked: list[Summary]) -> FailureCounts:
        for each in deliveries:
            failed = each.counts.get(DeliveryState.FAILED.value, 0)
            log.log(
                logging.WARNING if failed else logging.INFO,
                "endpoint.failures",
                endpoint=None if each.key is None else endpoint_public_id(cast(int, each.key)),
                retrying=each.counts.get(DeliveryState.RETRYING.value, 0),
                failed=failed,
                reasons=each.reasons,
                within_s=each.seconds,
            )
        for each in blocked:
            host, address = cast(tuple[str, str], each.key or (None, None))
            log.warning(
                "address.blocked",
                host=host,
                address=address,
                requests=sum(each.counts.values()),
                within_s=each.seconds,
            )
        return FailureCounts(len(deliveries) + len(blocked))
