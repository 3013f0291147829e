"""WG_CONFIG as a pattern: one Secret in every replica, and each replica with the servers of its own name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from init_wg.kernel.sealed import TABLE
from tests.lab.judge import Judge, for_lab
from tests.lab.lab import Lab
from tests.lab.probes import Probes


@pytest.fixture
def pool(plain: Lab) -> Iterator[Lab]:
    """Three replicas' files; this pod is pool-1, and pool-0's server would be tried first, if all were its own."""
    folder = plain.folder / "pool"
    for name, provider in (
        ("pool-0.a", plain.provider),
        ("pool-1.a", plain.provider2),
        ("pool-1.b", plain.provider),
        ("pool-10.a", plain.provider),
    ):
        plain.config(folder / f"{name}.conf", provider=provider)
    rules = for_lab(plain, endpoints=[plain.provider.endpoint, plain.provider2.endpoint])
    plain.init_wg("lockdown")
    with Judge(plain, rules) as judge, Probes(plain):
        yield plain
        verdict = judge.verdict()
        assert not verdict.leaked, str(verdict)


def config_of(pool: Lab, replica: str) -> dict[str, str]:
    return {"WG_CONFIG": f"{pool.folder}/pool/{replica}.*.conf", "HANDSHAKE_TIMEOUT": "1"}


def test_a_replica_uses_its_own_servers(pool: Lab) -> None:
    pool.init_wg("up", env=config_of(pool, "pool-1"))
    assert pool.traffic_source(4) == pool.provider2.addresses[4]
    pool.provider2.silence()
    pool.init_wg("up", "--server", "pool-1.a", env=config_of(pool, "pool-1"))
    assert pool.traffic_source(4) == pool.provider.addresses[4], "its second server"
    status = pool.init_wg("check", env=config_of(pool, "pool-1"), check=False)
    assert status.returncode == 0, status.stdout


def test_a_replica_without_a_file_stays_sealed(pool: Lab) -> None:
    ended = pool.init_wg("up", env=config_of(pool, "pool-3"), check=False)
    assert ended.returncode == 2
    last = ended.stderr.splitlines()[-1]
    assert (
        "pool-3.*.conf: no file matches: there is pool-0.a.conf, pool-1.a.conf, pool-1.b.conf, pool-10.a.conf" in last
    )
    assert TABLE in pool.pod.run(["nft", "list", "tables"]).stdout
    assert pool.traffic_source(4) is None
