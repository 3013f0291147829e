"""Sealing, observing, applying, connecting: the commands at work."""
