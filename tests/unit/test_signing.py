import base64
import secrets
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook

from postrider.domain.errors import UsageError
from postrider.domain.signing import SignatureError, secret_key, sign_v1, verify_v1
from postrider.edges.randomness import new_secret

KEY = bytes(range(32))
OTHER_KEY = bytes(32)
BODY = b'{"type":"deal.updated"}'
NOW = 1_700_000_000


def whsec(key: bytes) -> str:
    return "whsec_" + base64.b64encode(key).decode()


def signed(keys: list[bytes], timestamp: int = NOW, body: bytes = BODY) -> dict[str, str]:
    return {
        "Webhook-Id": "evt_1",
        "Webhook-Timestamp": str(timestamp),
        "Webhook-Signature": sign_v1(keys, "evt_1", timestamp, body),
    }


@pytest.mark.parametrize("length", [24, 32, 64])
@pytest.mark.parametrize("ending", ["", "\n", "\r\n"])
def test_whsec_secret_is_decoded_to_its_key(length: int, ending: str) -> None:
    key = secrets.token_bytes(length)
    assert secret_key(whsec(key) + ending) == key
    assert secret_key(whsec(key).rstrip("=") + ending) == key


@pytest.mark.parametrize("secret", ["s3cret", "Grüße", "with = signs+and/slashes", "WHSEC_abc", "two words"])
def test_own_secret_is_its_utf8_bytes(secret: str) -> None:
    assert secret_key(secret) == secret.encode()
    assert secret_key(secret + "\n") == secret.encode()


@pytest.mark.parametrize(
    "secret",
    [
        *("", "\n", "   ", " padded", "padded ", "two-newlines\n\n", "lone-\udcff-surrogate"),
        *(whsec(bytes(23)), whsec(bytes(65)), "whsec_", "whsec_=", "whsec_n0t_base64!-" + "x" * 40),
        whsec(bytes(range(200, 232))) + "é",
        "whsec_" + base64.urlsafe_b64encode(bytes([255]) * 32).decode(),
    ],
)
def test_bad_secret_is_refused_and_not_echoed(secret: str) -> None:
    with pytest.raises(UsageError) as caught:
        secret_key(secret)
    said = str(caught.value) + repr(caught.value.__context__)
    assert caught.value.hint
    for part in secret.removeprefix("whsec_").split():
        assert part not in said or part == "="


def test_new_secrets_differ_and_hold_32_bytes() -> None:
    first, second = new_secret(), new_secret()
    assert first.startswith("whsec_")
    assert first != second
    assert len(secret_key(first)) == 32


def test_signature_is_the_published_example() -> None:
    # The test vector of the svix and standardwebhooks libraries.
    key = secret_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signature = sign_v1([key], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@given(
    body=st.text().map(str.encode), keys=st.lists(st.binary(min_size=24, max_size=64), min_size=1, max_size=3)
)
def test_independent_library_verifies_every_key(body: bytes, keys: list[bytes]) -> None:
    headers = signed(keys, int(time.time()), body)
    for key in keys:
        Webhook(key).verify(body, headers, json_parse=False)


def test_several_keys_give_one_signature_each_in_order() -> None:
    both = sign_v1([KEY, OTHER_KEY], "evt_1", NOW, BODY)
    assert both == f"{sign_v1([KEY], 'evt_1', NOW, BODY)} {sign_v1([OTHER_KEY], 'evt_1', NOW, BODY)}"


@pytest.mark.parametrize("receiver_keys", [[KEY], [OTHER_KEY], [bytes(40), KEY]])
def test_verify_accepts_any_shared_key(receiver_keys: list[bytes]) -> None:
    verify_v1(receiver_keys, signed([KEY, OTHER_KEY]), BODY, NOW)


@pytest.mark.parametrize("offset", [-300, 0, 300])
def test_verify_accepts_clocks_within_the_tolerance(offset: int) -> None:
    verify_v1([KEY], signed([KEY], NOW + offset), BODY, NOW)


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        (signed([KEY]) | {"Webhook-Id": "evt_2"}, "no signature"),
        (signed([KEY]) | {"Webhook-Timestamp": str(NOW + 1)}, "no signature"),
        (signed([OTHER_KEY]), "no signature"),
        (signed([KEY]) | {"Webhook-Signature": "v1, v2,é v1"}, "no signature"),
        (signed([KEY]) | {"Webhook-Signature": ""}, "no webhook-signature header"),
        ({"Webhook-Signature": "v1,x"}, "no webhook-id header"),
        (signed([KEY], NOW - 301), "301 s too old"),
        (signed([KEY], NOW + 301), "301 s too new"),
        (signed([KEY]) | {"Webhook-Timestamp": "١٢٣"}, "not a whole number"),
        (signed([KEY]) | {"Webhook-Timestamp": "9" * 5000}, "not a whole number"),
        (signed([KEY]) | {"Webhook-Timestamp": "1e9"}, "not a whole number"),
    ],
)
def test_verify_says_why_it_refuses(headers: dict[str, str], reason: str) -> None:
    with pytest.raises(SignatureError, match=reason):
        verify_v1([KEY], headers, BODY, NOW)


def test_verify_refuses_a_changed_body() -> None:
    with pytest.raises(SignatureError, match="no signature"):
        verify_v1([KEY], signed([KEY]), BODY + b" ", NOW)
