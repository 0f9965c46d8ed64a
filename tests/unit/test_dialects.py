import json
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from standardwebhooks import Webhook

from postrider.domain.dialects import (
    Dialect,
    check_header,
    event_id,
    parse_dialect,
    parse_event_ids,
    render,
    request_headers,
)
from postrider.domain.envelope import PayloadError
from postrider.domain.errors import UsageError
from postrider.domain.model import MAX_DATA_BYTES, MAX_DATA_DEPTH, Event
from postrider.domain.policy import DEFAULT_DELAYS
from postrider.domain.signing import Secret
from postrider.edges.dialect_files import load_dialects

STANDARD_TOML = (Path(__file__).parents[2] / "config/dialects/standard.toml").read_text()
STANDARD = parse_dialect(STANDARD_TOML, "standard.toml")
SHIPPED = load_dialects(())
KEY = bytes(range(32))
EVENT = Event(
    id=UUID("01957b2c-8f00-7000-8000-000000000001"),
    workspace_id="ws_1",
    type="deal.updated",
    data='{"id":"dl_1"}',
    data_bytes=13,
    previous_attributes=None,
    object_type="deal",
    object_id="dl_1",
    actor=None,
    related=None,
    occurred_at=datetime(2022, 11, 3, 20, 26, 10, 344522, tzinfo=UTC),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def with_data(data: str) -> Event:
    return replace(EVENT, data=data, data_bytes=len(data.encode()))


def headers(
    event: Event, body: bytes, dialect: Dialect = STANDARD, extra: dict[str, str] | None = None
) -> dict[str, str]:
    return request_headers(
        dialect,
        event,
        [Secret(KEY, KEY)],
        timestamp=int(time.time()),
        body=body,
        user_agent="Postrider/1",
        extra=extra or {},
    )


def test_standard_body_is_type_timestamp_data() -> None:
    expected = b'{"type":"deal.updated","timestamp":"2022-11-03T20:26:10.344522Z","data":{"id":"dl_1"}}'
    assert render(STANDARD, EVENT) == expected


def test_previous_attributes_follow_data_where_the_event_has_them() -> None:
    body = render(STANDARD, replace(EVENT, previous_attributes='{"stage": "new"}'))
    assert body.endswith(b',"data":{"id":"dl_1"},"previous_attributes":{"stage": "new"}}')


def test_data_is_spliced_byte_for_byte() -> None:
    data = ' {"b" : 1.00, "a":\n"\\u00e9 é", "b":2e400, "big":123456789012345678901234567890} '
    assert f'"data":{data}}}'.encode() in render(STANDARD, with_data(data))


@pytest.mark.parametrize(
    ("occurred_at", "text"),
    [
        (datetime(2026, 3, 15, 10, 30, tzinfo=UTC), "2026-03-15T10:30:00.000000Z"),
        (datetime(2026, 3, 15, 10, 30, tzinfo=timezone(timedelta(hours=2))), "2026-03-15T08:30:00.000000Z"),
        (datetime(12, 1, 2, tzinfo=UTC), "0012-01-02T00:00:00.000000Z"),
    ],
)
def test_timestamp_is_utc_with_six_digits(occurred_at: datetime, text: str) -> None:
    assert json.loads(render(STANDARD, replace(EVENT, occurred_at=occurred_at)))["timestamp"] == text


@given(
    data=json_values, previous=st.none() | st.dictionaries(st.text(), json_values), ascii_only=st.booleans()
)
def test_receiver_verifies_and_parses_what_the_crm_wrote(data: Any, previous: Any, ascii_only: bool) -> None:
    event = replace(
        with_data(json.dumps(data, ensure_ascii=ascii_only)),
        previous_attributes=None if previous is None else json.dumps(previous, ensure_ascii=ascii_only),
    )
    body = render(STANDARD, event)
    assert render(STANDARD, event) == body
    received = Webhook(KEY).verify(body, headers(event, body))
    assert received["data"] == data
    assert received.get("previous_attributes") == previous
    assert list(received)[:3] == ["type", "timestamp", "data"]


def test_too_large_data_names_both_sizes() -> None:
    with pytest.raises(PayloadError) as caught:
        render(STANDARD, replace(EVENT, data=None, data_bytes=10 * MAX_DATA_BYTES))
    assert caught.value.message == "its JSON has 10,485,760 bytes; the limit is 1,048,576"


@pytest.mark.parametrize("pair", ["[]", "{}"])
def test_depth_is_limited_exactly(pair: str) -> None:
    def nested(depth: int) -> str:
        opening = '{"[":' if pair == "{}" else '["]{",'
        return opening * (depth - 1) + pair + pair[1] * (depth - 1)

    assert json.loads(render(STANDARD, with_data(nested(MAX_DATA_DEPTH))))["data"]
    with pytest.raises(PayloadError, match="data is nested 513 levels deep; the limit is 512"):
        render(STANDARD, with_data(nested(MAX_DATA_DEPTH + 1)))


def test_data_nested_10000_deep_is_refused() -> None:
    with pytest.raises(PayloadError, match="10,000 levels"):
        render(STANDARD, with_data("[" * 10_000 + "]" * 10_000))
    with pytest.raises(PayloadError, match="previous_attributes is nested"):
        render(STANDARD, replace(EVENT, previous_attributes="[" * 10_000 + "]" * 10_000))


@pytest.mark.parametrize(
    "data", [["[" * 5_000, '"{', '\\"[' * 1_000, "\\"], [[]] * 5_000, {"{": ["}"] * 5_000}]
)
def test_many_brackets_side_by_side_or_in_strings_are_fine(data: Any) -> None:
    assert json.loads(render(STANDARD, with_data(json.dumps(data))))["data"] == data


def test_text_that_is_not_unicode_is_a_payload_error() -> None:
    with pytest.raises(PayloadError, match="cannot be written as JSON"):
        render(STANDARD, replace(EVENT, data='"\udcff"'))


def test_headers_are_those_of_standard_webhooks() -> None:
    sent = headers(EVENT, b"{}")
    assert list(sent) == [
        "content-type",
        "user-agent",
        "webhook-id",
        "webhook-timestamp",
        "webhook-signature",
    ]
    assert sent["content-type"] == "application/json"
    assert sent["user-agent"] == "Postrider/1"
    assert sent["webhook-id"] == "evt_01957b2c8f0070008000000000000001"


def test_own_headers_are_added_but_replace_none() -> None:
    sent = headers(
        EVENT, b"{}", extra={"X-Api-Key": "k", "Webhook-ID": "evt_0", "Content-Type": "text/plain"}
    )
    assert sent["X-Api-Key"] == "k"
    assert sent["content-type"] == "application/json"
    assert len(sent) == 6


def test_dialect_may_bring_its_user_agent() -> None:
    dialect = parse_dialect('user_agent = "Acme-Webhooks/1.0"\n' + STANDARD_TOML, "acme.toml")
    assert headers(EVENT, b"{}", dialect)["user-agent"] == "Acme-Webhooks/1.0"


@pytest.mark.parametrize(
    ("name", "value"), [("X-Api-Key", "k=1; b"), ("authorization", "Bearer x"), ("Cookie", "")]
)
def test_harmless_header_is_accepted(name: str, value: str) -> None:
    check_header(name, value)


@pytest.mark.parametrize(
    "name", ["Content-Type", "user-agent", "HOST", "Webhook-Id", "webhook-anything", "Content-Length"]
)
def test_reserved_header_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="set by Postrider"):
        check_header(name, "x")


