"""The documents' own verification code, and the Standard Webhooks libraries, accept what is sent.

The code is taken from the documents' text and run by the language that it is written in.
"""

import hmac
import json
import os
import subprocess
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError
from svix.webhooks import Webhook as SvixWebhook
from svix.webhooks import WebhookVerificationError as SvixVerificationError

from tests.dialects.conftest import NODE, Lines
from tests.dialects.documents import between, text
from tests.dialects.rendering import DIALECTS, event, request

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


def workestra_accepts(headers: dict[str, str], body: bytes) -> bool:
    """Run the document's Python; its branches hold comments only, so each gets a statement that tells."""
    code = between(text("workestra"), "import hmac", "# Invalid, reject")
    code = code.replace("# Valid webhook", "    accepted = True").replace(
        "# Invalid, reject", "    accepted = False"
    )
    scope: dict[str, Any] = {"request": SimpleNamespace(body=body, headers=headers)}
    exec(compile(code, "workestra.txt", "exec"), scope)
    return bool(scope["accepted"])


def test_workestras_python_accepts_and_refuses() -> None:
    headers, body = request(DIALECTS["workestra"], event("contact.created", DATA), "your_webhook_secret")
    assert workestra_accepts(headers, body)
    assert not workestra_accepts(headers, body.replace(b"Zo", b"Jo"))
    other, _ = request(DIALECTS["workestra"], event("contact.created", DATA), "another_secret")
    assert not workestra_accepts(other, body)


def test_the_key_of_a_generated_secret_is_its_text_for_workestra() -> None:
    headers, body = request(DIALECTS["workestra"], event("contact.created", DATA), WHSEC)
    assert headers["X-Workestra-Signature"] == hmac.new(WHSEC.encode(), body, "sha256").hexdigest()


class Express:
    """A document's Express handler, listening on loopback."""

    def __init__(self, programs: Path, code: str, **environ: str) -> None:
        source = programs / f"handler_{abs(hash(code))}.js"
        source.write_text(code)
        self.process = subprocess.Popen(
            [NODE, programs / "receiver.js", source],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environ},
        )
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"

    def post(self, path: str, headers: dict[str, str], body: bytes) -> int:
        sent = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(sent, timeout=10) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def handled(self) -> Any:
        with urllib.request.urlopen(self.url + "/handled", timeout=10) as response:
            return json.load(response)

    def close(self) -> None:
        self.process.terminate()
        self.process.communicate(timeout=10)


@pytest.fixture(scope="module")
def stover(node_programs: Path) -> Iterator[Express]:
    code = between(text("stover"), "const crypto", "Retry Policy").removesuffix("Retry Policy")
    express = Express(node_programs, code, WEBHOOK_SECRET=WHSEC)
    yield express
    express.close()


@pytest.fixture(scope="module")
def workestra(node_programs: Path) -> Iterator[Express]:
    code = between(text("workestra"), "app.post('/webhooks/workestra'", "\n});")
    express = Express(node_programs, code)
    yield express
    express.close()


NASTY = [
    json.dumps(DATA),
    '{"a":1.0,"b":1e21,"c":-0,"d":0.000001,"e":1e-7,"f":12345678901234567890,"g":1E400}',
    '{"10":1,"9":2,"x":3,"01":4,"__proto__":{"y":1},"x":5}',
    '{"s":"\\u00e9\\/\\ud83d\\ude00\\ud800\\u0000\\u007f"}',
    ' { "spaced" : [ 1 , 2 ] } ',
    "{}",
]


@pytest.mark.parametrize("data", NASTY)
def test_stovers_express_handler_accepts_and_refuses(stover: Express, data: str) -> None:
    headers, body = request(DIALECTS["stover"], event("contact.created", data), WHSEC)
    assert stover.post("/webhook", headers, body) == 200
    changed = body.replace(b'"contact.created"', b'"contact.deleted"')
    assert stover.post("/webhook", headers, changed) == 401
    other, _ = request(DIALECTS["stover"], event("contact.created", data), "another secret")
    assert stover.post("/webhook", other, body) == 401


def test_workestras_express_handler_understands_the_events(workestra: Express) -> None:
    for event_type in ("contact.created", "deal.won"):
        headers, body = request(DIALECTS["workestra"], event(event_type, {"id": event_type}), "secret")
        assert workestra.post("/webhooks/workestra", headers, body) == 200
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
