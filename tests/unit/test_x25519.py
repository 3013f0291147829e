"""init_wg.x25519 against the vectors of RFC 7748 and against `wg pubkey`."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess

import pytest

from init_wg.config.x25519 import multiply, public_key

# RFC 7748, section 5.2: scalar, u coordinate, the product's u coordinate.
VECTORS = (
    (
        "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
        "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
        "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
    ),
    (
        "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
        "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
        "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
    ),
)


@pytest.mark.parametrize(("scalar", "u", "product"), VECTORS)
def test_products(scalar: str, u: str, product: str) -> None:
    # The highest bit of a coordinate is no part of it.
    number = int.from_bytes(bytes.fromhex(u), "little") & (1 << 255) - 1
    assert multiply(bytes.fromhex(scalar), number).hex() == product


def test_once() -> None:
    """Section 5.2: the base point's coordinate as the scalar, too."""
    nine = (9).to_bytes(32, "little")
    assert multiply(nine, 9).hex() == "422c8e7a6227d7bca1350b3e2bb7279f7897b87bb6854b783c60e80311ae3079"


@pytest.mark.skipif(not shutil.which("wg"), reason="no wg on this system")
def test_public_keys_are_those_of_wg() -> None:
    for number in range(20):
        private = hashlib.sha256(bytes([number])).digest() if number else bytes([0xFF] * 32)
        said = subprocess.run(["wg", "pubkey"], input=base64.b64encode(private), capture_output=True, check=True).stdout
        assert base64.b64encode(public_key(private)) == said.strip()
