"""A host vanishes with its daemon: nothing closes its connections, no packet comes from it any more."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.daemon_process import (
    SECRET,
    DaemonProcess,
    add_endpoint,
    assert_settled,
    emit,
    query,
    wait_until,
    write_config,
)
from tests.support.own_server import own_server
from tests.support.receiver_process import ReceiverProcess

RESCUE_S = 40
"""30 s is what is promised; the rest is for a slow machine."""


@dataclass(frozen=True)
class Host:
    """A network namespace that a cable connects with this one."""

    name: str
    cable: str
    address: str
    """Of this end of the cable."""

    @property
    def within(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]

    def plug(self, *, into: bool) -> None:
        ip("link", "set", self.cable, "up" if into else "down")


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def other_host() -> Iterator[Host]:
    number = os.getpid() % 60_000
    host = Host(f"post{number}", f"post{number}a", f"10.203.{number // 256}.1")
    inner, inner_address = f"post{number}b", f"10.203.{number // 256}.2"
    with ExitStack() as undo:
        try:
            ip("netns", "add", host.name)
            undo.callback(ip, "netns", "delete", host.name)
            ip("link", "add", host.cable, "type", "veth", "peer", "name", inner, "netns", host.name)
            ip("address", "add", f"{host.address}/30", "dev", host.cable)
            host.plug(into=True)
            for each in (
                ("address", "add", f"{inner_address}/30", "dev", inner),
                ("link", "set", inner, "up"),
                ("link", "set", "lo", "up"),
            ):
                ip("-n", host.name, *each)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no network namespace can be made here: {error}")
        yield host


def test_what_a_vanished_host_held_is_rescued(other_host: Host, tmp_path: Path) -> None:
    with own_server() as server, ReceiverProcess(SECRET) as receiver, ExitStack() as ended:
        far_dsn, dsn = server.listen(other_host.address), server.dsn
        # The same address there is another receiver, which never answers.
        silent = subprocess.Popen(
            [
                *other_host.within,
                *(sys.executable, "-m", "tests.support.receiver", "--mode", "never"),
                *("--port", str(receiver.port)),
            ],
            stdout=subprocess.PIPE,
        )
        ended.callback(silent.wait)
        ended.callback(silent.terminate)
        assert silent.stdout
        ended.callback(silent.stdout.close)
        assert silent.stdout.readline()
        add_endpoint(dsn, receiver.url("/a"))
        far = write_config(tmp_path, far_dsn, "far")
        with DaemonProcess(far, within=other_host.within) as vanished:
            vanished.wait_for_log("daemon.started")
            ids = emit(dsn, 20)
            held = "SELECT count(*) FROM postrider.claim"
            wait_until(lambda: query(dsn, held)[0][0] > 0, "a claim")
            other_host.plug(into=False)
            with DaemonProcess(write_config(tmp_path, dsn, "heir")) as heir:
                heir.wait_for_log("daemon.rescued", timeout=RESCUE_S)
                receiver.wait_for(20)
                assert_settled(dsn)
                other_host.plug(into=True)
                vanished.wait_for_log("daemon.replaced", timeout=60)
            vanished.kill()
        assert set(receiver.ids("/a")) == set(ids)