@pytest.mark.parametrize("name", ["", "X Key", "X:Key", "X-Key\n", "Schlüssel", "X\0"])
def test_invalid_header_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="not a header name"):
        check_header(name, "x")


@pytest.mark.parametrize(
    "value", ["secret\r\nX-Other: 1", "secret\n", "secret\r", "secret\0", "secret\x7f", "secretß"]
)
def test_invalid_header_value_is_refused_and_not_echoed(value: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_header("X-Key", value)
    assert "X-Key" in caught.value.message
    assert "secret" not in str(caught.value)


def test_standard_is_what_the_design_says() -> None:
    assert STANDARD.name == "standard"
    assert STANDARD.retry_delays == DEFAULT_DELAYS
    assert (STANDARD.user_agent, STANDARD.timeout) == (None, None)


def test_dialect_without_a_schedule_has_the_default_one() -> None:
    text = "\n".join(line for line in STANDARD_TOML.splitlines() if not line.startswith("retry_delays"))
    assert parse_dialect(text, "acme.toml").retry_delays == DEFAULT_DELAYS


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('name = "standard"', "name = 1", "acme.toml: name: Expected `str`, got `int`"),
        ('name = "standard"', 'name = "Not a name"', "acme.toml: name: "),
        ('name = "standard"', "", "acme.toml: Object missing required field `name`"),
        ("retry_delays", "retry_delay", "unknown field `retry_delay`"),
        ("[0, 5,", '[0, "5s",', "acme.toml: retry_delays[1]: Expected `float`, got `str`"),
        ("[0, 5,", "[0, -5,", "acme.toml: retry_delays[1]: "),
        ("[0, 5,", "[0, nan,", "acme.toml: retry_delays[1]: "),
        ("[0, 5,", "[0, inf,", "acme.toml: retry_delays[1]: "),
        ("[0, 5,", "[true, 5,", "acme.toml: retry_delays[0]: "),
        ('"$data"', '"$payload"', "acme.toml: body.data: there is no value '$payload'; known are $id, "),
        ('"$data"', '{ "$value" = "$data", wihtout = [] }', "body.data: unknown key 'wihtout'"),
        ('"$data"', '{ "$value" = "$type", without = ["id"] }', "body.data.without: takes a list of names"),
        ('"$data"', '{ "$each" = "$data", item = 1 }', "acme.toml: body.data: should be"),
        ('"$data"', "2026-01-01", "acme.toml: body.data: a date has no place in JSON"),
        ("[body]", '[headers]\n"X A" = "1"\n[body]', "acme.toml: headers: Expected a header name"),
        ("[body]", '[headers]\nWebhook-Id = "1"\n[body]', "the header webhook-id is set more than once"),
        ("[body]", '[headers]\nHost = "1"\n[body]', "the header host is set more than once"),
        ("[body]", "[handshake]\nbody = {}\n[body]", "handshake: Object missing required field `type`"),
        ("[body]", '[[events]]\ntype = "a.b"\ndescription = ""\n[body]', "a.b has no sample"),
        ("[body]", '[objects.a]\ndata = "[]"\n[body]', "objects"),
        ("retry_delays", "retry_delay", "acme.toml: Object contains unknown field `retry_delay`"),
        ("[0, 5,", "[0, 0,", "acme.toml: retry_delays: only the first delay may be zero"),
        ('name = "standard"', 'name = "a"\nstandard_webhooks = false', "nothing signs the request"),
        ('name = "standard"', 'name = "a"\nsending_addresses = ["203.0.113.1/24"]', "has host bits set"),
        ('name = "standard"', 'name = "a"\nuser_agent = "a\\nb"', "acme.toml: user_agent: "),
        ('name = "standard"', 'name = "a"\ntimeout = 0', "acme.toml: timeout: "),
        ('name = "standard"', 'name = "a"\ntimeout = nan', "acme.toml: timeout: "),
        ('name = "standard"', "name = ", "acme.toml: Invalid value (at line 2"),
    ],
)
def test_mistake_in_a_dialect_is_named_with_its_path(old: str, new: str, said: str) -> None:
    assert old in STANDARD_TOML
    with pytest.raises(UsageError) as caught:
        parse_dialect(STANDARD_TOML.replace(old, new, 1), "acme.toml")
    assert said in caught.value.message
    assert caught.value.hint


