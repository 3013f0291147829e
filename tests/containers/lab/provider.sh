#!/bin/sh
# A WireGuard server in user space that lets its peer out under its own address.
#     provider.sh PRIVATE-KEY-FILE PEER-PUBLIC-KEY TUNNEL-ADDRESS PEER-ADDRESS PORT
set -eu
wireguard-go wg0
wg set wg0 private-key "$1" listen-port "$5" peer "$2" allowed-ips "$4"
ip address add "$3" dev wg0
ip link set wg0 up
nft -f - <<RULES
table ip provider {
	chain out {
		type nat hook postrouting priority srcnat
		oifname "eth0" masquerade
	}
}
RULES
echo ready
exec sleep infinity
