"""The public key of a private one (RFC 7748, section 5): the Montgomery ladder on Curve25519. Pure.

It is not written to hide the key from who measures time: it runs once, in a process of its own, and only where a
configuration is looked into that does not work. On the usual way nothing here is loaded.
"""

from init_wg.config.values import clamped

_PRIME = 2**255 - 19
_A24 = 121665
_BASE = 9


def public_key(private_key: bytes) -> bytes:
    """32 bytes -> 32 bytes, as `wg pubkey`."""
    return multiply(private_key, _BASE)


def multiply(private_key: bytes, u: int) -> bytes:
    """X25519 of a private key and a point's u coordinate, by the names of RFC 7748."""
    scalar = int.from_bytes(clamped(private_key), "little")
    x1 = u % _PRIME
    x2, z2, x3, z3 = 1, 0, x1, 1
    swap = 0
    for position in range(254, -1, -1):
        bit = scalar >> position & 1
        if swap != bit:
            x2, x3, z2, z3, swap = x3, x2, z3, z2, bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % _PRIME, b * b % _PRIME, d * a % _PRIME, c * b % _PRIME
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % _PRIME, x1 * (da - cb) ** 2 % _PRIME
        x2, z2 = aa * bb % _PRIME, e * (aa + _A24 * e) % _PRIME
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, _PRIME - 2, _PRIME) % _PRIME).to_bytes(32, "little")
