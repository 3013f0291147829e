"""Node mode, without I/O: from what is there and what is asked for to the one table."""
