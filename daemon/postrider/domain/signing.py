"""Signing secrets, and the symmetric signature `v1` of Standard Webhooks 1.0.

Specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import hmac
import re
import secrets
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence

from postrider.domain.errors import PostriderError, UsageError

SECRET_PREFIX = "whsec_"  # noqa: S105 - the public marker of a secret, not one
KEY_BYTES = range(24, 65)
"""How many bytes the key inside a `whsec_` secret may have."""
TOLERANCE = 300
"""Seconds that the timestamp of a received request may differ from the clock."""

_TIMESTAMP = re.compile(r"[0-9]{1,12}")


class SignatureError(PostriderError):
    """A received request whose signature does not verify; `message` is the reason."""


def new_secret() -> str:
    """A fresh secret: `whsec_` and the base64 of 32 random bytes."""
    return SECRET_PREFIX + _base64(secrets.token_bytes(32))


def secret_key(secret: str) -> bytes:
    """The signing key of a secret: the base64 after `whsec_` decoded, or the UTF-8 bytes of any other string.

    One newline at the end is dropped, as a file has it. Raises UsageError, which never quotes the secret,
    when it is empty, has white space around it, or is a `whsec_` secret that is not base64 of 24 to 64 bytes.
    """
    secret = secret.removesuffix("\n").removesuffix("\r")
    if not secret or secret != secret.strip():
        raise UsageError(
            "the signing secret is empty or has white space around it",
            "Give the secret on one line, with nothing before or after it.",
        )
    if secret.startswith(SECRET_PREFIX):
        key = _decode(secret.removeprefix(SECRET_PREFIX))
        if len(key) not in KEY_BYTES:
            raise UsageError(
                f"the signing secret starts with {SECRET_PREFIX} but is not base64 of "
                f"{KEY_BYTES[0]} to {KEY_BYTES[-1]} bytes after it",
                f"Check that it was copied whole; a secret of your own must not start with {SECRET_PREFIX}.",
            )
        return key
    # A lone surrogate stands for a byte that was not UTF-8. The exception of a strict encode would carry
    # the whole secret, so there is none.
    if any("\ud800" <= character <= "\udfff" for character in secret):
        raise UsageError("the signing secret is not UTF-8 text", "Save it as UTF-8.")
    return secret.encode()


def sign_v1(keys: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> str:
    """The value of the signature header: one `v1,…` for each key, separated by spaces.

    `timestamp` is the time of the attempt, in seconds since 1970.
    """
    content = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return " ".join([f"v1,{_base64(hmac.digest(key, content, 'sha256'))}" for key in keys])


def verify_v1(
    keys: Sequence[bytes], headers: Mapping[str, str], body: bytes, now: int, tolerance: int = TOLERANCE
) -> None:
    """Check a received request; names in `headers` may have any case.

    Raises SignatureError when a header is missing, the timestamp is more than `tolerance` seconds from `now`,
    or none of the signatures is by one of `keys`.
    """
    received = {name.lower(): value for name, value in headers.items()}
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        if not received.get(name):
            raise SignatureError(f"the request has no {name} header")
    if not _TIMESTAMP.fullmatch(received["webhook-timestamp"]):
        raise SignatureError("webhook-timestamp is not a whole number of seconds since 1970")
    if not received["webhook-id"].isascii():
        raise SignatureError("webhook-id is not ASCII")
    timestamp = int(received["webhook-timestamp"])
    if abs(now - timestamp) > tolerance:
        direction = "old" if timestamp < now else "new"
        raise SignatureError(
            f"webhook-timestamp is {abs(now - timestamp)} s too {direction}; {tolerance} s are allowed",
            "Check the clocks of both machines.",
        )
    expected = sign_v1(keys, received["webhook-id"], timestamp, body).encode().split()
    presented = received["webhook-signature"].encode(errors="replace").split()
    if not any(hmac.compare_digest(ours, theirs) for ours in expected for theirs in presented):
        raise SignatureError(
            "no signature in webhook-signature matches",
            "Check that both sides have the same secret and that nothing changed the body on its way.",
        )


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode("ascii")


def _decode(text: str) -> bytes:
    """Decode base64 with or without its padding; empty when it is not base64."""
    if not text.isascii():
        return b""
    try:
        return a2b_base64(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), strict_mode=True)
    except Base64Error:
        return b""
