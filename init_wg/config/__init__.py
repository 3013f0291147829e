"""A wg-quick file and the environment -> validated values."""
