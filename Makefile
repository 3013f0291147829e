# Every target does its own set-up on a fresh machine (root and apt for what needs the network).
PY := .venv/bin/python
TOOLS := python3-venv nftables iproute2 wireguard-go wireguard-tools tcpdump iputils-ping

.PHONY: check test

check: .venv/.prepared
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

.venv/.prepared: pyproject.toml constraints.txt
	tests/prepare.sh
