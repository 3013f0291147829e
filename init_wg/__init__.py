"""Leak-proof WireGuard egress for a pod: seal, create the tunnel, route, verify, exit."""

__version__ = "0.1.0"
