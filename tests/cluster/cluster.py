"""One node's Kubernetes, in network, mount and process namespaces of its own; ending its first process ends all of it.

                      10.42.0.0/24, fd42::/64                         203.0.113.0/24, 2001:db8:113::/64
    pod ─── veth ───┐                                               ┌─── p51   WireGuard and DNS (10.64.0.1)
    pod ─── veth ───┤  the node: 192.168.7.1, fd07::1 (node0)       ├─── p52   the same
                    ├─ kubelet, containerd, control plane ── inet0 ─┤─── p53   the same
                    │  203.0.113.1, 2001:db8:113::1                 └─── web   .80: HTTP, HTTPS, an echo
                    └─ CoreDNS on node0, behind the Service 10.43.0.10, asks a resolver on the node, as clusters do

Nothing of the machine is changed. What these programs write under /etc, /run, /var/lib and /var/log lands in layers
that go with the mount namespace. The kernel's settings that a kubelet changes are stand-ins there. Its control groups
are below one of ours, which is removed. What stays is .cache/cluster: programs, images and the last run's logs.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Self

from tests.lab.patience import LabError
from tests.lab.patience import wait_until as wait_until

from . import build
from .build import BIN, CACHE, HERE

NODE, NODE6 = "192.168.7.1", "fd07::1"
NODE_DNS = "192.168.7.53"  # where CoreDNS listens; on NODE is the resolver that it asks on to
PODS, PODS6 = "10.42.0.0/24", "fd42::/64"
SERVICES, SERVICES6 = "10.43.0.0/16", "fd43::/112"
API, DNS = "10.43.0.1", "10.43.0.10"
WEB, WEB6 = "203.0.113.80", "2001:db8:113::80"
TUNNEL_DNS = "10.64.0.1"
PROVIDERS = ("51", "52", "53")
CLIENTS = 12  # keys that every provider knows
WAIT_AT_MOST = 120.0
GROUP = "init-wg-tests"  # <GROUP>-<pid>: the control group of all pods

# A kubelet sets these, for the whole machine: here it finds them as it wants them, in files of its own.
STAND_INS = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}

# The first process: makes the node, says so, and then only reaps.
_FIRST = r"""
set -eu
folder=$1
mount --make-rprivate /
for each in etc var/lib var/log; do
    mkdir -p "$folder/over/$each" "$folder/work/$each"
    mount -t overlay overlay -o "lowerdir=/$each,upperdir=$folder/over/$each,workdir=$folder/work/$each" "/$each"
