import subprocess


def sh(script: str, namespace: str | None = None) -> str:
    """What `script` prints. The first line of it that fails is an error, and shows what it said."""
    enter = ["ip", "netns", "exec", namespace] if namespace else []
    done = subprocess.run([*enter, "sh", "-euxc", script], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout
