"""Signing secrets and header values at rest: AES-256-GCM with the key of `[secrets] key_file`, else plain.

A sealed value starts with one byte that tells how it was sealed, so a key can be introduced at any time.
"""

import base64
import binascii
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from postrider.domain.errors import PostriderError, UsageError

_PLAIN = b"\x00"
_AES_256_GCM = b"\x01"
_NONCE_BYTES = 12
_RENEW = "Delete the endpoint and add it anew."


class Sealer:
    """Seals with `key` (32 bytes) where there is one; opens what was sealed with it, and what is plain."""

    def __init__(self, key: bytes | None = None, random_bytes: Callable[[int], bytes] | None = None) -> None:
        """With a key goes a source of so many random bytes, for nonces."""
        if key is not None and random_bytes is None:
            raise ValueError("a key needs a source of nonces")
        self._random_bytes = random_bytes
        self._cipher = AESGCM(key) if key is not None else None

    @property
    def seals(self) -> bool:
        """Whether there is a key; else `seal` leaves things readable."""
        return self._cipher is not None

    def seal(self, secret: str, context: str) -> bytes:
        """`context` is bound to the value: sealed for one endpoint and purpose, it can't be opened as
        another's."""
        return self._seal(secret.encode(), context)

    def reseal(self, sealed: bytes, context: str) -> bytes:
        """Seal a plain value anew, whatever it holds."""
        assert sealed[:1] == _PLAIN
        return self._seal(sealed[1:], context)

    def open(self, sealed: bytes, context: str, what: str = "signing secret") -> str:
        """Raises PostriderError, which calls it `what`, if the key is missing or another one, or the value
        was damaged. The message quotes nothing of the value."""
        try:
            return self._open(sealed, context, what).decode()
        except UnicodeDecodeError:
            # Not chained: the exception holds the value.
            raise PostriderError(f"the {what} is damaged: it is not UTF-8", _RENEW) from None

    def _seal(self, value: bytes, context: str) -> bytes:
        if self._cipher is None or self._random_bytes is None:
            return _PLAIN + value
        nonce = self._random_bytes(_NONCE_BYTES)
        return _AES_256_GCM + nonce + self._cipher.encrypt(nonce, value, context.encode())

    def _open(self, sealed: bytes, context: str, what: str) -> bytes:
        kind, nonce, ciphertext = sealed[:1], sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        if kind == _PLAIN:
            return sealed[1:]
        if kind != _AES_256_GCM or len(nonce) < _NONCE_BYTES:
            raise PostriderError(f"the {what} is damaged: it is not of a known form", _RENEW)
        if self._cipher is None:
            raise PostriderError(
                f"the {what} is encrypted, and no key is configured",
                "Set secrets.key_file to the file with the key that it was encrypted with.",
            )
        try:
            return self._cipher.decrypt(nonce, ciphertext, context.encode())
        except InvalidTag:
            raise PostriderError(
                f"the {what} can't be decrypted with the key of secrets.key_file",
                "Restore the key file that was in use when the endpoint was added.",
            ) from None


def parse_key(text: str, source: str) -> bytes:
    """The content of a key file: 32 bytes in base64 (`openssl rand -base64 32`)."""
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        key = b""
    if len(key) != 32:
        raise UsageError(f"{source} does not hold a key", "Make one with: openssl rand -base64 32 > FILE")
    return key
