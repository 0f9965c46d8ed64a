"""The one source of chance: ids, keys, nonces and jitter. Whatever decides gets what was drawn passed in."""

import random
import secrets

from postrider.domain.signing import secret_of


def random_bytes(count: int) -> bytes:
    """For keys and nonces: nobody can guess them."""
    return secrets.token_bytes(count)


def random_hex(count: int) -> str:
    """The same as hexadecimal digits, two for each byte."""
    return secrets.token_hex(count)


def random_bits(count: int) -> int:
    return secrets.randbits(count)


def random_id(bits: int = 63) -> int:
    """An id for a row: above 0, of so many bits. 63 are what a bigint holds, 31 an integer."""
    return secrets.randbelow(2**bits - 1) + 1


def random_share() -> float:
    """From 0 to less than 1: a place in a range, such as that of a retry's jitter. No key."""
    return random.random()  # noqa: S311


def new_secret() -> str:
    """A fresh signing secret: `whsec_` and the base64 of 32 random bytes."""
    return secret_of(random_bytes(32))
