"""A Stover receiver verifies JSON.stringify(req.body): what is sent survives that, whatever the data."""

import json
from base64 import b64decode, b64encode
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from postrider.domain.dialects import render
from postrider.domain.javascript import stringify
from tests.dialects.rendering import DIALECTS, event
from tests.support.node import Lines

numbers = st.one_of(
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.from_regex(r"-?(0|[1-9][0-9]{0,25})(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,3})?", fullmatch=True).filter(
        str.isascii
    ),
)
texts = st.text(st.characters(exclude_categories=()), max_size=20)
keys = st.one_of(
    texts,
    st.integers(0, 2**33).map(str),
    st.sampled_from(["", "0", "-1", "01", "1.5", "__proto__", "4294967294", "4294967295", "toString"]),
)


@st.composite
def json_texts(draw: st.DrawFn) -> str:
    """JSON text as no serialiser would write it: repeated keys, any numbers, needless escapes and spaces."""
    space = st.sampled_from(["", "", " ", "\n\t"])

    def write(depth: int) -> str:
        kind = draw(st.integers(0, 6 if depth < 4 else 4))
        if kind <= 1:
            return draw(numbers)
        if kind <= 3:
            return json.dumps(draw(texts), ensure_ascii=draw(st.booleans()) or True)
        if kind == 4:
            return draw(
                st.sampled_from(["true", "false", "null", '"\\/"', '"\\u00E9"', '"é\x7f\u2028"', "-0"])
            )
        if kind == 5:
            items = [write(depth + 1) for _ in range(draw(st.integers(0, 4)))]
            return "[" + ",".join(items) + draw(space) + "]"
        members = [f"{json.dumps(draw(keys))}:{write(depth + 1)}" for _ in range(draw(st.integers(0, 5)))]
        return "{" + draw(space) + ",".join(members) + "}"

    return write(0)


def through_node(roundtrip: Lines, text: bytes) -> bytes:
    return b64decode(roundtrip.ask(b64encode(text).decode()))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=json_texts())
@example(
    text='{"b":1.0,"10":1,"2":2,"x":-0.0,"y":1e400,"z":0.00001,"w":1e-7,"v":1e21,"u":123456789012345680000}'
)
@example(text='{"a":1,"b":2,"a":3,"__proto__":{"c":[]},"":""}')
@example(text='"\\ud800 \\udc00\\ud83d\\ude00"')
@example(text="[5e-324,1.7976931348623157e308,-1.5e-10,0.1,100,1e5,123.456,12345678901234567890]")
def test_stringify_is_javascripts(roundtrip: Lines, text: str) -> None:
    assert stringify(text) == through_node(roundtrip, text.encode())


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=json_texts())
def test_a_stover_body_survives_parse_and_stringify(roundtrip: Lines, data: str) -> None:
    body = render(DIALECTS["stover"], event("contact.created", '{"value":' + data + "}"))
    assert through_node(roundtrip, body) == body


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    # Text that UTF-8 has no bytes for can't be in the database either.
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize("crm", sorted(DIALECTS))
@settings(deadline=None, max_examples=60)
@given(
    data=st.dictionaries(st.text(), json_values, max_size=5),
    previous=st.none() | st.dictionaries(st.text(), json_values, max_size=3),
    ascii_only=st.booleans(),
)
def test_a_receiver_parses_what_the_crm_emitted(
    crm: str, data: dict[str, Any], previous: dict[str, Any] | None, ascii_only: bool
) -> None:
    sent = event(
        "deal.updated",
        json.dumps(data, ensure_ascii=ascii_only),
        previous_attributes=None if previous is None else json.dumps(previous, ensure_ascii=ascii_only),
        object_id="dl_1",
    )
    # JavaScript has one kind of number: what is written for it compares as such.
    as_float = float if crm == "stover" else int
    received = json.loads(render(DIALECTS[crm], sent), parse_int=as_float)
    if crm == "stover":
        data = json.loads(json.dumps(data), parse_int=float)
    if crm == "nodestash":
        data.pop("id", None)
        assert received["data"]["attributes"] == data
    elif crm == "nutshell":
        assert received["payloads"] == [data]
        assert {each["attribute"]: each["oldValue"] for each in received["events"][0]["changes"]} == (
            previous or {}
        )
    else:
        assert received["payload" if crm == "heffl" else "data"] == data
    if crm in ("standard", "nodestash"):
        assert received.get("previous_attributes") == previous
