"""Receivers that verify as the CRMs describe it, and the Standard Webhooks libraries, accept what is sent."""

import hmac
import json
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from svix.webhooks import Webhook as SvixWebhook
from svix.webhooks import WebhookVerificationError as SvixVerificationError

from tests.dialects.rendering import DIALECTS, event, request
from tests.support.node import Express, Lines

WHSEC = "whsec_" + b64encode(bytes(range(32))).decode()
DATA = {
    "id": "con_1",
    "first_name": "Zoë",
    "value": 1.0,
    "2": "two",
    "1": "one",
    "big": 2**60,
    "note": "a/b \u2028",
}


def workestra_accepts(secret: str, headers: dict[str, str], body: bytes) -> bool:
    """The whole header is the digest, and the key is the secret's text: what its document's code compares."""
    digest = hmac.new(secret.encode(), body, "sha256").hexdigest()
    return hmac.compare_digest(digest, headers["X-Workestra-Signature"])


def test_a_workestra_receiver_in_python_accepts_and_refuses() -> None:
    secret = "a secret of some length"
    headers, body = request(DIALECTS["workestra"], event("contact.created", DATA), secret)
    assert workestra_accepts(secret, headers, body)
    assert not workestra_accepts(secret, headers, body.replace(b"Zo", b"Jo"))
    assert not workestra_accepts("another secret", headers, body)


def test_the_key_of_a_generated_secret_is_its_text_for_workestra() -> None:
    headers, body = request(DIALECTS["workestra"], event("contact.created", DATA), WHSEC)
    assert headers["X-Workestra-Signature"] == hmac.new(WHSEC.encode(), body, "sha256").hexdigest()


@pytest.fixture(scope="module")
def stover(node_programs: Path) -> Iterator[Express]:
    with Express(node_programs, node_programs / "stover.js", WEBHOOK_SECRET=WHSEC) as express:
        yield express


@pytest.fixture(scope="module")
def workestra(node_programs: Path) -> Iterator[Express]:
    with Express(node_programs, node_programs / "workestra.js") as express:
        yield express


NASTY = [
    json.dumps(DATA),
    '{"a":1.0,"b":1e21,"c":-0,"d":0.000001,"e":1e-7,"f":12345678901234567890,"g":1E400}',
    '{"10":1,"9":2,"x":3,"01":4,"__proto__":{"y":1},"x":5}',
    '{"s":"\\u00e9\\/\\ud83d\\ude00\\ud800\\u0000\\u007f"}',
    ' { "spaced" : [ 1 , 2 ] } ',
    "{}",
]


@pytest.mark.parametrize("data", NASTY)
def test_a_stover_receiver_in_express_accepts_and_refuses(stover: Express, data: str) -> None:
    headers, body = request(DIALECTS["stover"], event("contact.created", data), WHSEC)
    assert stover.post("/stover", headers, body) == 200
    changed = body.replace(b'"contact.created"', b'"contact.deleted"')
    assert stover.post("/stover", headers, changed) == 401
    other, _ = request(DIALECTS["stover"], event("contact.created", data), "another secret")
    assert stover.post("/stover", other, body) == 401


def test_a_workestra_receiver_in_express_understands_the_events(workestra: Express) -> None:
    for event_type in ("contact.created", "deal.won"):
        headers, body = request(DIALECTS["workestra"], event(event_type, {"id": event_type}), "secret")
        assert workestra.post("/workestra", headers, body) == 200
    assert workestra.handled() == [[each, {"id": each}] for each in ("contact.created", "deal.won")]


@pytest.mark.parametrize("crm", sorted(DIALECTS))
def test_standard_webhooks_libraries_of_pypi(crm: str) -> None:
    headers, body = request(DIALECTS[crm], event("deal.updated", DATA), WHSEC)
    assert Webhook(WHSEC).verify(body, headers) == json.loads(body)
    SvixWebhook(WHSEC).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(WHSEC).verify(body + b" ", headers)
    with pytest.raises(SvixVerificationError):
        SvixWebhook(WHSEC).verify(body + b" ", headers)


@pytest.mark.parametrize("library", ["standardwebhooks", "svix"])
@pytest.mark.parametrize("crm", sorted(DIALECTS))
def test_standard_webhooks_libraries_of_npm(verifier: Lines, crm: str, library: str) -> None:
    headers, body = request(DIALECTS[crm], event("deal.updated", DATA), WHSEC)

    def verdict(sent: bytes) -> Any:
        question = {
            "library": library,
            "secret": WHSEC,
            "headers": {name.lower(): value for name, value in headers.items()},
            "body": b64encode(sent).decode(),
        }
        return json.loads(verifier.ask(json.dumps(question)))

    assert verdict(body) == {"ok": True}
    assert verdict(body + b" ")["ok"] is False


def test_heffls_headers_are_as_known() -> None:
    headers, _ = request(DIALECTS["heffl"], event("lead.created", DATA), WHSEC)
    assert headers["user-agent"] == "Heffl-Webhooks/1.0"
    assert headers["webhook-id"].startswith("msg_")
    assert headers["webhook-signature"].startswith("v1,")
    assert headers["webhook-timestamp"].isdecimal()
