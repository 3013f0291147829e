#!/bin/sh
# Installs what a bare Debian 12 lacks, once, and makes .venv. Usage: tests/prepare.sh [debian-package ...]
# Not root, or no apt: it only makes .venv and names what is missing.
set -eu
cd "$(dirname "$0")/.."

# Debian's python3 can make no environment without this; others can.
python3 -c 'import ensurepip' 2>/dev/null || set -- "$@" python3-venv

missing=
for package in "$@"; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing="$missing $package"
done
if [ -n "$missing" ]; then
	if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
		echo "installing:$missing"
		apt-get update -q >/dev/null
		# shellcheck disable=SC2086  # a list of package names
		DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $missing >/dev/null
	else
		echo "not installed, and only root can:$missing" >&2
	fi
fi

# The image's wireguard-go, where it is asked for and there is a Go to build it: the lab takes it from there.
case "${WIREGUARD_GO:-} $* " in
"image "*" wireguard-go "*)
	built=.cache/wireguard-go/wireguard-go
	if [ ! "$built" -nt image/wireguard-go/go.mod ] && command -v go >/dev/null; then
		image/wireguard-go/build.sh .cache/wireguard-go || rm -f "$built"
	fi
	PATH="$PWD/.cache/wireguard-go:$PATH" command -v wireguard-go | sed 's/^/wireguard-go: /'
	;;
esac

stamp=.venv/.prepared
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ constraints.txt -nt "$stamp" ]; then
	python3 -m venv .venv 2>/dev/null || { rm -rf .venv; python3 -m pip install -q --user --break-system-packages virtualenv; python3 -m virtualenv -q .venv; }
	# A pip of its own: the commands that older ones write import `re`, which takes longer than the lockdown itself.
	.venv/bin/pip install -q --disable-pip-version-check -c constraints.txt pip
	# compat: a path, and no finder that every start has to import; nor the one that setuptools would leave behind.
	PYTHONWARNINGS=ignore .venv/bin/pip install -q --disable-pip-version-check -c constraints.txt --config-settings editable_mode=compat -e '.[dev]'
	.venv/bin/pip uninstall -q -y setuptools 2>/dev/null || true
	# What a wheel calls the folder watchdog/ (pyproject.toml); the command init-wg-watchdog imports it by that name.
	for packages in .venv/lib/python3*/site-packages; do
		ln -sfn "$PWD/watchdog" "$packages/init_wg_watchdog"
	done
	touch "$stamp"
fi
# Also where PYTHONDONTWRITEBYTECODE is set: compiling at every start costs more than the set-up itself.
.venv/bin/python -m compileall -q init_wg watchdog