def test_the_example_that_teaches_writing_a_dialect_works() -> None:
    readme = (Path(__file__).parents[2] / "config/dialects/README.md").read_text()
    acme = parse_dialect(readme.split("```toml\n")[1].split("```")[0], "README.md")
    assert acme.catalogue.sample("deal.won").data == '{"id":"d_1","title":"Licence","stage":"won"}'
    body = json.loads(render(acme, replace(with_data('{"id":"d_1","internal":1}'), actor='{"name":"Bob"}')))
    assert list(body) == ["id", "kind", "time", "account", "record", "by"]
    assert (body["record"], body["by"]) == ({"id": "d_1"}, "Bob")
    assert body["id"].startswith("acme_")
    sent = headers(EVENT, b"{}", acme)
    assert sent["X-Acme-Event"] == "deal.updated"
    assert sent["X-Acme-Signature"].startswith("sha256=")


def test_values_of_the_configuration_stand_in_bodies_and_samples(tmp_path: Path) -> None:
    file = tmp_path / "acme.toml"
    file.write_text(
        """
        name = "acme"
        description = "Acme"
        values = { app_url = "https://acme.example" }
        [body]
        link = { href = "{app_url}/{id}" }
        data = "$data"
        [handshake]
        type = "acme.hello"
        body = { at = ["{app_url}"] }
        [objects.deal]
        data = '{"url": "{app_url}/deals/1"}'
        [[events]]
        type = "deal.made"
        description = "A deal"
        """
    )
    for values, url in ((None, "https://acme.example"), ({"acme": {"app_url": "https://b"}}, "https://b")):
        acme = load_dialects([file], values)["acme"]
        assert json.loads(render(acme, EVENT))["link"] == {"href": f"{url}/{{id}}"}
        assert acme.handshake is not None
        assert json.loads(render(acme, replace(EVENT, type=acme.handshake.type, test=True))) == {"at": [url]}
        assert json.loads(acme.catalogue.sample("deal.made").data) == {"url": f"{url}/deals/1"}
    for wrong, said in (
        ({"akme": {}}, "dialect.values.akme: there is no dialect 'akme'"),
        ({"acme": {"url": "x"}}, "dialect.values.acme.url: the dialect acme has no such value"),
        ({"acme": {"app_url": '"'}}, "dialect.values.acme.app_url: expected text without quotation marks"),
        ({"acme": {"app_url": "$id"}}, "dialect.values.acme.app_url: expected text without quotation marks"),
    ):
        with pytest.raises(UsageError) as caught:
            load_dialects([file], wrong)
        assert said in caught.value.message


