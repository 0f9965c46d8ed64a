"""postrider delivery list, show and retry: found by what a support person knows, on any terminal."""

import asyncio
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import termios
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from postrider.domain.audit import EVERYWHERE
from postrider.domain.lists import DeliveryFilter
from postrider.domain.model import (
    DeliveryKey,
    DeliveryState,
    delivery_public_id,
    endpoint_public_id,
    event_public_id,
    first_event_id,
)
from postrider.store.database import Database
from postrider.store.delivery_search import search
from tests.support.cli import Cli
from tests.support.daemon_process import DaemonProcess, add_endpoint, assert_settled, query, write_config
from tests.support.receiver_process import ReceiverProcess

REASON = "timeout: no response within 15 s, and more that a person has to read"


class Story:
    """Deliveries to three endpoints of two workspaces, an hour apart; every third one failed."""

    def __init__(self, dsn: str, directory: Path) -> None:
        self.dsn = dsn
        self.cli = Cli(write_config(directory, dsn))
        self.endpoints = [
            add_endpoint(dsn, "https://hooks.example.com/a?token=hunter2", workspace_id="ws_1"),
            add_endpoint(dsn, "https://user:hunter2@b.example:8443/", workspace_id="ws_1"),
            add_endpoint(dsn, "https://c.example/", workspace_id="ws_2"),
        ]
        self.now = datetime.now(UTC)
        self.keys: list[DeliveryKey] = []
        for number in range(12):
            self.add(number)

    def add(self, number: int) -> None:
        at = self.now - timedelta(hours=number)
        event_id = first_event_id(at)
        endpoint_id = self.endpoints[number % 3]
        workspace = ("ws_1", "ws_1", "ws_2")[number % 3]
        state = ("failed", "succeeded", "retrying", "cancelled")[number % 4]
        query(
            self.dsn,
            "INSERT INTO postrider.outbox (id, workspace_id, type, data) VALUES ($1, $2, $3, '{}')",
            event_id, workspace, ("deal.updated", "contact.created")[number % 2],
        )  # fmt: skip
        query(
            self.dsn,
            """INSERT INTO postrider.delivery (event_id, endpoint_id, workspace_id, state, attempts, due,
                                               reason, status, started_at, duration_ms, updated_at)
               VALUES ($1, $2, $3, $4, 2, $5, $6, $7, $8, 1, $9)""",
            event_id, endpoint_id, workspace, state, at if state == "retrying" else None,
            None if state == "succeeded" else REASON, 204 if state == "succeeded" else None,
            at if state == "succeeded" else None, at,
        )  # fmt: skip
        if state != "succeeded":
            for attempt, status in ((1, 429), (2, 503 if number < 6 else 404)):
                query(
                    self.dsn,
                    """INSERT INTO postrider.attempt (event_id, endpoint_id, workspace_id, number, started_at,
                                                      duration_ms, status)
                       VALUES ($1, $2, $3, $4, $5, 1, $6)""",
                    event_id, endpoint_id, workspace, attempt, at, status,
                )  # fmt: skip
        self.keys.append((event_id, endpoint_id))

    def listed(self, *options: str) -> list[int]:
        """The numbers of the deliveries that a list shows."""
        ids = [delivery_public_id(*key) for key in self.keys]
        return [ids.index(row["id"]) for row in self.cli.json("delivery", "list", *options)]


@pytest.fixture
def story(database_dsn: str, tmp_path: Path) -> Story:
    return Story(database_dsn, tmp_path)


