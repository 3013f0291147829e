"""The seams to the kernel and to other programs: netlink, WireGuard, nft, processes, the lock."""
