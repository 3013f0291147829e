"""Values that everything speaks of: the pod's state, a WireGuard device, sets of networks, secrets. Pure."""
