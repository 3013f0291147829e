"""The values of a WireGuard file: text -> something that makes sense, or BadValueError.

No message repeats the text it is about: that text may be a key in the wrong place.
"""

from __future__ import annotations

from binascii import Error as Base64Error
from binascii import a2b_base64, b2a_base64
from ipaddress import (
    AddressValueError,
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)

# As in the module `string`, which compiles regular expressions when it is imported.
DIGITS = "0123456789"
HEX_DIGITS = DIGITS + "abcdefABCDEF"
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

KEY_LENGTH = 44
KEY_BYTES = 32
LABEL = frozenset(LETTERS + DIGITS + "-_")
LEAST_MTU = 576


class BadValueError(ValueError):
    """The mistake in a value and its remedy, as the rest of a sentence that begins with its key."""


def key(text: str) -> str:
    """A WireGuard key: 32 bytes in base64, in the one spelling that `wg` prints.

    The last character before the "=" has two bits that no byte has. Some programs write something there; what
    is compared with a device must not have it. All zeroes is how the kernel's interface says "no key".
    """
    raw = _key_bytes(text)
    if not any(raw):
        raise BadValueError("is all zeroes, which is a placeholder and no key: put the real one")
    return _spelled(raw)


def private_key(text: str) -> str:
    """A PrivateKey as WireGuard uses it and shows it: clamped (RFC 7748, section 5), whatever made it."""
    return _spelled(clamped(a2b_base64(key(text))))


def clamped(private: bytes) -> bytes:
    """The number that Curve25519 makes of any 32 bytes: a multiple of 8, with bit 254 as its highest."""
    number = int.from_bytes(private, "little")
    return (number & ((1 << 254) - 8) | 1 << 254).to_bytes(KEY_BYTES, "little")


def preshared_key(text: str) -> str | None:
    """A PresharedKey; all zeroes is none at all, as WireGuard's protocol has it (whitepaper, section 5.2)."""
    raw = _key_bytes(text)
    return _spelled(raw) if any(raw) else None


def _key_bytes(text: str) -> bytes:
    if len(text) != KEY_LENGTH:
        raise BadValueError(f"has {len(text)} characters, a WireGuard key has {KEY_LENGTH}: copy it again, whole")
    try:
        raw = a2b_base64(text, strict_mode=True)
    except Base64Error:
        raise BadValueError("is not base64, as WireGuard keys are: copy it again, whole") from None
    if len(raw) != KEY_BYTES:  # 44 characters can be 31 bytes or 33
        raise BadValueError("is not exact base64 of 32 bytes, so some character is wrong: copy it again, whole")
    return raw


def _spelled(raw: bytes) -> str:
    return b2a_base64(raw, newline=False).decode()


def address(text: str) -> IPv4Interface | IPv6Interface:
    """An Address: an IP that one machine can have, and a prefix; without one, that IP alone (wg-quick(8))."""
    host, slash, prefix = text.partition("/")
    ip = _usable(_ip(host))
    length = _prefix(prefix, ip) if slash else ip.max_prefixlen
    if length == 0:
        raise BadValueError("has the prefix /0, which claims every address: use the one your provider gave, often /32")
    return IPv4Interface(f"{ip}/{length}") if ip.version == 4 else IPv6Interface(f"{ip}/{length}")


def network(text: str) -> IPv4Network | IPv6Network:
    """One of AllowedIPs. Host bits are cleared as the kernel does; without a prefix, one IP (wg(8))."""
    host, slash, prefix = text.partition("/")
    ip = _ip(host)
    length = _prefix(prefix, ip) if slash else ip.max_prefixlen
    if ip.version == 4:
        return IPv4Network(f"{ip}/{length}", strict=False)
    return IPv6Network(f"{ip}/{length}", strict=False)


def resolver(text: str) -> IPv4Address | IPv6Address | str:
    """One of DNS: an IP address is a server, anything else a search domain; told apart as wg-quick does."""
    if ":" in text or not text.strip(DIGITS + "."):
        return _usable(_ip(text))
    if not _is_name(text):
        raise BadValueError("has an entry that is neither an IP address nor a domain name: correct it")
    return text


def endpoint(text: str) -> tuple[str, int]:
    """An Endpoint: an IP or a name, a colon, a port; IPv6 in brackets (wg(8))."""
    host, colon, number = text.rpartition(":")
    if not colon:
        raise BadValueError("has no port: write host:port, often host:51820")
    service = port(number)
    if host.startswith("[") and host.endswith("]"):
        return str(_remote(_ipv6(host[1:-1]))), service
    if ":" in host:
        raise BadValueError("has several colons: write an IPv6 address in brackets, as in [2001:db8::1]:51820")
    if _ends_in_number(host):
        return str(_remote(_ipv4(host))), service
    if host.lower().removesuffix(".") == "localhost":  # no resolver may say otherwise (RFC 6761, section 6.3)
        return "127.0.0.1", service
    if not _is_name(host):
        raise BadValueError("names an impossible host: write an IP address or a host name, a colon and the port")
    return host, service


