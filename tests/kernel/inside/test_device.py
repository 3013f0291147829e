"""Another configuration, and another wg0: what can be is changed in place in the kernel's device."""

from __future__ import annotations

import pytest

from tests.kernel.inside import product
from tests.kernel.inside.conftest import OTHER_PORT, PATIENCE, Stage
from tests.lab.faults import wireguard_daemons
from tests.lab.lab import FAMILIES, INSIDE, WIREGUARD_PORT, wait_until

# For the first of several peers: no network may be two peers'.
FIRST = "203.0.113.0/24, 10.64.0.0/10, 2001:db8:113::/64, fc00:bbbb:bbbb:bb01::/64"
KERNEL, USERSPACE = {"WG_IMPLEMENTATION": "kernel"}, {"WG_IMPLEMENTATION": "userspace"}


def test_peers_change_in_place(stage: Stage) -> None:
    lab = stage.lab
    first, second = lab.provider.public_key, lab.provider2.public_key
    before = product.tunnel(lab)

    def applied(*, port: int = WIREGUARD_PORT, more: str = "", anew: bool = False) -> product.Tunnel:
        """The other peer's session goes on; the first one's, too, unless it is another server now (anew)."""
        nonlocal before
        lab.config(endpoint=f"{lab.provider.addresses[4]}:{port}", keepalive=None)
        text = lab.config_path.read_text().replace("0.0.0.0/0, ::/0", FIRST)
        text += f"{more}[Peer]\nPublicKey = {second}\nAllowedIPs = 198.51.100.0/24\n"
        text += f"Endpoint = {lab.provider2.addresses[4]}:{WIREGUARD_PORT}\nPersistentKeepalive = 25\n"
        lab.config_path.write_text(text)
        product.run(lab, "up")
        product.arrives_from_the_provider(lab)
        now = product.tunnel(lab)
        others = {key: peer for key, peer in before.peers.items() if key != first}
        assert now.is_still(before._replace(peers=others) if anew else before), f"{before}\n{now}"
        assert not anew or now.peers[first].handshake >= before.peers[first].handshake
        before = now
        return now

    # A second peer, which shakes hands at once, as it keeps itself alive.
    applied()
    wait_until(lambda: product.tunnel(lab).peers[second].handshake, "the second peer's handshake", PATIENCE)
    before = product.tunnel(lab)

    # The first one's endpoint and keepalive.
    lab.provider.run(["wg", "set", "wg0", "listen-port", str(OTHER_PORT)])
    now = applied(port=OTHER_PORT, more="PersistentKeepalive = 21\n", anew=True)
    assert now.peers[first].endpoint == f"{lab.provider.addresses[4]}:{OTHER_PORT}"
    assert now.peers[first].keepalive == "21"
    lab.provider.run(["wg", "set", "wg0", "listen-port", str(WIREGUARD_PORT)])

    # Its preshared key.
    key = lab.folder / "preshared.key"
    key.write_text(product.secret())
    lab.provider.run(["wg", "set", "wg0", "peer", lab.pod_key, "preshared-key", key])
    now = applied(more=f"PresharedKey = {key.read_text()}\n", anew=True)
    assert now.peers[first].preshared_key == key.read_text()
    assert now.peers[first].keepalive == "off"

    # That is asked for in the next handshake. A provider who has lost the session answers nothing before that one.
    lab.provider.run(["wg", "set", "wg0", "peer", lab.pod_key, "remove"])
    lab.provider.admit()
    lab.provider.run(["wg", "set", "wg0", "peer", lab.pod_key, "preshared-key", key])
    product.run(lab, "up", "--server", "wg0")
    product.arrives_from_the_provider(lab)
    assert product.tunnel(lab).peers[first].handshake > now.peers[first].handshake

    # And back.
    lab.provider.run(["wg", "set", "wg0", "peer", lab.pod_key, "preshared-key", "/dev/null"])
    lab.config()
    product.run(lab, "up")
    now = product.tunnel(lab)
    assert (now.number, set(now.peers)) == (before.number, {first})
    assert now.peers[first].preshared_key == "(none)"
    product.arrives_from_the_provider(lab)
    stage.nothing_leaked()


