"""The CRMs' own documents, and what stands in them: sample payloads, event types and verification code."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCUMENTS = Path(__file__).parent / "documents"
_TYPE = re.compile(r"[a-z]+(?:\.[a-zA-Z_]+)+")


def text(crm: str) -> str:
    return (DOCUMENTS / f"{crm}.txt").read_text()


def payloads(crm: str) -> list[dict[str, Any]]:
    """Every sample payload, in the document's order; a mail address that the page hides stays as it shows."""
    return list(_payloads(text(crm)))


def _payloads(document: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    at = 0
    while (start := document.find("{\n", at)) >= 0:
        try:
            value, at = decoder.raw_decode(document, start)
        except json.JSONDecodeError:
            at = start + 1
            continue
        if isinstance(value, dict):
            yield value


def event_types(crm: str) -> list[str]:
    """The event types that the document lists, one a line before its description."""
    document = text(crm)
    if crm == "heffl":  # headings, and once more in a table
        lines = [line.strip() for line in document.splitlines()]
        return list(dict.fromkeys(line for line in lines if _TYPE.fullmatch(line)))
    if crm == "stover":  # EVENTDESCRIPTION run together: type, then a capital letter
        found = re.findall(r"^([a-z]+\.[a-z_]+)(?=[A-Z])", document, re.MULTILINE)
    else:
        found = re.findall(r"^([a-z]+\.[a-z_]+) \|", document, re.MULTILINE)
    return list(dict.fromkeys(found))


def between(document: str, first: str, last: str) -> str:
    """From `first` to the next `last`, both included: the page runs some of its lines together."""
    start = document.index(first)
    return document[start : document.index(last, start) + len(last)]
