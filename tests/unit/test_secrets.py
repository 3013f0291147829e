"""No key that is secret is ever shown: not in a repr, a step, a log line, a preview or a traceback."""

from __future__ import annotations

import base64
import copy
import traceback
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from init_wg import log
from init_wg.config import tunnel as config
from init_wg.design import desired
from init_wg.design.plan import plan
from init_wg.model import wireguard
from init_wg.model.secret import Secret
from init_wg.model.state import FWMARK, Device
from init_wg.setup import report
from tests.unit import build
from tests.unit.build_state import FRESH, ORDINARY, RIGHT, SEALED, right, wanted

secrets = st.binary(min_size=32, max_size=32).map(lambda raw: Secret(base64.b64encode(raw).decode()))


def assert_hidden(text: str, *keys: str) -> None:
    for key in keys:
        assert key[:12] not in text
        assert base64.b64decode(key).hex()[:16] not in text


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(private=secrets, preshared=secrets, before=secrets, level=st.sampled_from(log.LEVELS))
def test_nothing_shows_a_key(
    private: Secret, preshared: Secret, before: Secret, level: str, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = build.tunnel().peers[0]._replace(preshared_key=preshared)
    tunnel = build.tunnel(private_key=private, peers=(peer,))
    world = ORDINARY._replace(tunnel=tunnel)
    want = wanted(FRESH, world)
    device = right(want).device
    assert device
    old = Device(before, 1, FWMARK, device.peers)
    change = wireguard.change(old, device)
    shown: list[object] = [
        tunnel,
        peer,
        world,
        want,
        device,
        old,
        change,
        copy.deepcopy(want),
        [want],
        {"device": device},
    ]
    for have in (FRESH, RIGHT._replace(interfaces=(right()._replace(device=old),)), RIGHT):
        steps = plan(want, have, SEALED)
        shown += [steps, *steps, *map(repr, steps)]
        for step in steps:
            log.log(level, f"{step}")
            log.log(level, f"{step!r}")
    shown += [plan(desired.nothing(want), want, "")]
    captured = capsys.readouterr()
    for text in (*map(str, shown), *map(repr, shown), report.preview(tunnel), captured.out, captured.err):
        assert_hidden(text, private, preshared, before)


def test_the_log_is_written_in_the_test_above(capsys: pytest.CaptureFixture[str]) -> None:
    """Positive control."""
    log.error(f"{plan(RIGHT, FRESH, SEALED)[0]!r} {build.SERVER}")
    assert build.SERVER in capsys.readouterr().err


def test_a_key_shows_only_when_it_is_asked_for() -> None:
    secret = Secret(build.key("x"))
    assert repr(secret) == "Secret(hidden)"
    assert f"{secret!r} {[secret]} {(secret,)}" == "Secret(hidden) [Secret(hidden)] (Secret(hidden),)"
    assert secret == build.key("x")  # it still is the key


def test_a_traceback_with_a_key_in_a_local_structure() -> None:
    try:
        raise ValueError(build.tunnel(), RIGHT)
    except ValueError as error:
        assert_hidden("".join(traceback.format_exception(error)), build.PRIVATE, build.PRESHARED)


def test_what_is_read_from_a_file_is_secret(tmp_path: Path) -> None:
    file = tmp_path / "wg0.conf"
    file.write_text(
        f"[Interface]\nPrivateKey = {build.PRIVATE}\nAddress = 10.64.0.2/32\n[Peer]\nPublicKey = {build.SERVER}\n"
        f"PresharedKey = {build.PRESHARED}\nAllowedIPs = 0.0.0.0/0\nEndpoint = 192.0.2.1:51820\n"
    )
    tunnel = config.load(str(file))
    assert tunnel.private_key == build.PRIVATE
    assert_hidden(f"{tunnel!r}{tunnel}{report.preview(tunnel)}", build.PRIVATE, build.PRESHARED)


def test_status_has_no_field_for_a_secret() -> None:
    """What `status` shows of a peer, as text and as JSON."""
    facts = {
        "interface": "wg0", "implementation": "kernel", "server": "wg0", "up": True, "sealed": True,
        "addresses": ["10.64.0.2/32"], "mtu": 1370, "rules": 11, "routes": 16,
        "refused_packets": 3, "drift": list(map(str, plan(RIGHT, FRESH, SEALED))), "notices": [],
        "bypass": {"networks": [], "closed": []},
        "dns": {"mode": "tunnel", "resolvers": ["10.64.0.1"], "redirected_queries": 1, "refused_queries": 0},
        "peers": [{"public_key": build.SERVER, "endpoint": "192.0.2.1:51820", "allowed_ips": ["0.0.0.0/0"],
                   "keepalive": 25, "latest_handshake": 0.0, "received_bytes": 2048, "sent_bytes": 1}],
    }  # fmt: skip
    for text in (report.as_text(facts), report.as_json(facts)):
        assert build.SERVER in text  # a public key is public
        assert_hidden(text, build.PRIVATE, build.PRESHARED)
    assert "3 packets refused" in report.as_text(facts)
