#!/bin/sh
# What pytest does not run of the Go client: form, vet, and its tests, with the race detector where there is a C compiler.
set -eu
cd "$(dirname "$0")/.."

if ! go mod download; then
    echo "the Go client is not tried: what it depends on cannot be had" >&2
    [ "${REQUIRE_CLIENTS:-}" != 1 ]
    exit
fi
unformed=$("$(go env GOROOT)/bin/gofmt" -l .)
[ -z "$unformed" ] || { echo "gofmt would change: $unformed" >&2; exit 1; }
go vet ./...
if [ "$(go env CGO_ENABLED)" = 1 ] && command -v "$(go env CC)" >/dev/null; then
    go test -race ./...
else
    echo "there is no C compiler: the tests of the Go client run without the race detector" >&2
    go test ./...
fi
