"""The set-up of server mode, and what its volume holds; pure."""
