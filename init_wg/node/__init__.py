"""Node mode: a host VPN and a cluster on one machine. It acts in the machine's own network, and nowhere else."""
