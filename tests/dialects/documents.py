"""The documents of the dialects, where they lie beside the checkout, and what can be read from them.

They are other people's texts, so the project has none of them: `facts` has what they say.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DIRECTORY = Path(os.environ.get("POSTRIDER_SEEDS") or ROOT.parent / "shared" / "seeds")
_MARKS = {
    "nodestash": "nodestash.io",
    "heffl": "form.response.created",
    "workestra": "Workestra",
    "stover": "Stover",
    "nutshell": "Nutshell",
}
"""What stands in the document of one CRM alone; their files are named otherwise."""
_TYPE = r"[a-z]+(?:\.[a-z]+)*\.[a-z]+(?:[A-Z_][a-z]+)*"
_SECONDS = {"second": 1, "minute": 60, "hour": 3600}


def read_documents() -> Mapping[str, str]:
    """The text by CRM; nothing where the documents don't lie there."""
    texts = [path.read_text() for path in sorted(DIRECTORY.glob("*.txt"))]
    return {crm: text for crm, mark in _MARKS.items() for text in texts if mark in text}


def payloads(document: str) -> list[dict[str, Any]]:
    """Every sample payload, in order; a mail address that the page hides stays as it shows."""
    return [payload for _, _, payload in _json_blocks(document)]


def strings(value: Any) -> Iterator[str]:
    """Every text in a payload."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from strings(each)


def prose(document: str) -> str:
    """The document without its payloads."""
    kept, at = [], 0
    for start, end, _ in _json_blocks(document):
        kept.append(document[at:start])
        at = end
    return "\n".join([*kept, document[at:]])


def _json_blocks(document: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    decoder = json.JSONDecoder()
    at = 0
    while (start := document.find("{\n", at)) >= 0:
        try:
            value, at = decoder.raw_decode(document, start)
        except json.JSONDecodeError:
            at = start + 1
            continue
        yield start, at, value


def described_types(crm: str, document: str) -> dict[str, str]:
    """The event types that the document lists, in order, with its description of each.

    The tables of two pages have lost their bars: `deal.wonA deal …`, and in one a category stands between.
    """
    if crm == "heffl":
        rows = re.findall(rf"^({_TYPE})(?:CRM|Sales)(.+)$", document, re.MULTILINE)
    elif crm == "stover":
        rows = re.findall(r"^([a-z]+\.[a-z_]+)([A-Z].+)$", document, re.MULTILINE)
    else:
        rows = re.findall(rf"^({_TYPE}) \| (.+) \|$", document, re.MULTILINE)
    return dict(rows)


def groups(crm: str, document: str) -> dict[str, str]:
    """The group of each event type: its category, or the heading above its table."""
    if crm == "heffl":
        return dict(re.findall(rf"^({_TYPE})(CRM|Sales)[A-Z]", document, re.MULTILINE))
    found: dict[str, str] = {}
    group = ""
    for line in document.splitlines():
        if heading := re.fullmatch(r"([A-Z]\w+(?: [A-Z]\w+)*) Events", line.strip()):
            group = heading[1]
        for event_type in described_types(crm, line):
            found[event_type] = group
    return found


def retry_delays(document: str) -> list[int]:
    """Seconds before each attempt, from the table of attempts and delays; empty where there is none."""
    rows = re.findall(
        r"^(?:\| )?([1-9])(?: \| )?(?:(Immediate)|(\d+) (second|minute|hour)s?)(?: \|)?$",
        document,
        re.MULTILINE,
    )
    assert [number for number, *_ in rows] == [str(number + 1) for number in range(len(rows))]
    return [0 if at_once else int(count) * _SECONDS[unit] for _, at_once, count, unit in rows]


def between(document: str, first: str, last: str) -> str:
    """From `first` to the next `last`, without the latter: the page runs some of its lines together."""
    start = document.index(first)
    return document[start : document.index(last, start)]
