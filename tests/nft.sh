#!/bin/sh
# Unpacks the nft of other Debian releases, installing nothing: .cache/nft/RELEASE/bin/nft runs with its own libraries.
# Usage: tests/nft.sh RELEASE...; needs root's apt and the network the first time only.
set -eu
cd "$(dirname "$0")/.."
KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
# nft, and all that it is linked with.
PACKAGES="nftables libnftables1 libnftnl11 libmnl0 libjansson4 libedit2 libc6 libxtables12 libgmp10 libtinfo6 libbsd0 libmd0"

unpack() (
	release=$1
	root=$PWD/.cache/nft/$release
	[ ! -x "$root/bin/nft" ] || exit 0
	rm -rf "$root"
	mkdir -p "$root/lists/partial" "$root/archives/partial" "$root/bin"
	echo "deb [signed-by=$KEYRING] http://deb.debian.org/debian $release main" >"$root/sources.list"
	set -- -q -o Dir::Etc::SourceList="$root/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State="$root" \
		-o Dir::State::status=/dev/null -o Dir::Cache="$root" -o Acquire::Languages=none -o APT::Sandbox::User=root
	apt-get "$@" update >/dev/null
	# shellcheck disable=SC2086  # a list of package names
	(cd "$root/archives" && apt-get "$@" download $PACKAGES >/dev/null)
	for package in "$root"/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
	rm -rf "$root/etc" "$root/usr/share"
	loader=$(find "$root/" -name 'ld-linux*.so.*' | head -n 1)
	libraries=$(find "$root/" -name '*.so.*' -exec dirname {} + | sort -u | paste -s -d :)
	printf '#!/bin/sh\nexec %s --library-path %s %s "$@"\n' "$loader" "$libraries" "$root/usr/sbin/nft" >"$root/nft"
	rm -rf "$root/archives" "$root/lists" "$root"/*cache.bin
	chmod +x "$root/nft" && "$root/nft" --version >&2
	mv "$root/nft" "$root/bin/nft" # last: what is there is whole
)

for release in "$@"; do unpack "$release"; done