def test_deliveries_are_found_by_each_filter(story: Story) -> None:
    first = endpoint_public_id(story.endpoints[0])
    until = (story.now - timedelta(hours=2)).isoformat()
    for options, numbers in {
        (): list(range(12)),
        ("--workspace", "ws_2"): [2, 5, 8, 11],
        ("--workspace", "ws_2", "--status", "failed"): [8],
        ("--endpoint", first): [0, 3, 6, 9],
        ("--endpoint", first, "--status", "retrying"): [6],
        ("--endpoint", first, "--workspace", "ws_2"): [],
        ("--since", "150m"): [0, 1, 2],
        ("--since", "270m", "--until", until): [3, 4],
        ("--workspace", "ws_1", "--since", "270m", "--until", until): [3, 4],
        ("--type", "deal.*", "--limit", "3"): [0, 2, 4],
        ("--type", "contact.created", "--workspace", "ws_1"): [1, 3, 7, 9],
        ("--http-status", "503"): [0, 2, 3, 4],
        ("--http-status", "4xx"): [6, 7, 8, 10, 11],
        ("--http-status", "2xx", "--status", "succeeded", "--workspace", "ws_1"): [1, 9],
        ("--before", delivery_public_id(*story.keys[9])): [10, 11],
        ("--workspace", "ws_1", "--before", delivery_public_id(*story.keys[6])): [7, 9, 10],
    }.items():
        assert story.listed(*options) == numbers, options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--since", "yesterday"), "is not a time"),
        (("--http-status", "9xx"), "is not an HTTP status"),
        (("--http-status", "5x"), "is not an HTTP status"),
        (("--type", "deals*"), "is not an event pattern"),
        (("--since", "1h", "--until", "2h"), "--since is not before --until"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(cli: Cli, options: tuple[str, ...], said: str) -> None:
    assert said in cli("delivery", "list", *options, exit_code=2)


@pytest.fixture
def cli(database_dsn: str, tmp_path: Path) -> Cli:
    return Cli(write_config(tmp_path, database_dsn))


def on_a_terminal(cli: Cli, columns: int, *arguments: str) -> str:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    environ = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    process = subprocess.Popen(
        cli.command(*arguments), stdout=theirs, stdin=theirs, stderr=subprocess.DEVNULL,
        env=environ | {"TERM": "xterm", "NO_COLOR": "1"},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 65536):
            shown += part
    except OSError:
        pass  # so a terminal ends
    os.close(ours)
    assert process.wait(30) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())


@pytest.mark.parametrize("columns", [60, 80, 240])
def test_every_fact_survives_a_narrow_terminal(story: Story, columns: int) -> None:
    shown = on_a_terminal(story.cli, columns, "delivery", "list", "--limit", "2")
    assert max(map(len, shown.splitlines())) <= columns
    failed, endpoint = story.keys[0]
    when = story.now.astimezone().isoformat(" ", "seconds")
    for fact in (
        delivery_public_id(failed, endpoint), endpoint_public_id(endpoint), "hooks.example.com", "ws_1",
        "b.example:8443", "deal.updated", "failed", "contact.created", "succeeded", when,
    ):  # fmt: skip
        assert fact in shown, shown
    assert REASON.replace(" ", "") in re.sub(r"\s", "", shown)
    assert "hunter2" not in shown


def test_a_list_that_ends_early_says_where_and_goes_on(story: Story) -> None:
    async def run() -> None:
        database = Database(story.dsn, pool_size=1, keyed=False)
        await database.open()
        try:
            for chosen, expected in (
                (DeliveryFilter(http_status=range(404, 405)), [6, 7, 8, 10, 11]),
                (DeliveryFilter(workspace_id="ws_1", http_status=range(404, 405)), [6, 7, 10]),
                (DeliveryFilter(state=DeliveryState.FAILED, workspace_id="ws_2"), [8]),
                (DeliveryFilter(state=DeliveryState.FAILED), [0, 4, 8]),
                (DeliveryFilter(state=DeliveryState.CANCELLED, workspace_id="ws_1"), [3, 7]),
                (DeliveryFilter(state=DeliveryState.CANCELLED, endpoint_id=story.endpoints[0]), [3]),
                # More than may be looked at are in that state: time leads to them.
                (DeliveryFilter(state=DeliveryState.RETRYING), [2, 6, 10]),
                (DeliveryFilter(state=DeliveryState.RETRYING, workspace_id="ws_1"), [6, 10]),
                (DeliveryFilter(state=DeliveryState.RETRYING, endpoint_id=story.endpoints[1]), [10]),
            ):
                for newest_first in (True, False):
                    seen: list[int] = []
                    after: DeliveryKey | None = None
                    for _ in range(20):
                        async with database.transaction() as connection:
                            found = await search(
                                connection,
                                EVERYWHERE,
                                chosen,
                                after=after,
                                newest_first=newest_first,
                                limit=3,
                                look_at_most=2,
                            )
                        seen += [story.keys.index((row.event_id, row.endpoint_id)) for row in found.rows]
                        if found.looked_to is None:
                            break
                        after = found.looked_to
                    assert seen == (expected if newest_first else expected[::-1])
        finally:
            await database.close()

    asyncio.run(run())


