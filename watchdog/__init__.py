"""The long-lived half: serves the health endpoint, notices drift and dead peers, re-runs the setup."""
