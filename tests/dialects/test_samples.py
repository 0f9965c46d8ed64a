"""Payloads in each CRM's form come out of its dialect, and every event type is known."""

import json
from typing import Any

import pytest

from postrider.domain.dialects import render
from tests.dialects.facts import FACTS, form
from tests.dialects.rendering import DIALECTS, again, event


def test_every_dialect_of_a_crm_has_facts_to_be_held_to() -> None:
    assert set(FACTS) == set(DIALECTS) - {"standard"}
    assert {crm: len(facts.samples) for crm, facts in FACTS.items()} == {
        "nodestash": 1,
        "heffl": 7,
        "workestra": 2,
        "stover": 1,
        "nutshell": 1,
    }


@pytest.mark.parametrize(
    ("crm", "sample"), [(crm, sample) for crm, facts in FACTS.items() for sample in facts.samples]
)
def test_a_payload_comes_out_of_the_dialect(crm: str, sample: dict[str, Any]) -> None:
    """Equal values in equal order."""
    assert json.dumps(again(crm, sample)) == json.dumps(sample)


def test_nodestash_takes_the_object_id_from_the_data_where_the_event_has_none() -> None:
    body = json.loads(render(DIALECTS["nodestash"], event("deal.created", '{"id":"dl_1","title":"Acme"}')))
    assert body["data"] == {"id": "dl_1", "type": "deal", "attributes": {"title": "Acme"}}
    assert "previous_attributes" not in body


def test_nutshell_tells_each_change_of_an_update() -> None:
    body = render(
        DIALECTS["nutshell"],
        event(
            "lead.updated",
            {"id": "207-leads", "type": "leads", "name": "B", "confidence": 50},
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
def test_the_catalogue_has_every_event_type(crm: str) -> None:
    catalogue = DIALECTS[crm].catalogue
    assert tuple(catalogue.types) == FACTS[crm].types
    for known in catalogue.types.values():
        assert known.description
        assert known.group
        assert render(DIALECTS[crm], event(known.type, catalogue.sample(known.type).data))


ADDED = {
    ("heffl", "contact"): ["stage", "stageId"],
    ("nodestash", "deal"): ["company_id"],
    ("stover", "contact"): ["company_id"],
}
"""What stands after the documented members, so that its change is told."""


@pytest.mark.parametrize("crm", FACTS)
def test_the_catalogues_samples_have_the_form_of_the_payloads(crm: str) -> None:
    member, event_type = {
        "heffl": ("payload", "event"),
        "nutshell": ("payloads", None),
    }.get(crm, ("data", "type"))
    for sample in FACTS[crm].samples:
        if member not in sample:
            continue  # the handshake
        type_ = sample[event_type] if event_type else "lead.created"
        told = DIALECTS[crm].catalogue.sample(type_)
        data = json.loads(told.data)
        shown = sample[member]
        if crm == "nodestash":
            shown = shown["attributes"]
            assert told.previous_attributes is not None
            assert form(json.loads(told.previous_attributes)) == form(sample["previous_attributes"])
        if crm == "nutshell":
            (shown,) = shown
            assert told.actor is not None
            assert form([json.loads(told.actor)]) == form(sample["actors"])
        assert form(data)[: len(shown)] == form(shown)
        assert list(data)[len(shown) :] == ADDED.get((crm, type_.partition(".")[0]), [])


def test_planned_types_are_marked() -> None:
    for crm, facts in FACTS.items():
        types = DIALECTS[crm].catalogue.types.values()
        assert {each.type for each in types if each.status == "planned"} == facts.planned