done
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/netns /run/wireguard /var/lib/kubelet "$folder/kubelet"
mount --bind "$folder/kubelet" /var/lib/kubelet
rm -f /etc/resolv.conf
printf 'nameserver 192.168.7.1\n' >/etc/resolv.conf
mount --make-rshared /
cd "$folder/settings"
for each in */* */*/*; do
    if [ -f "$each" ] && [ -e "/proc/sys/$each" ]; then mount --bind "$each" "/proc/sys/$each"; fi
done
cd /
ip link set lo up
sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0
for each in node0 inet0; do ip link add "$each" type bridge; ip link set "$each" up; done
ip address add 192.168.7.1/24 dev node0
ip address add 192.168.7.53/24 dev node0
ip address add fd07::1/64 dev node0 nodad
ip address add 203.0.113.1/24 dev inet0
ip address add 2001:db8:113::1/64 dev inet0 nodad
ip route add default via 203.0.113.80
ip route add default via 2001:db8:113::80
for last in 51 52 53 80; do
    name=p$last; [ "$last" = 80 ] && name=web
    ip netns add "$name"
    ip link add "$name" type veth peer name eth0 netns "$name"
    ip link set "$name" master inet0 up
    ip -n "$name" link set lo up
    ip -n "$name" link set eth0 up
    ip -n "$name" address add "203.0.113.$last/24" dev eth0
    ip -n "$name" address add "2001:db8:113::$last/64" dev eth0 nodad
    ip -n "$name" route add default via 203.0.113.1
    ip -n "$name" route add default via 2001:db8:113::1
done
echo ready
# Until whoever started this ends, however: then the kernel ends all that runs here. `wait` reaps meanwhile.
exec 3<&0 >/dev/null
cat <&3 &
wait "$!"
"""

_PROVIDER = r"""
set -eu
number=$1; folder=$2
ip netns exec "p$number" wireguard-go "wg$number" >/dev/null 2>&1
ip netns exec "p$number" wg setconf "wg$number" "$folder/wg/p$number.setconf"
ip -n "p$number" address add 10.64.0.1/10 dev "wg$number"
ip -n "p$number" address add fc00:bbbb:bbbb:bb01::1/64 dev "wg$number" nodad
ip -n "p$number" link set "wg$number" mtu 1420 up
ip netns exec "p$number" sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip netns exec "p$number" nft 'table inet nat {
    chain out { type nat hook postrouting priority srcnat; oifname "eth0" masquerade; }
}'
"""


class ClusterError(LabError):
    """The cluster, not what is tested on it, does not work."""


class Client(NamedTuple):
    """One key that the providers know: one pod at a time."""

    private: str
    address: str
    address6: str


def to_child(nsenter: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal what an nsenter runs in another process namespace: nsenter itself passes nothing on."""
    for pid in Path(f"/proc/{nsenter.pid}/task/{nsenter.pid}/children").read_text().split():
        os.kill(int(pid), number)


class Cluster:
    """From `with` to its end. One at a time in a checkout."""

    def __enter__(self) -> Self:
        build.everything()
        self._lock = (CACHE / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.folder = CACHE / "run"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self.group = f"{GROUP}-{os.getpid()}"
        self.clients: list[Client] = []
        try:
            self._namespaces()
            self._internet()
            self._authority()
            self._control_plane()
            self._worker()
            self._names()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_unshare"):
            self._unshare.kill()
            self._unshare.wait()
            first = Path(f"/proc/{getattr(self, 'first', 0)}/ns/net")
            wait_until(lambda: not first.exists(), "everything has ended", 30)
        for daemon in self.daemons.values():
            daemon.wait(20)
        for controller in self._controllers():
            wait_until(partial(self._remove_group, controller / self.group), f"{controller}: no process is left", 20)
        self._keep_logs()
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()

    @staticmethod
    def _remove_group(group: Path) -> bool:
        for folder, _, _ in os.walk(group, topdown=False):
            try:
                os.rmdir(folder)
            except OSError:
                continue
        return not group.exists()

    def _remove_stale_groups(self) -> None:
        """Those of a run that was killed."""
        for controller in self._controllers():
            for group in controller.glob(f"{GROUP}-*"):
                if not Path("/proc", group.name.rpartition("-")[2]).exists():
                    self._remove_group(group)

    def _keep_logs(self) -> None:
        """The last run's logs, for whoever looks for a reason."""
        logs = CACHE / "logs"
        shutil.rmtree(logs, ignore_errors=True)
        if (self.folder / "log").exists():
            shutil.copytree(self.folder / "log", logs)

    # --- the machine ------------------------------------------------------------------------------------------------

    def _namespaces(self) -> None:
        for name in ("log", "pki", "wg", "cni", "settings", "containerd"):
            (self.folder / name).mkdir(parents=True)
        for setting, value in STAND_INS.items():
            file = self.folder / "settings" / setting
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(value + "\n")
        self._remove_stale_groups()
        for controller in self._controllers():
            (controller / self.group).mkdir(exist_ok=True)
        argv = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child=SIGKILL", "--mount-proc"]
        argv += ["--", "sh", "-c", _FIRST, "sh", str(self.folder)]
        with (self.folder / "log/first.log").open("wb") as errors:
            pipe = subprocess.PIPE
            self._unshare = subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=errors, start_new_session=True)
        if self._unshare.stdout is None or self._unshare.stdout.readline() != b"ready\n":
            raise ClusterError(f"the namespaces: {self.log('first')}")
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children")
        self.first = int(children.read_text().split()[0])
        self.not_pods = {int(line.split(":")[0]) for line in self.node("ip", "-oneline", "link").splitlines()}

    @staticmethod
    def _controllers() -> list[Path]:
        """Where control groups are made: one folder with version 2, one a controller with version 1."""
        root = Path("/sys/fs/cgroup")
        if (root / "cgroup.controllers").exists():
            return [root]
        return [each for each in root.iterdir() if each.is_dir() and not each.is_symlink() and os.path.ismount(each)]

    @property
    def enter(self) -> list[str]:
        """What to put before a command that is to run on the node."""
        return ["nsenter", f"--target={self.first}", "--net", "--mount", "--pid", "--"]

    def node(self, *argv: str, check: bool = True, stdin: str | None = None) -> str:
        """The output of a program on the node."""
        ended = subprocess.run([*self.enter, *argv], input=stdin, capture_output=True, text=True, check=False)
        if check and ended.returncode:
            raise ClusterError(f"{' '.join(argv)[:300]}: {ended.stderr.strip()[-1000:]}")
        return ended.stdout

    def inside(self, namespace: str, *argv: str) -> str:
        """The output of a program in p51, p52, p53 or web."""
        return self.node("ip", "netns", "exec", namespace, *argv)

    def daemon(self, name: str, *argv: str | Path) -> None:
        """Start a program on the node; its output is in log()."""
        with (self.folder / f"log/{name}.log").open("ab") as out:
            self.daemons[name] = subprocess.Popen(
                [*self.enter, *map(str, argv)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                cwd="/",
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder)},
            )

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End one of them."""
        daemon = self.daemons.pop(name)
        to_child(daemon, number)
        daemon.wait(30)

    def log(self, name: str) -> str:
        """What a program said last."""
        try:
            return (self.folder / f"log/{name}.log").read_text(errors="replace")[-3000:]
        except OSError:
            return ""

    def _alive(self, name: str) -> None:
        if self.daemons[name].poll() is not None:
            raise ClusterError(f"{name} ended:\n{self.log(name)}")

    # --- the internet -----------------------------------------------------------------------------------------------

    def _internet(self) -> None:
        folder = self.folder / "wg"

        def key() -> tuple[str, str]:
            private = subprocess.run(["wg", "genkey"], capture_output=True, text=True, check=True).stdout.strip()
            public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True, check=True)
            return private, public.stdout.strip()

        peers = ""
        for host in range(1, CLIENTS + 1):
            private, public = key()
            client = Client(private, f"10.64.12.{30 + host}", f"fc00:bbbb:bbbb:bb01::2:{host:x}")
            self.clients.append(client)
            peers += f"[Peer]\nPublicKey = {public}\nAllowedIPs = {client.address}/32, {client.address6}/128\n"
        self.public: dict[str, str] = {}
        answers = [f"--address=/{name}/{WEB}" for name in ("api.ipify.org", "am.i.mullvad.net", "web.example")]
        dnsmasq = ["dnsmasq", "--keep-in-foreground", "--no-hosts", "--no-resolv", "--bind-interfaces", "--user=root"]
        dnsmasq += ["--conf-file=/dev/null", "--pid-file=", "--log-queries", "--log-facility=-"]
        for number in PROVIDERS:
            private, self.public[number] = key()
            setconf = folder / f"p{number}.setconf"
            setconf.touch(mode=0o600)
            setconf.write_text(f"[Interface]\nPrivateKey = {private}\nListenPort = 51820\n{peers}")
            self.node("sh", "-c", _PROVIDER, "sh", number, str(self.folder))
            inside = ["ip", "netns", "exec", f"p{number}"]
            self.daemon(f"dns-p{number}", *inside, *dnsmasq, f"--listen-address={TUNNEL_DNS}", *answers)
        certificate: list[str | Path] = [build.PKI / "web.crt", build.PKI / "web.key"]
        self.daemon("web", "ip", "netns", "exec", "web", "python3", HERE / "node/web.py", *certificate)
        # The node's resolver: what a cluster's DNS asks on to, and sees what leaks.
        self.daemon("node-dns", *dnsmasq, f"--listen-address={NODE}", "--except-interface=lo", *answers)

    def config(self, client: int, provider: str = "51") -> str:
        """A provider's file for one of the keys. client: 0 to CLIENTS - 1."""
        private, address, address6 = self.clients[client]
        return (
            f"[Interface]\nPrivateKey = {private}\nAddress = {address}/32, {address6}/128\nDNS = {TUNNEL_DNS}\n\n"
            f"[Peer]\nPublicKey = {self.public[provider]}\nAllowedIPs = 0.0.0.0/0, ::/0\n"
            f"Endpoint = 203.0.113.{provider}:51820\n"
        )

    def silence(self, provider: str) -> None:
        """The provider answers no more: its WireGuard packets are dropped, both ways."""
        rules = "chain i { type filter hook input priority 0; udp dport 51820 drop; };"
        rules += " chain o { type filter hook output priority 0; udp sport 51820 drop; };"
        self.inside(f"p{provider}", "nft", f"table inet silent {{ {rules} }}")

    def unsilence(self, provider: str) -> None:
        self.inside(f"p{provider}", "nft", "delete", "table", "inet", "silent")

    # --- the control plane ------------------------------------------------------------------------------------------

    def _openssl(self, *argv: str) -> None:
        ended = subprocess.run(["openssl", *argv], cwd=self.folder / "pki", capture_output=True, text=True, check=False)
        if ended.returncode:
            raise ClusterError(f"openssl {argv[0]}: {ended.stderr.strip()}")

    def _authority(self) -> None:
        """Certificates, and each program's way to the API server."""
        new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        self._openssl("genrsa", "-out", "sa.key", "2048")
        self._openssl("rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub")
        self._openssl("req", "-x509", *new, "-days", "30", "-subj", "/CN=lab", "-keyout", "ca.key", "-out", "ca.crt")
        names = f"IP:127.0.0.1,IP:{NODE},IP:{API},DNS:kubernetes.default.svc,DNS:kubernetes.default,DNS:localhost"
        subjects = {
            "apiserver": "/CN=kube-apiserver",
            "webhook": "/CN=webhook",
            "admin": "/O=system:masters/CN=admin",
            "apiserver-to-kubelet": "/O=system:masters/CN=apiserver-to-kubelet",
            "kube-controller-manager": "/CN=system:kube-controller-manager",
            "kube-scheduler": "/CN=system:kube-scheduler",
            "kube-proxy": "/CN=system:kube-proxy",
            "kubelet": "/O=system:nodes/CN=system:node:node1",
        }
        for name, subject in subjects.items():
            usage = f"subjectAltName={names}" if name in ("apiserver", "webhook") else "extendedKeyUsage=clientAuth"
            (self.folder / f"pki/{name}.ext").write_text(usage)
            self._openssl("req", *new, "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
            signed = ["-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", f"{name}.ext"]
            self._openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-days", "30", "-out", f"{name}.crt")
            access = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [
                    {
                        "name": "c",
                        "cluster": {"server": f"https://{NODE}:6443", "certificate-authority": self.pki("ca.crt")},
                    }
                ],
                "users": [
                    {
                        "name": "u",
                        "user": {
                            "client-certificate": self.pki(f"{name}.crt"),
                            "client-key": self.pki(f"{name}.key"),
                        },
                    }
                ],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
                "current-context": "x",
            }
            Path(self.pki(f"{name}.conf")).write_text(json.dumps(access))

    def pki(self, name: str) -> str:
        return str(self.folder / "pki" / name)

    def _control_plane(self) -> None:
        store = "http://127.0.0.1:2379"
        options = ["--listen-client-urls", store, "--advertise-client-urls", store, "--unsafe-no-fsync"]
        options += ["--listen-peer-urls", "http://127.0.0.1:2380", "--log-level", "warn"]
        self.daemon("etcd", BIN / "etcd", "--data-dir", self.folder / "etcd", *options)
        self.start_apiserver()
        # Both of these end when the API server does not answer yet.
        for name in ("kube-controller-manager", "kube-scheduler"):
            access = self.pki(f"{name}.conf")
            flags = dict.fromkeys(("kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"), access)
            flags["leader-elect"] = "false"
            if name == "kube-controller-manager":
                flags["service-account-private-key-file"] = self.pki("sa.key")
                flags["root-ca-file"] = self.pki("ca.crt")
                flags["use-service-account-credentials"] = "true"
            self.daemon(name, BIN / name, *(f"--{flag}={value}" for flag, value in flags.items()))

    def start_apiserver(self) -> None:
        """And wait until it is ready. After stop("apiserver"), too."""
        flags = {
            "etcd-servers": "http://127.0.0.1:2379",
            "advertise-address": NODE,
            "service-cluster-ip-range": f"{SERVICES},{SERVICES6}",
            "allow-privileged": "true",
            "authorization-mode": "Node,RBAC",
            "enable-admission-plugins": "NodeRestriction",
            "client-ca-file": self.pki("ca.crt"),
            "tls-cert-file": self.pki("apiserver.crt"),
            "tls-private-key-file": self.pki("apiserver.key"),
            "service-account-issuer": "https://kubernetes.default.svc",
            "service-account-key-file": self.pki("sa.pub"),
            "service-account-signing-key-file": self.pki("sa.key"),
            "kubelet-client-certificate": self.pki("apiserver-to-kubelet.crt"),
            "kubelet-client-key": self.pki("apiserver-to-kubelet.key"),
            "kubelet-preferred-address-types": "InternalIP",
        }
        self.daemon("apiserver", BIN / "kube-apiserver", *(f"--{name}={value}" for name, value in flags.items()))

        def ready() -> bool:
            self._alive("apiserver")
            return self.try_kubectl("get", "--raw", "/readyz") is not None

        wait_until(ready, "the API server is ready", WAIT_AT_MOST)

    # --- the node ---------------------------------------------------------------------------------------------------

    def _worker(self) -> None:
        state = self.folder / "containerd"
        # Without CAP_SYS_RESOURCE, which containers like this machine may lack, no sandbox could lower its score.
        (self.folder / "containerd.toml").write_text(
            f"""\
version = 2
root = "{state}"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{build.PAUSE}"
  disable_hugetlb_controller = true
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{build.CNI.parent}"
    conf_dir = "{self.folder}/cni"
"""
        )
        local = {
            "type": "host-local",
            "dataDir": str(self.folder / "addresses"),
            "ranges": [[{"subnet": PODS}], [{"subnet": PODS6}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        plugins = [{"type": "ptp", "ipMasq": False, "ipam": local}]
        plugins += [{"type": "portmap", "capabilities": {"portMappings": True}}]
        network = {"cniVersion": "0.4.0", "name": "pods", "plugins": plugins}
        (self.folder / "cni/10-ptp.conflist").write_text(json.dumps(network))
        (self.folder / "kubelet.yaml").write_text(json.dumps(self._kubelet()))
        proxy = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.pki("kube-proxy.conf")},
            "hostnameOverride": "node1",
            "mode": "nftables",
            # Else the primary address alone, which is not the uplink's here.
            "nodePortAddresses": ["0.0.0.0/0", "::/0"],
            "clusterCIDR": "10.42.0.0/16,fd42::/56",
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        }
        (self.folder / "proxy.yaml").write_text(json.dumps(proxy))
        self.start_containerd()
        for name in (build.PAUSE, build.BUSYBOX, build.CURL, build.PRODUCT, build.OLDER):
            if build.image_file(name).exists():
                self.ctr("images", "import", str(build.image_file(name)))
        self.start_kubelet()
        self.daemon("kube-proxy", BIN / "kube-proxy", "--config", self.folder / "proxy.yaml")

        def ready() -> bool:
            self._alive("kubelet")
            return "True" in (self.try_kubectl("get", "node", "node1", "-o", _READY) or "")

        wait_until(ready, "the node is ready", WAIT_AT_MOST)
        account = ("get", "serviceaccount", "default")
        wait_until(lambda: self.try_kubectl(*account), "the default service account", WAIT_AT_MOST)

    def _kubelet(self) -> dict[str, Any]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,  # refused by default since 1.35
            "cgroupDriver": "cgroupfs",  # containerd 1.6 cannot tell it
            "cgroupRoot": f"/{self.group}",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "failSwapOn": False,
            "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": self.pki("ca.crt")}},
            "authorization": {"mode": "Webhook"},
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "resolvConf": "/etc/resolv.conf",
            # The images were imported, and no registry has them.
            "imageMinimumGCAge": "24h",
            "imageGCHighThresholdPercent": 100,
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            # A changed Secret arrives at once, not after a minute and a half.
            "syncFrequency": "5s",
            "configMapAndSecretChangeDetectionStrategy": "Watch",
        }

    def start_containerd(self) -> None:
        self.daemon("containerd", "containerd", "--config", self.folder / "containerd.toml")
        wait_until(lambda: self.ctr("version", check=False), "containerd answers", WAIT_AT_MOST)

    def start_kubelet(self) -> None:
        flags = [f"--config={self.folder}/kubelet.yaml", f"--kubeconfig={self.pki('kubelet.conf')}"]
        self.daemon("kubelet", BIN / "kubelet", *flags, "--hostname-override=node1", f"--node-ip={NODE},{NODE6}")
        healthy = ("busybox", "wget", "-q", "-O", "-", "http://127.0.0.1:10248/healthz")
        wait_until(lambda: self.node(*healthy, check=False) == "ok", "the kubelet is healthy", WAIT_AT_MOST)

    def ctr(self, *argv: str, check: bool = True) -> str:
        socket = ["--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io"]
        return self.node("ctr", *socket, *argv, check=check)

    def process(self, pod: str, container: str) -> int | None:
        """The process of a container, or of the pod's sandbox (container ""), as the node numbers it."""
        labels = {"kubernetes.pod.name": pod, "cri-containerd.kind": "container" if container else "sandbox"}
        if container:
            labels["kubernetes.container.name"] = container
        which = ",".join(f'labels."io.{name}"=={value}' for name, value in labels.items())
        names = set(self.ctr("containers", "list", "--quiet", which).split())
        for line in self.ctr("tasks", "list").splitlines()[1:]:
            name, pid, state = line.split()
            if name in names and state == "RUNNING":
                return int(pid)
        return None

    def kill(self, pod: str, container: str) -> None:
        """SIGKILL, as the kernel does it when memory is short. container "": the pod's sandbox."""
        pid = wait_until(lambda: self.process(pod, container), f"{pod}/{container} runs", 30)
        self.node("kill", "-9", str(pid))

    # --- the cluster's DNS ------------------------------------------------------------------------------------------

    def _names(self) -> None:
        """CoreDNS on the node, and a Service in front of it: what pods see is the same as with pods of it."""
        access = self.pki("admin.conf")
        (self.folder / "Corefile").write_text(
            f"""\
.:53 {{
    bind {NODE_DNS}
    errors
    log
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig {access}
        pods insecure
        fallthrough in-addr.arpa ip6.arpa
    }}
    forward . {NODE}
}}
"""
        )
        self.daemon("coredns", BIN / "coredns", "-conf", self.folder / "Corefile")
        ports = [{"name": each.lower(), "port": 53, "protocol": each} for each in ("UDP", "TCP")]
        spec = {"clusterIP": DNS, "ports": ports, "ipFamilyPolicy": "SingleStack"}
        self.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "kube-dns", "namespace": "kube-system"},
                "spec": spec,
            },
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {
                    "name": "kube-dns-node",
                    "namespace": "kube-system",
                    "labels": {"kubernetes.io/service-name": "kube-dns"},
                },
                "addressType": "IPv4",
                "endpoints": [{"addresses": [NODE_DNS]}],
                "ports": ports,
            },
        )

    # --- kubectl ----------------------------------------------------------------------------------------------------

    @property
    def environment(self) -> dict[str, str]:
        """For a shell on the node in which somebody types kubectl."""
        return {**os.environ, "KUBECONFIG": self.pki("admin.conf"), "PATH": f"{BIN}:{os.environ['PATH']}"}

    def run(
        self, *argv: str, cwd: Path | None = None, stdin: str | None = None, timeout: float = 180
    ) -> subprocess.CompletedProcess[str]:
        """A program that talks to the cluster, whatever it ends with; it sees the machine's files."""
        return subprocess.run(
            ["nsenter", f"--net=/proc/{self.first}/ns/net", "--", *argv],
            cwd=cwd,
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def kubectl(self, *arguments: str, stdin: str | None = None, timeout: float = 180) -> str:
        """The output of a kubectl command that has to succeed."""
        ended = self.run("kubectl", *arguments, stdin=stdin, timeout=timeout)
        if ended.returncode:
            raise ClusterError(f"kubectl {' '.join(arguments)}: {(ended.stderr or ended.stdout).strip()}")
        return ended.stdout

    def try_kubectl(self, *arguments: str, stdin: str | None = None) -> str | None:
        """The same, and None when it fails."""
        ended = self.run("kubectl", *arguments, stdin=stdin)
        return None if ended.returncode else ended.stdout

    def apply(self, *documents: Any) -> None:
        """Documents, or the text of a YAML file."""
        for document in documents:
            text = document if isinstance(document, str) else json.dumps(document)
            self.kubectl("apply", "-f", "-", stdin=text)

    def get(self, *arguments: str) -> Any:
        """An object, or None when there is none."""
        found = self.try_kubectl("get", *arguments, "-o", "json")
        return json.loads(found) if found else None

    def pods(self, namespace: str, *selector: str) -> list[Any]:
        found: list[Any] = self.get("pods", "--namespace", namespace, *selector)["items"]
        return found

    def ready(self, namespace: str, pod: str) -> bool:
        """Is this pod Ready, and not about to end?"""
        found = self.get("pod", pod, "--namespace", namespace)
        return bool(found) and is_ready(found)

    def wait_ready(self, namespace: str, pod: str, timeout: float = 90) -> None:
        try:
            wait_until(lambda: self.ready(namespace, pod), f"{pod} is ready", timeout)
        except ClusterError as error:
            raise ClusterError(f"{error}\n{self.story(namespace, pod)}") from None

    def story(self, namespace: str, pod: str) -> str:
        """What there is to be said of a pod that is not as it should be."""
        told = self.run("kubectl", "--namespace", namespace, "describe", "pod", pod).stdout[-2500:]
        logs = ("logs", pod, "--all-containers", "--prefix", "--tail=15")
        return told + self.run("kubectl", "--namespace", namespace, *logs).stdout[-3000:]

    def logs(self, namespace: str, pod: str, container: str, *more: str) -> str:
        return self.kubectl("logs", pod, "--namespace", namespace, "--container", container, *more)

    def namespace(self, name: str, labels: dict[str, str] | None = None) -> str:
        """A namespace that may have pods with NET_ADMIN."""
        labels = {"pod-security.kubernetes.io/enforce": "privileged", **(labels or {})}
        self.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
        account = ("get", "serviceaccount", "default", "--namespace", name)
        wait_until(lambda: self.try_kubectl(*account), "the namespace's service account", 30)
        return name

    def secret(self, namespace: str, name: str, files: dict[str, str]) -> None:
        metadata = {"name": name, "namespace": namespace}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": files})


_READY = 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'


def is_ready(pod: Any) -> bool:
    if "deletionTimestamp" in pod["metadata"]:
        return False
    conditions = pod.get("status", {}).get("conditions", [])
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def commands(readme: str, heading: str) -> list[str]:
    """The first block of shell commands below a heading of a README, line by line."""
    _, _, below = readme.partition(f"\n{heading}\n")
    found = re.search(r"```sh\n(.*?)```", below, re.DOTALL)
    if not found:
        raise ClusterError(f"no commands below {heading}")
    return [line for line in found[1].splitlines() if line and not line.startswith("#")]


def restarts(pod: Any, container: str) -> int:
    """How often a container of a pod was started again."""
    statuses: Iterable[Any] = [
        *pod["status"].get("initContainerStatuses", []),
        *pod["status"].get("containerStatuses", []),
    ]
    return sum(each["restartCount"] for each in statuses if each["name"] == container)
