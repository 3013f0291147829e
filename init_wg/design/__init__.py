"""The state that must be there, and the order in which it comes about. Pure."""
