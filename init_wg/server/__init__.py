"""Server mode: the other end of the tunnel, for peers of ours. Loaded with WG_MODE=server only."""
