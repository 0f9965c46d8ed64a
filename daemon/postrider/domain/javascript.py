"""JSON text as JavaScript writes it: `JSON.stringify(JSON.parse(text))`, byte for byte.

Some receivers verify a signature over what they parsed and wrote again, so what is signed has to come out
of that round trip unchanged. Sources: ECMA-262, 25.5.1 (parse), 25.5.2 (stringify), 6.1.6.1.20
(Number::toString) and 10.1.11.1 (the order of an object's keys).
"""

import json
import math
from json.encoder import encode_basestring

_LARGEST_INDEX = 2**32 - 2
_FIXED_DIGITS = range(-5, 22)
"""Where the decimal point may lie, counted from the first digit, for a number written without an exponent."""


class _Number(str):
    """A number, as the text that JavaScript makes of it."""

    __slots__ = ()


def stringify(text: str) -> bytes:
    """What `JSON.stringify` makes of a parsed JSON text: no spaces, numbers as doubles, keys in its order.

    A number too large for a double becomes `null`, and of equal keys the last one counts, as in JavaScript.
    """
    value = json.loads(text, parse_int=_number, parse_float=_number)
    # What is left of surrogates has no partner; JavaScript writes it as the same escape.
    return _write(value).encode("utf-8", "backslashreplace")


def _write(value: object) -> str:
    if isinstance(value, _Number):
        return value
    if isinstance(value, str):
        return encode_basestring(value)
    if isinstance(value, dict):
        members = [f"{encode_basestring(key)}:{_write(value[key])}" for key in _ordered(value)]
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join([_write(item) for item in value]) + "]"
    return {None: "null", True: "true", False: "false"}[value]  # type: ignore[index]


def _ordered(keys: dict[str, object]) -> list[str]:
    """Array indices first, by their value; then all other keys as they came."""
    indices = [key for key in keys if _is_index(key)]
    if not indices:
        return list(keys)
    return sorted(indices, key=int) + [key for key in keys if not _is_index(key)]


def _is_index(key: str) -> bool:
    return (
        key.isdecimal()
        and key.isascii()
        and len(key) <= 10
        and (key[0] != "0" or key == "0")
        and int(key) <= _LARGEST_INDEX
    )


def _number(text: str) -> _Number:
    value = float(text)
    if not math.isfinite(value):
        return _Number("null")
    if value == 0:
        return _Number("0")
    mantissa, _, exponent = repr(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits = (whole + fraction).lstrip("0")
    # The value is 0.DIGITS times 10 to the power of `point`.
    point = int(exponent or 0) + (len(whole) if whole != "0" else len(digits) - len(fraction))
    digits = digits.rstrip("0")
    if point not in _FIXED_DIGITS:
        rest = f".{digits[1:]}" if len(digits) > 1 else ""
        written = f"{digits[0]}{rest}e{point - 1:+d}"
    elif point <= 0:
        written = "0." + "0" * -point + digits
    elif point >= len(digits):
        written = digits + "0" * (point - len(digits))
    else:
        written = f"{digits[:point]}.{digits[point:]}"
    return _Number(f"-{written}" if value < 0 else written)
