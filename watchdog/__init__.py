"""The long-lived half: serves the health endpoint, notices drift and dead peers, re-runs the setup.

Its modules import each other relatively: `watchdog` is also a distribution on PyPI, so ours is installed from a wheel
under another name, init_wg_watchdog (pyproject.toml). In the checkout and in the image it has both.
"""
