#!/bin/sh
# Builds the pinned wireguard-go into a folder, without C libraries, and beside it `copyright`, the licences of all that
# it is made of. Usage: build.sh FOLDER. Needs the Go that go.mod names, and downloads modules the way that Go is set
# up for; go.sum has the checksum of each.
set -eu
mkdir -p "$1"
folder=$(cd "$1" && pwd)
cd "$(dirname "$0")"
export CGO_ENABLED=0 GOTOOLCHAIN=local GOWORK=off
program=golang.zx2c4.com/wireguard
go build -mod=readonly -trimpath -buildvcs=false -ldflags='-s -w' -o "$folder/wireguard-go.new" "$program"
go list -mod=readonly -deps -f '{{with .Module}}{{.Path}} {{.Version}} {{.Dir}}{{end}}' "$program" | sort -u |
	while read -r module version source; do
		printf '%s %s\n\n' "$module" "$version"
		cat "$source/LICENSE"
		echo
	done >"$folder/copyright"
printf '%s\n\n' "$(go version)" >>"$folder/copyright"
cat "$(go env GOROOT)/LICENSE" >>"$folder/copyright" 2>/dev/null || cat /usr/share/doc/golang-*-go/copyright >>"$folder/copyright"
mv "$folder/wireguard-go.new" "$folder/wireguard-go"
