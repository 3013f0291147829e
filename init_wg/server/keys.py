"""New keys, as `wg genkey`, `wg pubkey` and `wg genpsk` make them."""

from __future__ import annotations

import os
from binascii import a2b_base64, b2a_base64

from init_wg.config import values, x25519
from init_wg.model.secret import Secret


def pair() -> tuple[Secret, str]:
    """A private key, clamped as a device shows it, and its public key."""
    private = values.clamped(os.urandom(values.KEY_BYTES))
    return Secret(_spelled(private)), _spelled(x25519.public_key(private))


def preshared() -> Secret:
    """A preshared key."""
    return Secret(_spelled(os.urandom(values.KEY_BYTES)))


def public(private: str) -> str:
    """The public key of a private one."""
    return _spelled(x25519.public_key(a2b_base64(private)))


def _spelled(key: bytes) -> str:
    return b2a_base64(key, newline=False).decode()