def test_another_private_key_and_a_wrong_one(stage: Stage) -> None:
    lab = stage.lab
    number = product.tunnel(lab).number
    secret = product.secret()
    lab.config(secret=secret)

    # The provider does not know it yet.
    said = product.run(lab, "up", env={"HANDSHAKE_TIMEOUT": "1"}, expect=4)
    assert f"no handshake with {lab.provider.addresses[4]}:{WIREGUARD_PORT}" in said.splitlines()[-1]
    assert not any(lab.traffic_source(family, timeout=0.2) for family in FAMILIES)
    stage.try_everything()
    stage.nothing_leaked()

    allowed = ["allowed-ips", f"{INSIDE[4]},{INSIDE[6]}"]
    lab.provider.run(["wg", "set", "wg0", "peer", product.public(secret), *allowed])
    product.run(lab, "up")
    product.arrives_from_the_provider(lab)
    assert product.tunnel(lab).number == number

    lab.provider.run(["wg", "set", "wg0", "peer", product.public(secret), "remove"])
    lab.provider.admit()
    lab.config()
    product.run(lab, "up")
    product.arrives_from_the_provider(lab)
    assert product.tunnel(lab).number == number
    stage.nothing_leaked()


def test_a_device_that_fits_no_single_message(stage: Stage) -> None:
    """Three peers with 800 networks each: the kernel takes 64 KiB at a time, and gives less."""
    lab = stage.lab
    networks = {
        lab.provider.public_key: [f"172.16.{n // 200}.{n % 200}/32" for n in range(800)],
        lab.provider2.public_key: [f"198.18.{n // 200}.{n % 200}/32" for n in range(800)],
        product.public(product.secret()): [f"2001:db8:c::{n + 1:x}/128" for n in range(800)],
    }
    text = lab.config_path.read_text()
    text = text.replace("0.0.0.0/0, ::/0", ", ".join([FIRST, *networks[lab.provider.public_key]]))
    for number, key in enumerate(list(networks)[1:]):
        text += f"[Peer]\nPublicKey = {key}\nAllowedIPs = {', '.join(networks[key])}\n"
        text += f"Endpoint = {lab.provider2.addresses[4]}:{(WIREGUARD_PORT, OTHER_PORT)[number]}\n"
    before = product.tunnel(lab)
    lab.config_path.write_text(text)
    product.run(lab, "up")
    now = product.tunnel(lab)
    found = {key: peer.allowed_ips - set(FIRST.split(", ")) for key, peer in now.peers.items()}
    assert found == {key: frozenset(listed) for key, listed in networks.items()}
    assert now.is_still(before)
    product.run(lab, "check")
    product.arrives_from_the_provider(lab)
    stage.nothing_leaked()


# --- whose wg0? ------------------------------------------------------------------------------------------------------

FOREIGN = {
    "dummy": ["ip link add wg0 type dummy", "ip address add 198.51.100.1/24 dev wg0"],
    "veth": ["ip link add wg0 type veth peer name wg0peer"],
    "wireguard-go": ["wireguard-go wg0"],
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_wg0_is_replaced(stage: Stage, kind: str) -> None:
    lab = stage.lab
    lab.pod.run(["ip", "link", "delete", "wg0"])
    for command in [*FOREIGN[kind], "ip link set wg0 up", "ip route add default dev wg0 table 51820"]:
        lab.pod.run(command.split())
    product.run(lab, "up", env=KERNEL)
    assert product.tunnel(lab).kind == "wireguard"
    wait_until(lambda: not wireguard_daemons(lab), "wireguard-go's end", PATIENCE)
    product.arrives_from_the_provider(lab)
    stage.nothing_leaked()


def test_from_the_kernel_to_wireguard_go_and_back(stage: Stage) -> None:
    lab = stage.lab
    product.run(lab, "up", env=USERSPACE)
    assert len(wireguard_daemons(lab)) == 1
    product.arrives_from_the_provider(lab)
    # Only now: a provider who still had something to say to the device before begins a handshake by itself.
    there = product.tunnel(lab)
    assert there.kind == "tun"
    product.run(lab, "up")
    assert product.tunnel(lab).is_still(there), "what runs is kept"

    stage.try_everything()
    product.run(lab, "up", env=KERNEL)
    assert product.tunnel(lab).kind == "wireguard"
    wait_until(lambda: not wireguard_daemons(lab), "wireguard-go's end", PATIENCE)
    product.arrives_from_the_provider(lab)
    stage.nothing_leaked()
