"""The one place that runs nft."""

from __future__ import annotations

from init_wg.design.firewall import killswitch
from init_wg.errors import KernelError
from init_wg.kernel import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# nft asks /etc/protocols for the names that it prints, and small systems have none: always numbers, then names again.
_PROTOCOLS = (("6", "tcp"), ("17", "udp"), ("{ 6, 17 }", "{ tcp, udp }"))


def load(text: str) -> None:
    """Load a text in one transaction: all of it or nothing. Raises KernelError with nft's own words."""
    _load(text, None)


def begin(text: str) -> None:
    """The same, but do not wait until nft has ended: from the kernel's commit on the text is in force, and all that
    nft still waits for, some 15 ms, is that the memory of the old one is freed. Where a commit that somebody else
    makes meanwhile does no harm if it is taken for ours: to open what is sealed.
    """
    from init_wg.kernel import netlink  # not sooner: the lockdown needs this module without

    before = netlink.generation()
    _load(text, lambda: netlink.generation() != before)


def _load(text: str, done: Callable[[], bool] | None) -> None:
    ended = _nft(("-f", "-"), text, done)
    if ended.status:
        raise KernelError(f"nft refuses the kill-switch: {_first_line(ended.stderr)}")


def listing() -> str:
    """Our tables as nft prints them, without counters; "" when neither is there. Raises KernelError."""
    # All: one `list table` that finds nothing makes nft list neither, of two families nft 1.1.7 lists the second only,
    # and two runs take twice as long.
    return tables(everything(), killswitch.NAME)


def tables(rules: str, ours: str) -> str:
    """Of a whole ruleset as nft prints it, the tables of this name, inet first; "" when there is none."""
    family, lines = "", {"inet": [""], "netdev": [""]}
    for line in rules.splitlines(keepends=True):
        if line.startswith("table "):
            _, family, name, *_ = line.split()
            family = family if name == ours else ""
        if family in lines:  # nft 1.1.7 puts each name of several devices in quotes
            lines[family].append(line.replace('"', "") if " devices = {" in line else line)
        if line == "}\n":  # what nft remarks on somebody else's table stands before that
            family = ""
    text = "".join(lines["inet"] + lines["netdev"])
    for number, name in _PROTOCOLS:
        text = text.replace(f"meta l4proto {number} ", f"meta l4proto {name} ")
    return text


def everything() -> str:
    """The whole ruleset as nft prints it, without counters, and with numbers for protocols. Raises KernelError."""
    ended = _nft(("--stateless", "--numeric-protocol", "list", "ruleset"), "")
    if ended.status and "Operation not permitted" in ended.stderr:
        raise KernelError(
            "permission denied: reading the rules needs the capability NET_ADMIN: ask in the watchdog's container "
            "(kubectl exec POD -c init-wg-watchdog -- init-wg status)"
        )
    if ended.status:
        raise KernelError(f"nft cannot list the rules: {_first_line(ended.stderr)}")
    return ended.stdout


def strangers() -> list[str]:
    """The rules of other tables that set a mark of ours, in words. They open nothing, and divert what they mark."""
    found, table = [], ""
    for line in map(str.strip, _nft(("--stateless", "list", "ruleset"), "").stdout.splitlines()):
        if line.startswith("table "):
            table = line.removesuffix(" {")
        elif not table.endswith(f" {killswitch.NAME}") and any(f"mark set {mark}" in line for mark in killswitch.MARKS):
            found.append(f"{table}: wanted no mark of init-wg's from anybody else, found: {line}")
    return found


def counters(table: str = killswitch.NAME) -> dict[str, int]:
    """Packets by chain since the kill-switch was loaded, e.g. {"refuse": 3, "refuse_name": 1, "names": 12}; or of
    another table of the inet family.

    refuse: all that was refused; refuse_name: DNS among it; names: queries that were redirected.
    """
    chain = ""
    packets: dict[str, int] = {}
    for line in _nft(("list", "table", "inet", table), "").stdout.splitlines():
        words = line.partition(" comment ")[0].split()
        if words[:1] == ["chain"]:
            chain = words[1]
        if "packets" in words:
            packets[chain] = packets.get(chain, 0) + int(words[words.index("packets") + 1])
    return packets


def egress_hook(link: str) -> tuple[bool, bool]:
    """Does the kernel (5.16 and later) let us watch what leaves a link, and ask whether it was routed?

    Asked without changing anything.
    """
    for routed in (True, False):
        if _nft(("--check", "-f", "-"), killswitch.sealed((link,), routed=routed)).status == 0:
            return True, routed
    return False, False


def _nft(arguments: tuple[str, ...], text: str, done: Callable[[], bool] | None = None) -> process.Result:
    try:
        return process.run(("nft", *arguments), text, done)
    except FileNotFoundError:
        raise KernelError("nft is not installed: use the image, or install the package nftables") from None


def _first_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[0] if lines else "it gives no reason"
