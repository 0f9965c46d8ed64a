"""Dialects at the command line: handshakes, test events, catalogues, and a dialect of one's own."""

import hashlib
import hmac
import json
import subprocess
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import Cli
from tests.support.daemon_process import DaemonProcess, assert_settled, query, write_config
from tests.support.receiver_process import ReceiverProcess


def config_of(directory: Path, dsn: str, dialect: str = "standard") -> Path:
    return write_config(directory, dsn, retry={"schedule": ["0s"]}, dialect={"default": dialect})


def add(cli: Cli, url: str, events: str, *more: str) -> dict[str, Any]:
    added: dict[str, Any] = cli.json("endpoint", "add", "--url", url, "--events", events, *more)
    return added


@pytest.fixture
def workestra(database_dsn: str, tmp_path: Path) -> Cli:
    cli = Cli(config_of(tmp_path, database_dsn, dialect="workestra"))
    cli("migrate")
    return cli


def test_a_workestra_endpoint_becomes_active_by_its_handshake(
    workestra: Cli, database_dsn: str, tmp_path: Path
) -> None:
    with ReceiverProcess(mode="500") as receiver, DaemonProcess(tmp_path / "postrider.toml"):
        said = workestra("endpoint", "add", "--url", receiver.url("/a"), "--events", "contact.*", exit_code=1)
        assert said.startswith("added ep_")
        (listed,) = workestra.json("endpoint", "list")
        assert listed["state"] == "unverified"
        workestra("emit", "contact.created", "--data", "{}")
        assert_settled(database_dsn, ("succeeded", "failed"))
        workestra("endpoint", "resume", listed["id"], exit_code=1)
        workestra("endpoint", "pause", listed["id"], exit_code=1)
        assert "HTTP 500, not 200" in workestra("endpoint", "verify", listed["id"], exit_code=1)
        receiver.set_mode("ok")
        assert "is verified" in workestra("endpoint", "verify", listed["id"])
        workestra("emit", "contact.created", "--data", '{"id":"con_1"}')
        receiver.wait_for(2)
        assert_settled(database_dsn, ("succeeded", "failed"))
        first, *_, last = receiver.requests(10)
        sent = json.loads(first["body"])
        assert list(sent) == ["type", "id", "created_at"]
        assert sent["type"] == "endpoint.verify"
        assert sent["id"].startswith("evt_test_")
        secret = workestra.json("endpoint", "show", listed["id"], "--secret")["secret"]
        for request in (first, last):
            signature = hmac.new(secret.encode(), request["body"].encode(), hashlib.sha256).hexdigest()
            assert {name.lower(): value for name, value in request["headers"].items()}[
                "x-workestra-signature"
            ] == signature
        # The event of before the handshake went nowhere.
        assert json.loads(last["body"])["data"] == {"id": "con_1"}
        assert len(receiver.requests(10)) == 4
        receiver.set_mode("204")
        ep = listed["id"]
        workestra("endpoint", "update", ep, "--url", receiver.url("/b"), exit_code=1)
        shown = workestra.json("endpoint", "show", ep)
        assert (shown["state"], shown["url"]) == ("active", receiver.url("/a"))


def test_a_test_event_is_the_catalogues_sample_and_is_recorded(workestra: Cli, database_dsn: str) -> None:
    with ReceiverProcess() as receiver:
        ep = add(workestra, receiver.url("/a"), "deal.*")["id"]
        tried = workestra.json("endpoint", "test", ep, "--type", "deal.won")
        assert (tried["state"], tried["status"], tried["event_type"]) == ("succeeded", 200, "deal.won")
        assert workestra.json("endpoint", "test", ep)["event_type"] == "deal.created"
        bodies = [json.loads(request["body"]) for request in receiver.requests(10)][1:]
        assert bodies[0]["type"] == "deal.won"
        assert bodies[0]["id"].startswith("evt_test_")
        assert bodies[0]["data"]["status"] == "won"
        assert workestra.json("delivery", "show", tried["delivery"])["state"] == "succeeded"
        assert query(database_dsn, "SELECT count(*) FROM postrider.pending")[0][0] == 0
        receiver.set_mode("410")
        assert "HTTP 410" in workestra("endpoint", "test", ep, "--type", "deal.lost", exit_code=1)
        assert workestra.json("endpoint", "show", ep)["state"] == "active"
        said = workestra("endpoint", "test", ep, "--type", "deal.one", exit_code=2)
        assert "Did you mean deal.won?" in said


