"""What each CRM sends, as facts: its event types, its schedule, and payloads in its form.

They lie in `data/`, one file for each CRM, with values of our own. `test_documents` compares them with the
documents of the dialects, where these lie beside the checkout.
"""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_DATA = Path(__file__).parent / "data"
_PATTERNS = (
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z"), lambda found: re.sub(r"\d", "0", found[0])),
    (re.compile(r"([a-z]+_)\w+"), lambda found: found[1]),  # ld_1041
    (re.compile(r"\d+(-[a-z]+)"), lambda found: found[1]),  # 207-leads
    (re.compile(r"([A-Z]+-)\d+"), lambda found: found[1]),  # INV-0085
    (re.compile(r"[a-z]+(\.[a-zA-Z_]+)+"), lambda found: found[0]),  # lead.created
)


@dataclass(frozen=True)
class Facts:
    types: tuple[str, ...]
    """In the document's order."""
    planned: frozenset[str]
    """Those that the CRM only announces."""
    retry_delays: tuple[int, ...]
    """Seconds before each attempt; empty where the document says nothing."""
    samples: tuple[dict[str, Any], ...]
    """Whole payloads, in the document's order."""


def _read(path: Path) -> Facts:
    written = tomllib.loads(path.read_text())
    return Facts(
        types=tuple(written["types"]),
        planned=frozenset(written.get("planned", ())),
        retry_delays=tuple(written.get("retry_delays", ())),
        samples=tuple(json.loads(sample) for sample in written["samples"]),
    )


FACTS: Mapping[str, Facts] = {path.stem: _read(path) for path in sorted(_DATA.glob("*.toml"))}


def form(value: Any) -> Any:
    """What a receiver relies on: names in their order, kinds of values, and how ids and times are written."""
    match value:
        case dict():
            return [(name, form(each)) for name, each in value.items()]
        case list():
            forms = [form(each) for each in value]
            return [each for number, each in enumerate(forms) if each not in forms[:number]]
        case str():
            return next(
                (made(found) for pattern, made in _PATTERNS if (found := pattern.fullmatch(value))), ""
            )
        case bool() | None:
            return type(value).__name__
    return "number"
