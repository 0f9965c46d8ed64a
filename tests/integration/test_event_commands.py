"""postrider event list and tail: found by object and time, and followed with their data."""

import json
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from select import select

import pytest

from postrider.domain.model import first_event_id
from tests.support.cli import Cli
from tests.support.daemon_process import emit, query, wait_until, write_config


@pytest.fixture
def cli(database_dsn: str, tmp_path: Path) -> Cli:
    return Cli(write_config(tmp_path, database_dsn))


def test_events_of_an_object_are_found_since_a_time(cli: Cli, database_dsn: str) -> None:
    now = datetime.now(UTC)
    for hours in range(6):
        query(
            database_dsn,
            "INSERT INTO postrider.outbox (id, type, object_id, data) VALUES ($1, 'deal.updated', $2, '{}')",
            first_event_id(now - timedelta(hours=hours)), f"dl_{hours % 2}",
        )  # fmt: skip
    of_object = cli.json("event", "list", "--object-id", "dl_1")
    assert [row["object_id"] for row in of_object] == ["dl_1"] * 3
    assert len(cli.json("event", "list", "--object-id", "dl_1", "--since", "210m")) == 2
    assert len(cli.json("event", "list", "--since", (now - timedelta(minutes=90)).isoformat())) == 2
    assert cli.json("event", "list", "--object-id", "dl_1", "--type", "contact.*") == []
    (last,) = cli.json("event", "list", "--object-id", "dl_1", "--cursor", of_object[1]["cursor"])
    assert last["id"] == of_object[2]["id"]
    assert "is not a time" in cli("event", "list", "--since", "soon", exit_code=2)
    assert len(cli.json("event", "list", "--since", "1969-07-20")) == 6


def test_a_list_that_looked_at_all_it_may_says_where_it_ended(cli: Cli, database_dsn: str) -> None:
    query(
        database_dsn,
        """INSERT INTO postrider.outbox (type, object_id, data)
           SELECT 'deal.updated', CASE n WHEN 1 THEN 'dl_1' ELSE 'dl_2' END, '{}'
           FROM generate_series(1, 100100) AS n""",
    )

    def listed(*options: str) -> "subprocess.CompletedProcess[str]":
        command = cli.command("event", "list", "--object-id", "dl_1", "--json", *options)
        return subprocess.run(command, capture_output=True, text=True, check=True)

    first = listed()
    assert json.loads(first.stdout) == []
    assert "looked at 100,000 events, to " in first.stderr
    going_on = listed(*first.stderr.split("go on: ")[1].split())
    assert len(json.loads(going_on.stdout)) == 1
    assert going_on.stderr == ""


def test_tail_prints_what_an_event_says(cli: Cli, database_dsn: str) -> None:
    with subprocess.Popen(cli.command("event", "tail", "--data"), stdout=subprocess.PIPE, text=True) as tail:
        lines = tail.stdout
        assert lines is not None
        ids: list[str] = []

        def printed() -> bool:
            # It prints what comes after it has started.
            ids.extend(emit(database_dsn))
            return bool(select([lines], [], [], 0.5)[0])

        wait_until(printed, "a line of tail")
        time, event_id, what, object_id = lines.readline().split()
        assert datetime.strptime(time, "%H:%M:%S.%f%z").tzinfo is not None
        assert (event_id in ids, what, object_id) == (True, "deal.updated", "-")
        assert "".join(lines.readline() for _ in range(3)).startswith('    data: {\n      "n": 1\n    }')
        tail.send_signal(signal.SIGTERM)