def test_deliveries_of_all_endpoints_are_sent_again_in_a_window_of_time(story: Story) -> None:
    window = ("--status", "failed", "--since", "530m", "--until", "30m")
    assert "needs a confirmation" in story.cli("delivery", "retry", *window, exit_code=2)
    done = story.cli.json("delivery", "retry", *window, "--yes")
    assert done["queued"] == [delivery_public_id(*story.keys[number]) for number in (8, 4)]
    rows = query(story.dsn, "SELECT event_id FROM postrider.delivery WHERE state = 'waiting' ORDER BY 1 DESC")
    assert [row["event_id"] for row in rows] == [story.keys[4][0], story.keys[8][0]]
    assert "0 queued" in story.cli("delivery", "retry", *window, "--yes")
    again = ("--status", "cancelled", "--since", "1d", "--http-status", "404", "--workspace", "ws_1")
    assert "1 queued" in story.cli("delivery", "retry", *again, "--yes")
    for wrong in (("--status", "failed"), ("--since", "1h"), ("--since", "1h", "--status", "waiting")):
        story.cli("delivery", "retry", *wrong, exit_code=2)


def lowered(request: dict[str, Any]) -> dict[str, str]:
    return {name.lower(): value for name, value in request["headers"].items()}


@pytest.mark.parametrize("dialect", ["standard", "stover"])
def test_a_request_is_shown_as_it_was_sent(database_dsn: str, tmp_path: Path, dialect: str) -> None:
    config = write_config(tmp_path, database_dsn, retry={"schedule": ["0s"]}, dialect={"default": dialect})
    cli = Cli(config)
    with ReceiverProcess(mode="500") as receiver, DaemonProcess(config):
        url = receiver.url("/a?b=c")
        ep = cli.json("endpoint", "add", "--url", url, "--events", "*", "--header", "X-Api-Key: hunter2")[
            "id"
        ]
        cli("emit", "deal.updated", "--data", '{ "b":1.50,"a":"é" }')
        receiver.wait_for(1, "received")
        assert_settled(database_dsn, ("failed", "retrying"))
        (sent,) = receiver.requests(1)
    (row,) = cli.json("delivery", "list")
    assert (row["http_status"], row["host"]) == (500, url.split("/")[2])
    text = cli("delivery", "show", row["id"])
    request = cli.json("delivery", "show", row["id"])["request"]
    assert (request["url"], request["body"]) == (url, sent["body"])
    received = lowered(sent)
    assert {name.lower() for name in request["headers"]} == set(received)
    withheld = {name.lower() for name, value in request["headers"].items() if value is None}
    assert "x-api-key" in withheld
    assert withheld >= {name for name in received if "signature" in name}
    for name, value in request["headers"].items():
        if "timestamp" in name:
            assert abs(int(value) - int(received[name])) <= 2
        elif value is not None:
            assert value == received[name.lower()], name
    assert "hunter2" not in text + json.dumps(request)
    assert sent["body"] in text
    assert "X-Api-Key: (withheld)" in text
    assert "was changed" not in text
    cli("endpoint", "update", ep, "--description", "new")
    assert "was changed after the last attempt" in cli("delivery", "show", row["id"])
    cli("endpoint", "delete", ep, "--yes")
    assert "is deleted" in cli("delivery", "show", row["id"])


def test_a_test_is_not_sent_again(story: Story) -> None:
    failed = delivery_public_id(*story.keys[0])
    query(story.dsn, "UPDATE postrider.outbox SET test = true WHERE id = $1", story.keys[0][0])
    said = story.cli.fails("delivery", "retry", failed)
    assert "it is a test; for another one: postrider endpoint test ep_" in said
    window = ("--status", "failed", "--since", "5h")
    assert "sending 1 delivery again" in story.cli("delivery", "retry", *window, exit_code=2)
    done = story.cli.json("delivery", "retry", *window, "--yes")
    assert done == {"queued": [delivery_public_id(*story.keys[4])], "refused": {}, "left_out": 0}
    assert story.listed("--status", "failed") == [0, 8]
    endpoint = endpoint_public_id(story.endpoints[0])
    event = event_public_id(story.keys[0][0])
    assert "is a test" in story.cli("event", "resend", event, "--endpoint", endpoint, exit_code=2)
    assert "deal.updated (test)" in story.cli("event", "show", event)
