"""Functions of the C library that Python has no word for."""

from __future__ import annotations


def call(name: str, *arguments: int) -> bool:
    """Call a function with whole numbers. False where the C library has no such function.

    By what lies under `ctypes`: that module and `sysconfig`, which it imports since Python 3.14, define types of C for
    0.3 to 0.5 MiB. The watchdog would keep them for three calls at its start.
    """
    try:
        import _ctypes

        itself = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # NULL: this process
        _ctypes.call_function(_ctypes.dlsym(itself, name), arguments)
    except (ImportError, OSError, AttributeError):
        return False
    return True
