"""Signing secrets at rest: AES-256-GCM with the key of `[secrets] key_file`, or plain where there is none.

A sealed value starts with one byte that tells how it was sealed, so a key can be introduced at any time.
"""

import base64
import binascii
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from postrider.domain.errors import PostriderError, UsageError

_PLAIN = b"\x00"
_AES_256_GCM = b"\x01"
_NONCE_BYTES = 12


class Sealer:
    """Seals with `key` (32 bytes) where there is one; opens what was sealed with it, and what is plain."""

    def __init__(self, key: bytes | None = None) -> None:
        self._cipher = AESGCM(key) if key is not None else None

    def seal(self, secret: str, context: str) -> bytes:
        """`context` is bound to the value: sealed for one endpoint, it can't be opened as another's."""
        if self._cipher is None:
            return _PLAIN + secret.encode()
        nonce = os.urandom(_NONCE_BYTES)
        return _AES_256_GCM + nonce + self._cipher.encrypt(nonce, secret.encode(), context.encode())

    def open(self, sealed: bytes, context: str) -> str:
        """Raises PostriderError if the key is missing or another one."""
        if sealed[:1] == _PLAIN:
            return sealed[1:].decode()
        if self._cipher is None:
            raise PostriderError(
                f"the signing secret of {context} is encrypted, and no key is configured",
                "Set secrets.key_file to the file with the key that it was encrypted with.",
            )
        nonce, ciphertext = sealed[1 : 1 + _NONCE_BYTES], sealed[1 + _NONCE_BYTES :]
        try:
            return self._cipher.decrypt(nonce, ciphertext, context.encode()).decode()
        except InvalidTag:
            raise PostriderError(
                f"the signing secret of {context} can't be decrypted with the key of secrets.key_file",
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
