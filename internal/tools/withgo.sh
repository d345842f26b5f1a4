#!/bin/sh
# Runs a command with a Go on PATH that can build Lethe:
#
#   sh internal/tools/withgo.sh COMMAND [ARGUMENT]...
#
# A Go of 1.21 or later fetches the toolchain that go.mod asks for by itself.
# An older one, such as that of Debian 12 or Ubuntu 22.04, is used to fetch the
# same toolchain as a module. Where there is none at all, the distribution's
# package is installed first.
set -eu

want=1.26
release=go1.26.0 # as in go.mod

say() { echo "withgo: $*" >&2; }

# minor prints the second part of the version of the Go on PATH, 0 without one.
minor() {
	if command -v go >/dev/null 2>&1; then
		GOTOOLCHAIN=local go version | sed -n 's/.*go1\.\([0-9]*\).*/\1/p'
	else
		echo 0
	fi
}

install() {
	for sudo in "" "sudo -n"; do
		if [ -z "$sudo" ] && [ "$(id -u)" != 0 ]; then continue; fi
		say "installing the package golang-go"
		if $sudo apt-get update -qq &&
			$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends golang-go ca-certificates >/dev/null; then
			return 0
		fi
	done
	return 1
}

if [ "$(minor)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
	install || true
fi

have=$(minor)
if [ "$have" -ge "${want#1.}" ]; then
	exec "$@"
fi
if [ "$have" -ge 21 ]; then
	export GOTOOLCHAIN=auto # distributions turn it off
	exec "$@"
fi
if [ "$have" = 0 ]; then
	say "no Go on PATH and none could be installed: install Go $want or later, https://go.dev/doc/install"
	exit 1
fi

module="golang.org/toolchain@v0.0.1-$release.$(go env GOOS)-$(go env GOARCH)"
root="$(go env GOMODCACHE)/$module"
if [ ! -x "$root/bin/go" ]; then
	say "Go 1.$have is too old: fetching $release"
	(cd / && go mod download "$module")
	# A module's files are read-only and not executable.
	chmod -R u+w "$root"
	chmod -R +x "$root/bin" "$root/pkg/tool"
fi
PATH="$root/bin:$PATH"
GOTOOLCHAIN=local
export PATH GOTOOLCHAIN
exec "$@"
