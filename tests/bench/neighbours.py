"""What one noisy neighbour costs a healthy endpoint: its p99 in ms from the return of a commit to the
arrival, at 100 events a second, beside the neighbour and alone. The neighbours are of another workspace:

- an endpoint at a concurrency of 1 that takes 40 ms, and gets four times what it can take;
- 30,000 endpoints, and five events for all of them;
- 16 endpoints that take 5 s for events of 1 MB;
- 40 endpoints that never answer, after a start of the daemon, when none has answered yet;
- 40 endpoints whose name server never answers (only as root, who can give the daemon one of its own).
"""

import asyncio
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bench.report import Row, compared, percentile
from tests.bench.stage import Stage

EVENTS_PER_S = 100
_SILENT_SERVER = "127.0.0.153"
SECONDS_FACTOR = 4
"""A run is so much longer than a floor run."""


@dataclass(frozen=True, slots=True)
class Neighbour:
    what: str
    endpoints: int
    group: str
    disturb: Callable[[Stage, float], Coroutine[None, None, None]]
    """Makes its noise in a run of so many seconds."""
    concurrency: int | None = None
    host: str | None = None
    """That its endpoints are on, instead of the sink; a name, which is asked of a silent name server."""


async def _steadily(stage: Stage, seconds: float, events_per_s: int, data_bytes: int = 2) -> None:
    started = time.monotonic()
    for second in range(int(seconds)):
        await asyncio.sleep(started + second - time.monotonic())
        await stage.disturb(events_per_s, data_bytes=data_bytes)


async def _once(stage: Stage, _seconds: float) -> None:
    await stage.disturb(5)


NEIGHBOURS = (
    Neighbour("a slow endpoint", 1, "late", lambda stage, s: _steadily(stage, s, 100), concurrency=1),
    Neighbour("5 events for 30,000 endpoints", 30_000, "many", _once),
    Neighbour("1 MB for 16 slow endpoints", 16, "slow", lambda stage, s: _steadily(stage, s, 4, 1_000_000)),
    Neighbour("40 silent endpoints", 40, "never", lambda stage, s: _steadily(stage, s, 20)),
    Neighbour(
        "a silent name server", 40, "mute", lambda stage, s: _steadily(stage, s, 20), host="mute{}.example"
    ),
)


async def neighbours(stage: Stage, rounds: int, seconds: float) -> list[Row]:
    rows = []
    for neighbour in NEIGHBOURS:
        if neighbour.host is not None and os.geteuid() != 0:
            print(f"left out, only root can measure it: {neighbour.what}", file=sys.stderr)
            continue
        await stage.clear()
        await stage.subscribe(1, pattern="e0.*")
        alone, beside = [], []
        for _ in range(rounds):
            alone.append(await _p99_ms(stage, seconds * SECONDS_FACTOR, None))
            count = max(1, int(neighbour.endpoints * min(1.0, stage.scale)))
            await stage.subscribe(
                count,
                groups=(neighbour.group,),
                pattern="noise.*",
                concurrency=neighbour.concurrency,
                workspace="neighbour",
                host=neighbour.host,
            )
            beside.append(await _p99_ms(stage, seconds * SECONDS_FACTOR, neighbour))
            await stage.clear()
            await stage.subscribe(1, pattern="e0.*")
        rows.append(compared(f"latency beside {neighbour.what}, p99", "≤ 1.5", alone, beside, "{:.1f} ms"))
    return rows


@contextmanager
def _names_of(neighbour: Neighbour | None) -> Iterator[Sequence[str]]:
    """What the daemon runs within: where the neighbour has a host, /etc/resolv.conf names a silent server."""
    if neighbour is None or neighbour.host is None:
        yield ()
        return
    with socket.socket(type=socket.SOCK_DGRAM) as silent, tempfile.TemporaryDirectory() as directory:
        silent.bind((_SILENT_SERVER, 53))
        settings = Path(directory) / "resolv.conf"
        settings.write_text(f"nameserver {_SILENT_SERVER}\n")
        mount = f'mount --bind {settings} "$(readlink -f /etc/resolv.conf)" && exec "$@"'
        yield ("unshare", "--mount", "sh", "-c", mount, "sh")


async def _p99_ms(stage: Stage, seconds: float, neighbour: Neighbour | None) -> float:
    await stage.clear(endpoints=False)
    committed: dict[str, float] = {}
    with _names_of(neighbour) as within, stage.daemon(within) as daemon:
        await stage.asleep(daemon)
        stage.sink.reset(keep=True)
        async with stage.another_connection() as other, asyncio.TaskGroup() as group:
            if neighbour is not None:
                group.create_task(neighbour.disturb(other, seconds))
            started = time.monotonic()
            for number in range(int(seconds * EVENTS_PER_S)):
                await asyncio.sleep(started + number / EVENTS_PER_S - time.monotonic())
                committed |= {event: at for event, (_, at) in (await stage.emit([0])).items()}
        await daemon.until(lambda: stage.sink.received() >= len(committed), "the healthy endpoint", 60)
    arrived = {event: at for (path, event), at in stage.sink.arrivals().items() if path.startswith("/ok/")}
    return percentile([(arrived[event] - at) * 1000 for event, at in committed.items()], 99)
