"""`postrider listen` beside a daemon: it registers itself, and hands on what it receives."""

import json
import re
import signal
import socket
import subprocess
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.daemon_process import DaemonProcess, assert_settled, query, write_config
from tests.support.receiver_process import ReceiverProcess

LIVING = "SELECT count(*) FROM postrider.endpoint WHERE state <> 'deleted'"


class Listening:
    """A listener that has a configuration."""

    def __init__(self, cli: Cli, *options: str) -> None:
        self.process = subprocess.Popen(
            cli.command("listen", "--port", "0", "--json", *options),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.said = ""
        assert self.process.stderr
        for line in self.process.stderr:
            self.said += line
            if "Listening" in line:
                break

    def line(self) -> dict[str, Any]:
        assert self.process.stdout
        received: dict[str, Any] = json.loads(self.process.stdout.readline())
        return received

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        self.process.communicate(timeout=30)
        return self.process.returncode


@pytest.fixture
def cli(database_dsn: str, tmp_path: Path) -> Cli:
    return Cli(write_config(tmp_path, database_dsn, retry={"schedule": ["0s"]}))


def test_it_registers_itself_forwards_and_leaves_nothing(cli: Cli, database_dsn: str, tmp_path: Path) -> None:
    with ReceiverProcess() as application, DaemonProcess(tmp_path / "postrider.toml"):
        listener = Listening(
            cli, "--subscribe", "deal.*", "--workspace", "ws_1", "--forward-to", application.url("/hooks")
        )
        assert re.search(r"Listening on http://127\.0\.0\.1:\d+/ as ep_[0-9a-f]{16},", listener.said)
        cli("emit", "deal.updated", "--data", '{"id":"dl_1"}', "--workspace", "ws_1")
        received = listener.line()
        assert (received["signature"], received["status"], received["forwarded"]) == ("ok", 200, True)
        (handed,) = application.requests(1)
        assert json.loads(handed["body"]) == received["body"]
        headers = {name.lower(): value for name, value in handed["headers"].items()}
        assert headers["webhook-id"] == received["id"]
        application.set_mode("500")
        cli("emit", "deal.updated", "--data", "{}", "--workspace", "ws_1")
        assert listener.line()["status"] == 500
        assert_settled(database_dsn, ("succeeded", "failed"))
        assert cli.json("delivery", "list", "--status", "failed")[0]["http_status"] == 500
        assert query(database_dsn, LIVING)[0][0] == 1
        assert listener.end(signal.SIGHUP) == 0
    assert query(database_dsn, LIVING)[0][0] == 0


def test_what_a_killed_listener_left_is_deleted_by_the_next_one(cli: Cli, database_dsn: str) -> None:
    first, second = Listening(cli, "--subscribe", "*"), Listening(cli, "--subscribe", "*")
    killed = re.search(r"ep_[0-9a-f]{16}", first.said)
    assert killed
    first.end(signal.SIGKILL)
    assert query(database_dsn, LIVING)[0][0] == 2
    third = Listening(cli, "--subscribe", "*")
    assert f"deleted {killed[0]}, which a killed listener left" in third.said
    assert query(database_dsn, LIVING)[0][0] == 2
    for each in (second, third):
        assert each.end(signal.SIGTERM) == 0
    assert query(database_dsn, LIVING)[0][0] == 0


def test_it_says_what_the_daemon_needs_to_reach_this_machine(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(write_config(tmp_path, database_dsn, network={"allow": []}))
    said = cli("listen", "--port", "0", "--subscribe", "*", exit_code=2)
    assert 'network.allow = ["127.0.0.0/8"]' in said
    assert "network.https_only = false" in said
    assert query(database_dsn, LIVING)[0][0] == 0


def test_an_application_that_is_not_there_is_told(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        listener = Listening(cli, "--forward-to", f"http://127.0.0.1:{taken.getsockname()[1]}/")
        port = re.search(r":(\d+)/", listener.said)
        assert port
        posting = Thread(target=post, args=(int(port[1]),))
        posting.start()
        received = listener.line()
        posting.join()
    assert (received["status"], received["forwarded"]) == (502, False)
    assert "not forwarded: " in received["reason"]
    listener.end(signal.SIGTERM)


def post(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        while connection.recv(4096):
            pass


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--forward-to", "localhost:3000"), "is not a URL"),
        (("--forward-to", "http://localhost:3000", "--status", "500"), "contradict each other"),
        (("--subscribe", "deals*"), "is not an event pattern"),
        (("--subscribe", "*", "--workspace", ""), "a workspace has 1 to 256 characters"),
    ],
)
def test_options_that_make_no_sense_are_refused(cli: Cli, options: tuple[str, ...], said: str) -> None:
    assert said in cli("listen", "--port", "0", *options, exit_code=2)
