# shellcheck shell=dash
# SPDX-License-Identifier: GPL-2.0-only
# Sourced by tests in the emulated host: TAP, of checks in a directory of their own.

cd "$(mktemp -d)" || exit
tests=0 failed=0

# check STATUS WHAT [DETAILS]
check() {
	tests=$((tests + 1))
	if [ "$1" = 0 ]; then
		echo "ok $tests - $2"
	else
		failed=$((failed + 1))
		echo "not ok $tests - $2"
		printf '%s\n' "${3-}" | sed 's/^/# /'
	fi
}
is() { [ "$2" = "$3" ]; check $? "$1" "is $2, not $3"; }
finish() {
	echo "1..$tests"
	[ "$failed" = 0 ]
	exit
}
