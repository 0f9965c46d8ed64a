"""The facts, and the dialects, against the documents of the dialects; skipped where these aren't to be had.

The documents' own payloads come out of the dialects, and their own code accepts what is sent. And the other
way round: no sentence of theirs stands in the project.
"""

import re
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.dialects import documents
from tests.dialects.facts import FACTS, form
from tests.dialects.rendering import DIALECTS, again, event, request
from tests.support.node import Express

DOCUMENTS = documents.read_documents()
pytestmark = pytest.mark.skipif(
    not DOCUMENTS,
    reason=f"no documents of the dialects in {documents.DIRECTORY}; POSTRIDER_SEEDS names another place",
)
CATALOGUED = ["nodestash", "heffl", "workestra", "stover"]
WHSEC = "whsec_" + b64encode(bytes(range(32))).decode()


def test_each_dialect_of_a_crm_has_its_document() -> None:
    assert set(DOCUMENTS) == set(FACTS)


def test_the_payloads_have_the_documents_form() -> None:
    for crm, facts in FACTS.items():
        theirs = documents.payloads(DOCUMENTS[crm])
        if crm == "stover":  # which leaves the id of the record open
            assert theirs[0]["data"]["id"] == "..."
            theirs[0]["data"]["id"] = facts.samples[0]["data"]["id"]
        assert form(list(facts.samples)) == form(theirs), crm
    assert FACTS["nutshell"].samples[0]["links"] == documents.payloads(DOCUMENTS["nutshell"])[0]["links"]


def test_the_documents_own_payloads_come_out_of_the_dialects() -> None:
    for crm, document in DOCUMENTS.items():
        for sample in documents.payloads(document):
            if crm == "nutshell":
                # The document's event links to another payload than it carries: see the dialect's notes.
                sample["events"][0]["links"]["payloads"] = [sample["payloads"][0]["id"]]
            assert str(again(crm, sample)) == str(sample)


@pytest.mark.parametrize("crm", CATALOGUED)
def test_types_and_groups_are_the_documents(crm: str) -> None:
    facts = FACTS[crm]
    described = documents.described_types(crm, DOCUMENTS[crm])
    assert tuple(described) == facts.types
    if crm != "nodestash":  # whose document has no groups
        catalogue = DIALECTS[crm].catalogue.types
        assert {name: known.group for name, known in catalogue.items()} == documents.groups(
            crm, DOCUMENTS[crm]
        )


def test_planned_types_are_the_documents() -> None:
    (named,) = re.findall(r"\(([\w., ]+)\) are planned", DOCUMENTS["heffl"])
    assert FACTS["heffl"].planned == set(named.split(", "))
    assert "Planned Events" in DOCUMENTS["nodestash"]
    assert FACTS["nodestash"].planned == set(FACTS["nodestash"].types)


def test_schedules_are_the_documents() -> None:
    for crm, document in DOCUMENTS.items():
        assert list(FACTS[crm].retry_delays) == documents.retry_delays(document), crm
        assert DIALECTS[crm].retry_delays == (FACTS[crm].retry_delays or DIALECTS["standard"].retry_delays)


def test_headers_are_the_documents() -> None:
    for crm, document in DOCUMENTS.items():
        named = set(re.findall(r"\bX-[\w-]+-Signature\b", document))
        assert {each.header for each in DIALECTS[crm].signatures} == named, crm


def test_habits_are_the_documents() -> None:
    workestra = DOCUMENTS["workestra"]
    networks = [str(each) for each in DIALECTS["workestra"].sending_addresses]
    assert networks == re.findall(r"\d+\.\d+\.\d+\.\d+/\d+", workestra)
    handshake = DIALECTS["workestra"].handshake
    assert handshake is not None
    assert f"respond with {handshake.status} OK" in workestra
    assert DIALECTS["workestra"].https_only == ("must use HTTPS" in workestra)
    assert DIALECTS["workestra"].disable_when_exhausted == ("webhook disabled" in workestra)
    assert f"within {DIALECTS['stover'].timeout:.0f} seconds" in DOCUMENTS["stover"]


