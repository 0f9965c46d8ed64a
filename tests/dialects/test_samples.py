"""Every sample payload of the five documents comes out of its dialect, and every event type is known."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from postrider.domain.dialects import render
from tests.dialects.documents import event_types, payloads, text
from tests.dialects.rendering import DIALECTS, EVENT_ID, event


def moment(written: str) -> datetime:
    return datetime.fromisoformat(written.replace("Z", "+00:00"))


def same(body: bytes, expected: dict[str, Any]) -> None:
    """Equal values in equal order."""
    assert json.dumps(json.loads(body)) == json.dumps(expected)


def test_the_documents_have_the_samples_that_we_look_for() -> None:
    assert {crm: len(payloads(crm)) for crm in DIALECTS if crm != "standard"} == {
        "nodestash": 1,
        "heffl": 7,
        "workestra": 2,
        "stover": 1,
        "nutshell": 1,
    }


def test_nodestash() -> None:
    (sample,) = payloads("nodestash")
    body = render(
        DIALECTS["nodestash"],
        event(
            sample["type"],
            sample["data"]["attributes"],
            previous_attributes=sample["previous_attributes"],
            object_type=sample["data"]["type"],
            object_id=sample["data"]["id"],
            workspace_id=sample["workspace_id"],
            occurred_at=moment(sample["created_at"]),
        ),
    )
    same(body, {**sample, "id": f"evt_{EVENT_ID.hex}"})


def test_nodestash_takes_the_object_id_from_the_data_where_the_event_has_none() -> None:
    body = json.loads(render(DIALECTS["nodestash"], event("deal.created", '{"id":"dl_1","title":"Acme"}')))
    assert body["data"] == {"id": "dl_1", "type": "deal", "attributes": {"title": "Acme"}}
    assert "previous_attributes" not in body


@pytest.mark.parametrize("sample", payloads("heffl"), ids=lambda sample: sample["event"])
def test_heffl(sample: dict[str, Any]) -> None:
    body = render(
        DIALECTS["heffl"],
        event(sample["event"], sample["payload"], occurred_at=moment(sample["timestamp"])),
    )
    same(body, sample)


def test_workestra() -> None:
    _, sample = payloads("workestra")
    body = render(
        DIALECTS["workestra"],
        event(
            sample["type"],
            sample["data"],
            workspace_id=sample["workspace_id"],
            occurred_at=moment(sample["created_at"]),
        ),
    )
    same(body, {**sample, "id": f"evt_{EVENT_ID.hex}"})


def test_workestra_handshake() -> None:
    sample, _ = payloads("workestra")
    body = render(
        DIALECTS["workestra"],
        event(sample["type"], "{}", test=True, occurred_at=moment(sample["created_at"])),
    )
    same(body, {**sample, "id": f"evt_test_{EVENT_ID.hex}"})


def test_stover() -> None:
    (sample,) = payloads("stover")
    body = render(
        DIALECTS["stover"],
        event(sample["type"], sample["data"], occurred_at=moment(sample["created_at"])),
    )
    same(body, {**sample, "id": f"evt_{EVENT_ID.hex}"})


def test_nutshell() -> None:
    (sample,) = payloads("nutshell")
    (lead,) = sample["payloads"]
    body = render(
        DIALECTS["nutshell"],
        event(
            "lead.created",
            lead,
            object_type="lead",
            object_id=lead["id"],
            actor=sample["actors"][0],
            related={"owners": sample["owners"]},
            occurred_at=datetime.fromtimestamp(sample["events"][0]["createdTime"], UTC),
        ),
    )
    sample["events"][0]["id"] = f"{EVENT_ID.int}-events"
    # The document's event links to another payload than it carries: see the dialect's notes.
    sample["events"][0]["links"]["payloads"] = [lead["id"]]
    same(body, sample)


def test_nutshell_tells_each_change_of_an_update() -> None:
    body = render(
        DIALECTS["nutshell"],
        event(
            "lead.updated",
            {"id": "643-leads", "type": "leads", "name": "B", "confidence": 50},
            previous_attributes={"name": "A", "gone": None},
        ),
    )
    (told,) = json.loads(body)["events"]
    assert told["action"] == "update"
    assert told["changes"] == [
        {"attribute": "name", "oldValue": "A", "newValue": "B"},
        {"attribute": "gone", "oldValue": None, "newValue": None},
    ]
    assert json.loads(body)["actors"] == json.loads(body)["owners"] == []


@pytest.mark.parametrize("crm", ["nodestash", "heffl", "workestra", "stover"])
def test_the_catalogue_is_the_documents(crm: str) -> None:
    listed = event_types(crm)
    assert len(listed) == {"nodestash": 12, "heffl": 26, "workestra": 27, "stover": 14}[crm]
    catalogue = DIALECTS[crm].catalogue
    assert list(catalogue.types) == listed
    document = " ".join(text(crm).split())
    for event_type in listed:
        known = catalogue.types[event_type]
        assert known.description in document
        assert known.group
        assert render(DIALECTS[crm], event(event_type, catalogue.sample(event_type).data))


def test_planned_types_are_marked() -> None:
    def planned(crm: str) -> set[str]:
        types = DIALECTS[crm].catalogue.types.values()
        return {each.type for each in types if each.status == "planned"}

    assert planned("heffl") == {"contact.created", "contact.updated", "contact.deleted"}
    assert planned("nodestash") == set(event_types("nodestash"))
    assert not planned("workestra") | planned("stover")
