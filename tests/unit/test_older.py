"""Which UDP sockets may be in the middle of a flow: told from the kernel's own table."""

from __future__ import annotations

from pathlib import Path

import pytest

from init_wg.kernel import older

HEAD = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref"
REST = "07 00000000:00000000 00:00000000 00000000     0        0 520511 2 0000000000000000 0"
SOCKETS = {
    "a server, below the ports that the kernel chooses": ("0A2A010A:1F90", "00000000:0000", False),
    "bound to no address, a chosen port": ("00000000:9C40", "00000000:0000", True),
    "with a peer, a low port": ("0A2A010A:1388", "500071CB:2329", True),
    "the forwarder's": ("0100007F:2743", "00000000:0000", False),
    "on the loopback, a chosen port": ("0B00007F:AFC8", "00000000:0000", False),
    "IPv6, a chosen port": ("000042FD010000000000000010000000:C350", "00000000000000000000000000000000:0000", True),
    "IPv6's loopback": ("00000000000000000000000001000000:C350", "00000000000000000000000000000000:0000", False),
}


@pytest.mark.parametrize("what", SOCKETS)
def test_sockets(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, remote, counts = SOCKETS[what]
    table = tmp_path / "udp"
    table.write_text(f"{HEAD}\n  317: {local} {remote} {REST}\n")
    monkeypatch.setattr(older, "_TABLES", (str(table), str(tmp_path / "absent")))
    monkeypatch.setattr(older, "_RANGE", str(tmp_path / "absent"))
    assert older.ports() == ((int(local.rpartition(":")[2], 16),) if counts else ())