def test_a_test_event_is_refused_where_no_event_could_be_like_it_and_marked_where_it_is_sent(
    database_dsn: str, tmp_path: Path
) -> None:
    cli = Cli(config_of(tmp_path, database_dsn))
    with ReceiverProcess() as receiver:
        ep = add(cli, receiver.url("/a"), "*")["id"]
        for wrong in ("deal updated", "deal.*", "", "a" * 129):
            assert "is not valid" in cli("endpoint", "test", ep, "--type", wrong, exit_code=2)
        for wrong in ("[1]", '"x"', "{"):
            assert "JSON" in cli("endpoint", "test", ep, "--data", wrong, exit_code=2)
        assert query(database_dsn, "SELECT count(*) FROM postrider.outbox")[0][0] == 0
        tried = cli.json("endpoint", "test", ep, "--type", "deal.updated", "--data", '{"id":"dl_1"}')
        (sent,) = receiver.requests(1)
        assert {name.lower(): value for name, value in sent["headers"].items()}["postrider-test"] == "true"
    assert tried["test"] is True
    assert "deal.updated (test)" in cli("event", "list")
    assert "deal.updated (test)" in cli("delivery", "list")
    assert cli.json("delivery", "list")[0]["test"] is True


def test_unknown_types_are_refused_where_the_catalogue_is_closed(workestra: Cli, database_dsn: str) -> None:
    said = workestra(
        "endpoint",
        "add",
        "--url",
        "https://x.example/",
        "--events",
        "contact.*,deal.stageChanged",
        exit_code=2,
    )
    assert "no event type matches 'deal.stageChanged'" in said
    assert "Did you mean deal.stage_changed?" in said
    said = workestra("endpoint", "add", "--url", "https://x.example/", "--events", "deals.*", exit_code=2)
    assert "Did you mean deal.*?" in said
    said = workestra("emit", "contact.create", "--data", "{}", exit_code=2)
    assert "the catalogue of workestra has no event type 'contact.create'" in said
    assert "Did you mean contact.created?" in said
    assert query(database_dsn, "SELECT count(*) FROM postrider.outbox")[0][0] == 0
    workestra("emit", "contact.created", "--data", "{}")
    listed = query(
        database_dsn, "SELECT count(*) AS n, bool_and(example IS NOT NULL) AS e FROM postrider.event_type"
    )
    assert (listed[0]["n"], listed[0]["e"]) == (27, True)


