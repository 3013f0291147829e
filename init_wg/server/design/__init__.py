"""What server mode sets up, and what its volume holds; pure."""
