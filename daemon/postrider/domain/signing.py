"""Signing secrets, the symmetric signature `v1` of Standard Webhooks 1.0, and signatures from a template.

Specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import hmac
import re
from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence
from typing import Literal

import msgspec

from postrider.domain.errors import PostriderError, UsageError

SECRET_PREFIX = "whsec_"  # noqa: S105 - the public marker of a secret, not one
KEY_BYTES = range(24, 65)
"""How many bytes the key inside a `whsec_` secret may have."""
MIN_OWN_BYTES = 16
"""Of a new secret that somebody brings: 128 bits, if they are random."""
TOLERANCE = 300
"""Seconds that the timestamp of a received request may differ from the clock."""

_TIMESTAMP = re.compile(r"[0-9]{1,12}")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
_ENCODINGS = {"{hex}", "{base64}"}
_SIGNED = {"{body}", "{id}", "{timestamp}"}


class Secret(msgspec.Struct, frozen=True, gc=False):
    """A signing secret in the two ways that it becomes a key.

    There may be a hundred thousand in memory, so the collector of garbage does not look at them.
    """

    key: bytes
    """As Standard Webhooks decodes it: the base64 after `whsec_`, else the UTF-8 bytes."""
    text: bytes
    """The UTF-8 bytes of the whole secret."""

    def __repr__(self) -> str:
        return "<Secret>"


class SignatureTemplate(msgspec.Struct, frozen=True, kw_only=True):
    """How a CRM signs: which text, with which hash and key, and how the header shows it."""

    value: str
    """What the header says, with `{hex}` or `{base64}` where the signature stands."""
    signs: str = "{body}"
    """What is signed; `{body}`, `{id}` and `{timestamp}` stand for those of the request."""
    hash: Literal["sha256", "sha512", "sha1"] = "sha256"
    key: Literal["text", "decoded"] = "text"
    separator: str | None = None
    """What stands between the signatures by several secrets; None signs with the newest alone."""

    def __post_init__(self) -> None:
        if self.value.count("{hex}") + self.value.count("{base64}") != 1:
            raise ValueError("value should hold {hex} or {base64}, once")
        if self.signs.count("{body}") != 1:
            raise ValueError("signs should hold {body}, once: without it a changed body would verify")
        for text, known in ((self.value, _ENCODINGS), (self.signs, _SIGNED)):
            if unknown := set(_PLACEHOLDER.findall(text)) - known:
                raise ValueError(
                    f"{min(unknown)} stands for nothing here; known are {', '.join(sorted(known))}"
                )


class SignatureError(PostriderError):
    """A received request whose signature does not verify; `message` is the reason."""


def secret_of(key: bytes) -> str:
    """A secret that stands for a key: `whsec_` and its base64."""
    return SECRET_PREFIX + _base64(key)


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


def check_new_secret(secret: str) -> None:
    """Raises UsageError for a secret that is too short to be given to an endpoint from now on."""
    if len(secret_key(secret)) < MIN_OWN_BYTES:
        raise UsageError(
            f"the signing secret is too short: at least {MIN_OWN_BYTES} bytes are needed",
            "Who guesses it can forge webhooks. `openssl rand -hex 32` makes one that is enough; so does "
            "leaving the secret out.",
        )


def parse_secret(secret: str) -> Secret:
    """Raises UsageError as `secret_key` does."""
    return Secret(secret_key(secret), secret.removesuffix("\n").removesuffix("\r").encode())


class Signer:
    """Makes the value of a signature header by a template."""

    def __init__(self, template: SignatureTemplate) -> None:
        self._template = template
        self._before, self._after = template.signs.split("{body}")

    def sign(self, secrets: Sequence[Secret], event_id: str, timestamp: int, body: bytes) -> str:
        """`secrets` are newest first; `timestamp` is in seconds since 1970."""
        template = self._template
        signed = body
        if self._before or self._after:
            signed = b"".join((
                _fill(self._before, event_id, timestamp), body, _fill(self._after, event_id, timestamp),
            ))  # fmt: skip
        chosen = secrets[:1] if template.separator is None else secrets
        return (template.separator or "").join(
            _show(template.value, hmac.digest(getattr(secret, _KEYS[template.key]), signed, template.hash))
            for secret in chosen
        )


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


_KEYS = {"text": "text", "decoded": "key"}


def _fill(part: str, event_id: str, timestamp: int) -> bytes:
    return part.replace("{id}", event_id).replace("{timestamp}", str(timestamp)).encode()


def _show(value: str, digest: bytes) -> str:
    return value.replace("{hex}", digest.hex()).replace("{base64}", _base64(digest))


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