def test_the_catalogue_of_an_open_dialect_refuses_nothing(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(config_of(tmp_path, database_dsn))
    cli("migrate")
    cli("emit", "whatever.happened", "--data", "{}")


def test_one_crm_serves_two_formats(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(config_of(tmp_path, database_dsn, dialect="heffl"))
    cli("migrate")
    with ReceiverProcess() as receiver, DaemonProcess(tmp_path / "postrider.toml"):
        add(cli, receiver.url("/old"), "lead.*")
        add(cli, receiver.url("/new"), "lead.*", "--dialect", "standard")
        cli("emit", "lead.created", "--data", '{"id":"ld_1"}')
        receiver.wait_for(2)
        bodies = {request["path"]: json.loads(request["body"]) for request in receiver.requests(10)}
    assert (bodies["/old"]["event"], bodies["/old"]["payload"]) == ("lead.created", {"id": "ld_1"})
    assert (bodies["/new"]["type"], bodies["/new"]["data"]) == ("lead.created", {"id": "ld_1"})


ACME = """
name = "acme"
description = "Acme CRM, of nowhere"
event_id = "acme-{hex}"
standard_webhooks = false
user_agent = "Acme/2"
retry_delays = [0, 0.2]
retry_jitter = 0
disable_when_exhausted = true
closed_catalogue = true

[headers]
X-Acme-Event = "{type}"
X-Acme-Time = "{timestamp}"

[[signatures]]
header = "X-Acme-Signature"
value = "t={base64}"
signs = "{timestamp}:{id}:{body}"
hash = "sha512"

[body.meta]
id = "$id"
at = "$occurred_at.unix"
kind = { "$value" = "$type.action", map = { created = "NEW" } }
price = "$$5"
nested = [1, "$object_id", { who = { "$value" = "$actor.name", else = "nobody" } }]
[body.record]
"$value" = "$data"
without = ["internal"]

[handshake]
type = "acme.hello"
status = 201
body = { hello = "$id" }

[objects.parcel]
data = '{"weight": 1.50}'
[[events]]
type = "parcel.created"
description = "A parcel was packed"
"""


def test_a_sixth_dialect_needs_a_file_and_no_code(database_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "dialects").mkdir()
    (tmp_path / "dialects" / "acme.toml").write_text(ACME)
    config = write_config(
        tmp_path, database_dsn, dialect={"default": "acme", "paths": [str(tmp_path / "dialects")]}
    )
    cli = Cli(config)
    cli("migrate")
    assert "acme" in cli("dialect", "list")
    assert cli.json("dialect", "sample", "acme", "parcel.created")["record"] == {"weight": 1.5}
    with ReceiverProcess(mode="201") as receiver, DaemonProcess(config) as daemon:
        added = add(cli, receiver.url("/a"), "parcel.*")
        assert added["state"] == "active"
        emitted = ["emit", "parcel.created", "--data", '{"weight": 1.50, "internal": {"x": 1}}']
        event_id = cli(*emitted, "--object-id", "p1").strip().replace("evt_", "acme-")
        receiver.wait_for(2, key="received")
        request = receiver.requests(10)[-1]
        headers = {name.lower(): value for name, value in request["headers"].items()}
        body = json.loads(request["body"])
        assert '"weight":1.50' in request["body"]
        assert body["record"] == {"weight": 1.5}
        assert body["meta"].pop("at") > 1_700_000_000
        assert body["meta"] == {
            "id": event_id, "kind": "NEW", "price": "$5", "nested": [1, "p1", {"who": "nobody"}],
        }  # fmt: skip
        assert (headers["x-acme-event"], headers["user-agent"]) == ("parcel.created", "Acme/2")
        assert "webhook-id" not in headers
        signed = f"{headers['x-acme-time']}:{event_id}:{request['body']}".encode()
        digest = hmac.new(added["secret"].encode(), signed, hashlib.sha512).digest()
        assert headers["x-acme-signature"] == "t=" + b64encode(digest).decode()
        receiver.set_mode("500")
        cli(*emitted)
        assert daemon.wait_for_log("delivery.failed")["attempt"] == 2
        daemon.wait_for_log("endpoint.disabled")


def test_events_are_listed_page_by_page(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(config_of(tmp_path, database_dsn))
    ids = [cli("emit", "contact.updated", "--data", f'{{"n":{n}}}').strip() for n in range(5)]
    cli("emit", "deal.updated", "--data", "{}")
    for sort, expected in (("-updated_at", ids[::-1]), ("created_at", ids)):
        seen: list[str] = []
        page = ["event", "list", "--type", "contact.*", "--sort", sort, "--limit", "2"]
        events = cli.json(*page)
        while events:
            seen += [event["id"] for event in events]
            events = cli.json(*page, "--cursor", events[-1]["cursor"])
        assert seen == expected
    cursor = cli.json("event", "list", "--limit", "1")[0]["cursor"]
    assert "Keep --sort" in cli("event", "list", "--sort", "created_at", "--cursor", cursor, exit_code=2)
    assert "is not a cursor" in cli("event", "list", "--cursor", "evt_1", exit_code=2)


def test_capture_from_plan_to_check(database_dsn: str, tmp_path: Path) -> None:
    config = config_of(tmp_path, database_dsn, dialect="stover")
    cli = Cli(config)
    cli("migrate")
    query(database_dsn, "CREATE TABLE people (id bigint PRIMARY KEY, first_name text)")
    section = '\n[[capture]]\ntable = "people"\nobject_type = "contact"\ncolumns = ["id", "first_name"]\n'
    with config.open("a") as file:
        file.write(section)
    assert cli("capture", "plan").startswith("+ create contact on public.people: contact.created")
    assert "is not applied" in cli("check", exit_code=0)
    cli("capture", "apply")
    assert cli("capture", "plan").startswith("= keep")
    query(database_dsn, "INSERT INTO people VALUES (1, 'Jane')")
    assert cli.json("event", "list")[0]["data"] == {"id": 1, "first_name": "Jane"}
    query(database_dsn, "ALTER TABLE people RENAME first_name TO given_name")
    assert "has no column first_name" in cli("check", exit_code=1)
    assert "did you mean" not in cli("capture", "rejected")
    query(database_dsn, "INSERT INTO people VALUES (2, 'John')")
    (rejected,) = cli.json("capture", "rejected")
    assert (rejected["capture"], rejected["object_id"]) == ("contact", "2")
    assert "- drop   contact" in cli("capture", "drop", "contact")
    config.write_text(config.read_text().replace('"contact"', '"person"'))
    said = cli("capture", "plan", exit_code=2)
    assert "there is no event type 'person.created' in the catalogue of stover" in said


HANDSHAKE = {"type": "endpoint.verify", "id": "evt_test_0195a9b28e40700080000123456789ab"}


def test_a_handshake_is_recorded_and_shown_as_a_test_is(workestra: Cli) -> None:
    with ReceiverProcess(mode="204") as receiver:
        workestra("endpoint", "add", "--url", receiver.url("/a"), "--events", "deal.*", exit_code=1)
        (listed,) = workestra.json("endpoint", "list")
        (failed,) = workestra.json("delivery", "list", "--endpoint", listed["id"])
        assert (failed["event_type"], failed["state"]) == ("endpoint.verify", "failed")
        assert failed["reason"] == "it answered HTTP 204, not 200"
        receiver.set_mode("ok")
        workestra("endpoint", "verify", listed["id"])
        newest, _ = workestra.json("delivery", "list", "--endpoint", listed["id"])
        assert (newest["state"], newest["attempts"]) == ("succeeded", 1)
        sent = json.loads(receiver.requests(10)[-1]["body"])
        shown = workestra.json("event", "show", sent["id"])
        assert (shown["id"], shown["type"], shown["test"]) == (newest["event"], "endpoint.verify", True)
        tried = workestra.json("endpoint", "test", listed["id"], "--type", "endpoint.verify")
        assert tried["state"] == "succeeded"
        assert list(json.loads(receiver.requests(10)[-1]["body"])) == ["type", "id", "created_at"]


def test_a_handshake_is_shown_as_a_sample(workestra: Cli) -> None:
    assert workestra.json("dialect", "sample", "workestra", "endpoint.verify") == {
        **HANDSHAKE,
        "created_at": "2026-03-15T10:30:00Z",
    }
    assert "X-Workestra-Signature: " in workestra("dialect", "sample", "workestra", "endpoint.verify")


@pytest.mark.parametrize("crm", ["heffl", "workestra", "nutshell"])
def test_every_id_on_the_wire_leads_to_its_event(database_dsn: str, tmp_path: Path, crm: str) -> None:
    cli = Cli(config_of(tmp_path, database_dsn, dialect=crm))
    cli("migrate")
    with ReceiverProcess() as receiver, DaemonProcess(tmp_path / "postrider.toml"):
        ep = add(cli, receiver.url("/a"), "*")["id"]
        cli("emit", "contact.created", "--data", "{}")
        receiver.wait_for(2 if crm == "workestra" else 1)
        cli.json("endpoint", "test", ep, "--type", "contact.created")
        assert_settled(database_dsn)
        for request in receiver.requests(10):
            headers = {name.lower(): value for name, value in request["headers"].items()}
            body = json.loads(request["body"])
            written = {headers["webhook-id"], body.get("id")} | {
                each["id"] for each in body.get("events", ()) if isinstance(each, dict)
            }
            for wire_id in written - {None}:
                shown = cli.json("event", "show", wire_id)
                assert shown["type"] in {"contact.created", "endpoint.verify"}
    (delivered,) = cli.json("delivery", "list", "--event", wire_id)
    assert delivered["event"] == shown["id"]


def test_planned_types_are_subscribed_to_with_a_word(database_dsn: str, tmp_path: Path) -> None:
    cli = Cli(config_of(tmp_path, database_dsn, dialect="heffl"))
    cli("migrate")
    with ReceiverProcess() as receiver, DaemonProcess(tmp_path / "postrider.toml"):
        done = subprocess.run(
            cli.command("endpoint", "add", "--url", receiver.url("/a"), "--events", "contact.*,lead.created"),
            capture_output=True,
            text=True,
            check=True,
        )
        assert (
            "planned by heffl, and delivered once they are emitted: "
            "contact.created, contact.updated, contact.deleted\n" in done.stderr
        )
        assert "Postrider's default of HTTPS" in done.stderr
        cli("emit", "contact.created", "--data", '{"id":"ct_1"}')
        receiver.wait_for(1)
        (endpoint,) = cli.json("endpoint", "list")
        done = subprocess.run(
            cli.command("endpoint", "update", endpoint["id"], "--exclude", "contact.*"),
            capture_output=True,
            text=True,
            check=True,
        )
        assert "planned" not in done.stderr
