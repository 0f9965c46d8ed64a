"""How often something may be done whose price is known afterwards: so that it takes a share of the time."""

from collections import deque

_LOOK_BACK = 3
"""The cheapest of so many times counts: another one may have waited for a lock."""


class TimeShare:
    """Of something that takes `share` of the time, and is done at least every `longest_s` seconds."""

    def __init__(self, share: float, longest_s: float) -> None:
        self._share = share
        self._longest_s = longest_s
        self._spans: deque[float] = deque(maxlen=_LOOK_BACK)
        self._due_at = float("-inf")

    def due(self, now: float) -> bool:
        return now >= self._due_at

    def spent(self, began: float, ended: float) -> None:
        self._spans.append(ended - began)
        self._due_at = ended + min(min(self._spans) / self._share, self._longest_s)

    def reset(self) -> None:
        """Let it be due now."""
        self._due_at = float("-inf")