@pytest.mark.parametrize(
    "name",
    [
        "Content-Length", "transfer-encoding", "HOST", "Connection", "Expect", "TE", "Upgrade", "Trailer",
        "Proxy-Connection", "webhook-anything", "Host ", "Content-Length:", "a b", "",
    ],
)  # fmt: skip
def test_reserved_and_impossible_headers_of_a_row_are_not_sent(name: str) -> None:
    sent = headers(EVENT, b"{}", extra={name: "1", "X-Api-Key": "k"})
    assert [name for name in sent if name.islower()] == [*headers(EVENT, b"{}")]
    assert [name for name in sent if not name.islower()] == ["X-Api-Key"]


def test_too_long_header_is_refused_without_its_value() -> None:
    check_header("X-Key", "v" * 7000)
    with pytest.raises(UsageError, match="has 9,005 characters") as refused:
        check_header("X-Key", "v" * 9000)
    assert "vvv" not in str(refused.value)


@given(number=st.integers(0, (1 << 128) - 1))
@pytest.mark.parametrize("name", SHIPPED)
def test_every_id_that_a_dialect_writes_leads_back_to_its_event(name: str, number: int) -> None:
    dialect = SHIPPED[name]
    for test in (False, True):
        event = replace(EVENT, id=UUID(int=number), test=test)
        sent = headers(event, b"{}", dialect)
        for written in (event_id(dialect, event), sent["webhook-id"], f"evt_{event.id.hex}"):
            assert parse_event_ids(written, SHIPPED.values()) == [event.id]


@pytest.mark.parametrize(
    "text",
    ["", "evt_", "evt_12", "msg_" + "g" * 32, "-events", f"{1 << 128}-events", "-1-events", "evt_{hex}"],
)
def test_what_no_dialect_writes_is_no_event_id(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_event_ids(text, SHIPPED.values())
    assert "is not an event id" in refused.value.message
    assert "msg_<32 hexadecimal digits>" in refused.value.hint


def test_time_to_connect_is_a_part_of_the_whole() -> None:
    with pytest.raises(UsageError, match="connect_timeout: it can't be longer than timeout"):
        parse_dialect(STANDARD_TOML.replace("[body]", "timeout = 5\nconnect_timeout = 6\n[body]"), "a.toml")