def port(text: str) -> int:
    """A UDP port. wg(8) has 0 for "any", but nothing can be sent to it and no rule can name it."""
    return _number(text, 1, 65535, "a port")


def keepalive(text: str) -> int:
    """PersistentKeepalive: seconds, where 0 and "off" are the same (wg(8))."""
    return 0 if text.lower() == "off" else _number(text, 0, 65535, "'off' or a number of seconds")


def mtu(text: str) -> int:
    """An MTU: at least what every IPv4 host must take (RFC 791), at most what IP lengths can say."""
    return _number(text, LEAST_MTU, 65535, "an MTU")


def fwmark(text: str) -> int:
    """FwMark: 32 bits, decimal or 0x..., where 0 and "off" are the same (wg(8))."""
    if text.lower() == "off":
        return 0
    if text[:2].lower() == "0x":
        if not 1 <= len(text[2:]) <= 8 or text[2:].strip(HEX_DIGITS):
            raise BadValueError("is not a mark of 32 bits: correct it, or delete the line")
        return int(text, 16)
    return _number(text, 0, 0xFFFFFFFF, "'off', a number or 0x and hexadecimal digits")


def table(text: str) -> str:
    """Table: "off", "auto", or the number or name of a routing table (wg-quick(8))."""
    if text.strip(LETTERS + DIGITS + "_-."):
        raise BadValueError("is not 'off', 'auto' or a routing table: delete the line, init-wg uses its own table")
    return text


def boolean(text: str) -> bool:
    """SaveConfig: "true" or "false" (wg-quick(8))."""
    if text.lower() not in ("true", "false"):
        raise BadValueError("is neither true nor false: delete the line, init-wg never writes to the file")
    return text.lower() == "true"


def _number(text: str, least: int, most: int, what: str) -> int:
    """A decimal number in its plainest spelling: ASCII digits, no sign, no leading zero."""
    plain = text.isascii() and text.isdigit() and len(text) <= len(str(most))
    if not plain or str(int(text)) != text or not least <= int(text) <= most:
        raise BadValueError(f"must be {what} from {least} to {most}: correct it")
    return int(text)


def _prefix(text: str, ip: IPv4Address | IPv6Address) -> int:
    """What follows the slash. Python would also take a netmask there, WireGuard does not."""
    return _number(text, 0, ip.max_prefixlen, "an IP address and a prefix length")


def _ip(text: str) -> IPv4Address | IPv6Address:
    return _ipv6(text) if ":" in text else _ipv4(text)


def _ipv4(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError:
        raise BadValueError(
            "has something that is not an IP address: correct it, and put commas between several"
        ) from None


def _ipv6(text: str) -> IPv6Address:
    """An IPv6 address without a zone: `%eth0` would name an interface of some other machine."""
    try:
        ip = IPv6Address(text)
    except AddressValueError:
        raise BadValueError(
            "has something that is not an IPv6 address: correct it, and put commas between several"
        ) from None
    if ip.scope_id is not None:
        raise BadValueError("has an IPv6 zone (%...), which means nothing here: delete it")
    return ip


def _usable(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An address that one machine at this or the far end of a tunnel can have."""
    if ip.is_loopback:
        raise BadValueError("has a loopback address, which never leaves the pod: use the one your provider gave")
    return _remote(ip)


def _remote(ip: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    """An address that one machine can have, which 0.0.0.0/8 ("this network", RFC 1122) is not."""
    if ip.is_multicast:
        raise BadValueError("has a multicast address, which no single machine can have: use the one your provider gave")
    if ip.is_unspecified or (ip.version == 4 and ip.packed[0] == 0):
        raise BadValueError("has an address that means 'none' (0.x.x.x or ::): use the one your provider gave")
    if ip.version == 6 and int(ip) >> 32 in (0, 0xFFFF) and not ip.is_loopback:  # ::a.b.c.d and ::ffff:a.b.c.d
        raise BadValueError("has an IPv4 address dressed as IPv6 (::ffff:...): write it as IPv4")
    if ip.packed == b"\xff\xff\xff\xff":
        raise BadValueError("has the broadcast address: use the one your provider gave")
    return ip


def _is_name(text: str) -> bool:
    """A name that DNS can carry: lengths of RFC 1035, letters of RFC 1123, and "_", which is in use.

    A dot at the end is kept: it stops the resolver from trying search domains.
    """
    labels = text.removesuffix(".").split(".")
    return len(text) <= 253 and all(_is_label(label) for label in labels) and not _ends_in_number(text)


def _is_label(text: str) -> bool:
    return 0 < len(text) <= 63 and LABEL.issuperset(text) and text[0] != "-" != text[-1]


def _ends_in_number(text: str) -> bool:
    """Whether resolvers take it for an IPv4 address, even a short or hexadecimal one (inet_aton(3))."""
    last = text.removesuffix(".").rpartition(".")[2].lower()
    return last.isdigit() or (last.startswith("0x") and not last[2:].strip(HEX_DIGITS))
