#!/bin/sh
# Builds the pinned wireguard-go into a folder, without C libraries, and beside it `copyright`, the licences of all that
# it is made of. Usage: build.sh FOLDER. Needs `patch` and a Go at least as new as go.mod says, and downloads modules the
# way that Go is set up for. go.mod has the version, go.sum the checksum of each module, and each *.patch says why it is
# here and when to delete it.
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off GOFLAGS=
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp go.mod go.sum "$work"
for change in *.patch; do
	cp "$change" "$work"
done
cd "$work"
go mod vendor
for change in *.patch; do
	patch --quiet --fuzz=0 --strip=1 --directory=vendor/golang.zx2c4.com/wireguard <"$change"
done
go build -mod=vendor -trimpath -buildvcs=false -ldflags='-s -w' -o wireguard-go golang.zx2c4.com/wireguard
awk '$1 == "#" { print $2, $3 }' vendor/modules.txt | while read -r module version; do
	printf '%s %s\n\n' "$module" "$version"
	cat "vendor/$module/LICENSE"
	echo
done >copyright
printf '%s\n\n' "$(go version)" >>copyright
cat "$(go env GOROOT)/LICENSE" >>copyright 2>/dev/null || cat /usr/share/doc/golang-*-go/copyright >>copyright
mv copyright "$folder/copyright"
mv wireguard-go "$folder/wireguard-go.new"
mv "$folder/wireguard-go.new" "$folder/wireguard-go" # last, and at once: where it is, it is whole
