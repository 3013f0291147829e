"""What must be there, and in which order it comes about. Pure."""