def test_workestras_own_python_accepts_and_refuses() -> None:
    """Its branches hold comments only, so each gets a statement that tells."""
    verdicts = iter(["    accepted = True", "    accepted = False"])
    code = documents.between(DOCUMENTS["workestra"], "import hmac", "HTTPS Only")
    code = re.sub(r"^#.*$", lambda _: next(verdicts), code, flags=re.MULTILINE)
    (secret,) = re.findall(r"b'(\w+)'", code)

    def accepts(headers: dict[str, str], body: bytes) -> bool:
        scope: dict[str, Any] = {"request": SimpleNamespace(body=body, headers=headers)}
        exec(compile(code, "workestra", "exec"), scope)
        return bool(scope["accepted"])

    headers, body = request(DIALECTS["workestra"], event("contact.created", {"id": "con_1"}), secret)
    assert accepts(headers, body)
    assert not accepts(headers, body.replace(b"con_1", b"con_2"))
    other, _ = request(DIALECTS["workestra"], event("contact.created", {"id": "con_1"}), "another secret")
    assert not accepts(other, body)


@pytest.fixture
def handler(node_programs: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Express]:
    """An app around the code of the document that the test asks for."""
    crm: str = request.param
    if crm == "stover":
        code = documents.between(DOCUMENTS[crm], "const crypto", "Retry Policy")
    else:
        code = documents.between(DOCUMENTS[crm], "app.post('", "Testing Webhooks")
        for event_type, function in re.findall(r"case '([\w.]+)':\s*(\w+)\(", code):
            code = f"const {function} = (data) => handled.push(['{event_type}', data]);\n{code}"
    source = tmp_path / "handler.js"
    source.write_text(code)
    with Express(node_programs, source, WEBHOOK_SECRET=WHSEC) as express:
        yield express


def path_of(crm: str) -> str:
    """Where the document's handler listens."""
    (path,) = re.findall(r"app\.post\('([\w/]+)'", DOCUMENTS[crm])
    return str(path)


@pytest.mark.parametrize("handler", ["stover"], indirect=True)
def test_stovers_own_express_handler_accepts_and_refuses(handler: Express) -> None:
    headers, body = request(DIALECTS["stover"], event("contact.created", '{"v":1.0,"2":1e21}'), WHSEC)
    assert handler.post(path_of("stover"), headers, body) == 200
    assert handler.post(path_of("stover"), headers, body.replace(b"created", b"deleted")) == 401


@pytest.mark.parametrize("handler", ["workestra"], indirect=True)
def test_workestras_own_express_handler_understands_the_events(handler: Express) -> None:
    for event_type in ("contact.created", "deal.won"):
        headers, body = request(DIALECTS["workestra"], event(event_type, {"id": event_type}), "secret")
        assert handler.post(path_of("workestra"), headers, body) == 200
    assert handler.handled() == [[each, {"id": each}] for each in ("contact.created", "deal.won")]


@pytest.mark.parametrize("crm", CATALOGUED)
def test_no_description_of_the_catalogue_is_the_documents(crm: str) -> None:
    theirs = {description.lower() for description in documents.described_types(crm, DOCUMENTS[crm]).values()}
    ours = {known.description.lower() for known in DIALECTS[crm].catalogue.types.values()}
    assert not theirs & ours


RUN = 5
"""Words that follow each other in both texts: fewer are chance."""
NO_SENTENCE = re.compile(r"\b[a-z]+(?:\.[a-zA-Z_]+)+|https?://\S+|X-[\w-]+")
"""Event types, addresses and headers are facts."""


def runs(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z']+", NO_SENTENCE.sub(" 0 ", text).lower().replace("_", " "))
    return set(zip(*(words[number:] for number in range(RUN)), strict=False))


def test_no_sentence_of_a_document_stands_in_the_project() -> None:
    theirs: dict[tuple[str, ...], str] = {}
    for document in DOCUMENTS.values():
        said = [text for payload in documents.payloads(document) for text in documents.strings(payload)]
        for line in [*documents.prose(document).splitlines(), *said]:
            theirs.update(dict.fromkeys(runs(line), line))
    kept = [
        f"{path.relative_to(documents.ROOT)}: {' '.join(run)!r} of {theirs[run]!r}"
        for path in sorted(project_texts())
        for run in runs(path.read_text()) & theirs.keys()
    ]
    assert not kept, "\n".join(kept)


def project_texts() -> Iterator[Path]:
    for path in documents.ROOT.iterdir():
        if path.is_file() and path.suffix in {".md", ".toml"}:
            yield path
        elif path.name in {"config", "daemon", "sql", "systemd", "tests"}:
            endings = {
                ".py",
                ".toml",
                ".sql",
                ".md",
                ".js",
                ".mjs",
                ".json",
                ".html",
                ".css",
                ".service",
                ".txt",
            }
            yield from (each for each in path.rglob("*") if each.suffix in endings and each.is_file())
