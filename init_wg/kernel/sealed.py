"""Is this network sealed? The one answer for `up`, `status` and the watchdog, from the kernel's own tables.

`up` asks before anything heavy is imported: three small nfnetlink messages, read with `struct` alone.
"""

from __future__ import annotations

import _socket  # not `socket`, whose import costs more than everything here
import errno
import os
from struct import pack, unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

#: Of both our tables. Spelt out here, so that the watchdog need not load the ruleset's text.
TABLE = "init_wg"
_NETFILTER, _NF_TABLES = 12, 10
GET_TABLE, GET_CHAIN, GET_RULE = 1, 4, 7
_REQUEST_AND_ACK, DUMP = 0x5, 0x300
_INET, _LOCAL_OUT, _DORMANT, _DROP, _ACCEPT = 1, 3, 1, 0, 1  # NFPROTO_INET, NF_INET_LOCAL_OUT, NFT_TABLE_F_DORMANT
_ERROR, _DONE = 2, 3
#: Expressions that let only some packets come as far as the verdict.
_MATCHES = frozenset((b"cmp", b"lookup", b"range", b"limit", b"quota", b"fib", b"numgen", b"connlimit", b"match"))


def in_place() -> bool:
    """Does our kill-switch decide what leaves? Raises OSError (EPERM without NET_ADMIN).

    The table of our name is there and not dormant; its output chain is a filter at the output hook, drops what it
    does not know, and has no rule that accepts everything. What else differs from the design is drift, for `up`.
    """
    table, chain = _name(1, TABLE), _name(3, "output")  # NFTA_TABLE_NAME; NFTA_CHAIN_NAME
    try:
        (found,) = ask(GET_TABLE, _INET, table)
        if _number(_attributes(found).get(2, b"")) & _DORMANT:  # NFTA_TABLE_FLAGS
            return False
        (found,) = ask(GET_CHAIN, _INET, table + chain)
        # The rules of one chain: NFTA_RULE_CHAIN is not NFTA_CHAIN_NAME.
        rules = ask(GET_RULE, _INET, table + _name(2, "output"), DUMP)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return _drops(_attributes(found)) and not any(map(_accepts_everything, rules))


def _drops(chain: dict[int, bytes]) -> bool:
    """NFTA_CHAIN_HOOK, with its NFTA_HOOK_HOOKNUM; NFTA_CHAIN_POLICY; NFTA_CHAIN_TYPE."""
    hook = _attributes(chain.get(4, b""), 0).get(1)
    return hook is not None and (_number(hook), _number(chain.get(5, b"\1")), chain.get(7)) == (
        _LOCAL_OUT, _DROP, b"filter\0",
    )  # fmt: skip


def _accepts_everything(data: bytes) -> bool:
    rule = _attributes(data)
    if (rule.get(1), rule.get(2)) != (TABLE.encode() + b"\0", b"output\0"):
        return False  # kernels before 5.8 dump the rules of all chains
    accepts = False
    for _, element in _attribute_list(rule.get(4, b"")):  # NFTA_RULE_EXPRESSIONS
        expression = _attributes(element, 0)
        name = expression.get(1, b"").rstrip(b"\0")
        if name in _MATCHES:
            return False
        if name == b"immediate":  # NFTA_IMMEDIATE_DATA, NFTA_DATA_VERDICT, NFTA_VERDICT_CODE
            verdict = _attributes(_attributes(_attributes(expression.get(2, b""), 0).get(2, b""), 0).get(2, b""), 0)
            accepts |= _number(verdict.get(1, b"")) == _ACCEPT
    return accepts


def ask(message: int, family: int, attributes: bytes, flags: int = 0) -> list[bytes]:
    """One nf_tables question; every answer without its netlink header. Raises OSError with the kernel's errno."""
    body = pack("=BBH", family, 0, 0) + attributes
    kind = _NF_TABLES << 8 | message
    answers: list[bytes] = []
    kernel = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, _NETFILTER)
    try:
        kernel.send(pack("=IHHII", 16 + len(body), kind, flags | _REQUEST_AND_ACK, 1, 0) + body)
        while True:
            data = kernel.recv(1 << 17)
            offset = 0
            while offset + 16 <= len(data):
                length, kind = unpack_from("=IH", data, offset)
                payload = data[offset + 16 : offset + length]
                offset += (length + 3) & ~3
                if kind not in (_ERROR, _DONE):
                    answers.append(payload)
                    continue
                code = -unpack_from("=i", payload)[0]
                if code:
                    raise OSError(code, os.strerror(code))
                return answers
    finally:
        kernel.close()


def _name(kind: int, text: str) -> bytes:
    """A netlink attribute that is a string."""
    value = text.encode() + b"\0"
    return pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _attributes(data: bytes, offset: int = 4) -> dict[int, bytes]:
    """By type; a message's own begin after struct nfgenmsg, nested ones at once."""
    return dict(_attribute_list(data, offset))


def _attribute_list(data: bytes, offset: int = 0) -> Iterator[tuple[int, bytes]]:
    while offset + 4 <= len(data):
        length, kind = unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _number(data: bytes) -> int:
    """nf_tables' numbers are big-endian."""
    return int.from_bytes(data, "big")
