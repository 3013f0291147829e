"""python -m tests.lab [flags]: a lab for people. Says how to get in, and takes it down on Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys

from .lab import FAMILIES, NEEDS, NODE_DNS, PUBLIC_DNS, QUICK_USERSPACE, TUNNEL_DNS, Lab
from .needs import missing

GUIDE = """
The lab {name} is up.

  into the pod       {enter} bash
  set up by init_wg  {enter} env {env} {python} -m init_wg up
  or by wg-quick     {enter} env {quick_env} wg-quick up {quick}
  who sees me?       curl -s {web4}    or    curl -s 'http://[{web6}]'
                     10.42.1.10 is clear text, {exit4} came through the tunnel
  resolvers          tunnel {tunnel_dns}, node {node_dns}, public {public_dns}
  capture            ip netns exec {node} tcpdump -ni pod0
  other members      ip netns exec {name}-<member> ...    members: {members}
  configuration      {config}    a folder of two servers: {folder}

Ctrl-C takes everything down."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description="A WireGuard lab of network namespaces.")
    parser.add_argument("--rp-filter", type=int, choices=(0, 1, 2), default=2, help="in the pod (default: 2)")
    parser.add_argument("--on-link-gateway", action="store_true", help="a /32 and 169.254.1.1, as Calico does it")
    parser.add_argument("--flannel", action="store_true", help="10.42.0.0/16 via the gateway too")
    parser.add_argument("--mtu", type=int, default=1500, help="of the pod's uplink (default: 1500)")
    parser.add_argument("--no-tunnel-ipv6", action="store_true", help="the configuration has no IPv6 address")
    parser.add_argument("--no-pod-ipv6", action="store_true", help="the pod has no IPv6")
    parser.add_argument("--endpoint-family", type=int, choices=FAMILIES, default=4, help="(default: 4)")
    given = parser.parse_args()
    if lacking := missing(NEEDS):
        print(f"a lab needs {lacking}", file=sys.stderr)
        return 3
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    lab = Lab(
        rp_filter=given.rp_filter,
        on_link_gateway=given.on_link_gateway,
        flannel=given.flannel,
        mtu=given.mtu,
        tunnel_ipv6=not given.no_tunnel_ipv6,
        pod_ipv6=not given.no_pod_ipv6,
        endpoint_family=given.endpoint_family,
    )
    try:
        with lab:
            userspace = {} if lab.kernel_wireguard else QUICK_USERSPACE
            guide = GUIDE.format(
                name=lab.name,
                enter=" ".join(lab.pod.enter([])),
                env=" ".join(f"{key}={value}" for key, value in lab.pod_env.items()),
                python=sys.executable,
                quick_env=" ".join(f"{key}={value}" for key, value in userspace.items()),
                quick=lab.quick_path,
                web4=lab.web.addresses[4],
                web6=lab.web.addresses[6],
                exit4=lab.provider.addresses[4],
                tunnel_dns=TUNNEL_DNS[4],
                node_dns=NODE_DNS[4],
                public_dns=PUBLIC_DNS[4],
                node=lab.node.netns,
                members=", ".join(member.name for member in lab.members),
                config=lab.config_path,
                folder=lab.config_folder,
            )
            print(guide, flush=True)
            signal.pause()
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
