#!/bin/sh
# Installs what a bare Debian 12 lacks, once, and makes .venv. Usage: tests/prepare.sh [debian-package ...]
# Not root, or no apt: it only makes .venv and names what is missing.
set -eu
cd "$(dirname "$0")/.."

# Debian's python3 can make no environment without this; others can.
python3 -c 'import ensurepip' 2>/dev/null || set -- "$@" python3-venv

# `go`: a Go that is new enough for image/wireguard-go, from apt where this machine has none. Debian 12's is too old.
case " $* " in
*" go "*)
	packages=
	for package in "$@"; do [ "$package" = go ] || packages="$packages $package"; done
	# shellcheck disable=SC2086  # a list of package names
	set -- $packages
	wanted=$(sed -n 's/^go //p' image/wireguard-go/go.mod)
	offered=$(apt-cache policy golang-go 2>/dev/null | sed -n 's/^ *Candidate: //p')
	if ! PATH="$PATH:/usr/local/go/bin" command -v go >/dev/null && dpkg --compare-versions "${offered:-0}" ge "2:${wanted%.*}"; then
		set -- "$@" golang-go
	fi
	;;
esac

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

# The image's wireguard-go, where there is a Go to build it: the lab takes it from there. WIREGUARD_GO=debian: not that.
built=.cache/wireguard-go/wireguard-go
case "${WIREGUARD_GO:-image} $* " in
"image "*" wireguard-go "*)
	if [ ! -e "$built" ] || [ -n "$(find image/wireguard-go -newer "$built")" ]; then
		rm -f "$built"
		mkdir -p .cache
		if ! PATH="$PATH:/usr/local/go/bin" command -v go >/dev/null; then
			echo "wireguard-go: Debian's, which moves half as much as the image's; there is no Go to build that one" >&2
		elif ! PATH="$PATH:/usr/local/go/bin" image/wireguard-go/build.sh .cache/wireguard-go >.cache/wireguard-go.log 2>&1; then
			echo "wireguard-go: Debian's, which moves half as much; .cache/wireguard-go.log says why the image's was not built" >&2
		fi
	fi
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
