import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from postrider.edges.systemd import Notifier

UNITS = Path(__file__).parents[2] / "systemd"


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The socket that systemd would read, and its address as `NOTIFY_SOCKET` spells it."""
    address = str(tmp_path / "notify") if request.param == "path" else f"@postrider-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(address.replace("@", "\0"))
        receiving.settimeout(5)
        yield receiving, address


def test_each_state_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    receiving, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.status("backlog 3\noldest 2 s")
    notifier.watchdog()
    notifier.stopping()
    assert [receiving.recv(1024) for _ in range(4)] == [
        b"READY=1",
        b"STATUS=backlog 3 oldest 2 s",
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]


def test_reloading_carries_the_monotonic_time(manager: tuple[socket.socket, str]) -> None:
    receiving, address = manager
    before = time.monotonic_ns() // 1000
    Notifier({"NOTIFY_SOCKET": address}).reloading()
    state, stamp = receiving.recv(1024).decode().split("\n")
    assert state == "RELOADING=1"
    name, microseconds = stamp.split("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(microseconds) <= time.monotonic_ns() // 1000


@pytest.mark.parametrize(
    "environ", [{}, {"NOTIFY_SOCKET": "/nonexistent/notify"}, {"NOTIFY_SOCKET": "x" * 500}]
)
def test_nobody_listening_is_no_error(environ: dict[str, str]) -> None:
    notifier = Notifier(environ)
    notifier.ready()
    notifier.status("idle")
    notifier.stopping()


def test_a_full_socket_neither_blocks_nor_raises(manager: tuple[socket.socket, str]) -> None:
    _, address = manager
    notifier = Notifier({"NOTIFY_SOCKET": address})
    for _ in range(10_000):
        notifier.watchdog()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval_is_half_of_what_systemd_tolerates(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert Notifier(environ).watchdog_interval == seconds


def test_the_template_unit_differs_from_the_plain_one_only_in_its_names() -> None:
    def settings(unit: str) -> list[str]:
        lines = (UNITS / unit).read_text().splitlines()
        return [line for line in lines if line and not line.startswith("#") and "Description" not in line]

    template = [line.replace("%i", "postrider") for line in settings("postrider@.service")]
    assert template == settings("postrider.service")
