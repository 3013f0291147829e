"""Each way to fail, and the exit code that says so.

The exit codes are an API: the watchdog, `kubectl describe` and people's scripts rely on them.
"""

DONE = 0


class InitWgError(Exception):
    """One clear sentence: what is wrong, where (file:line), and what to do about it. Never a secret."""

    exit_code = 1


class ConfigError(InitWgError):
    """Wrong configuration, environment or usage: trying again without a change is useless."""

    exit_code = 2


class KernelError(InitWgError):
    """The kernel, a permission or a missing program said no."""

    exit_code = 3


class HandshakeError(InitWgError):
    """No server answered in time, or an endpoint's name did not resolve."""

    exit_code = 4


class VerifyError(InitWgError):
    """Everything was applied, but reading it back shows something else."""

    exit_code = 5
