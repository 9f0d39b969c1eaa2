# shellcheck shell=dash disable=SC2034,SC3045,SC2154
# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the tests of stock guests, in the emulated host: TAP, and a guest. A
# test's first argument is how it runs: private or ordinary.
# shellcheck source=lab/host/stock.sh
. /opt/stock.sh

mode=${1:-private}
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
# skip WHAT WHY
skip() {
	tests=$((tests + 1))
	echo "ok $tests - $1 # SKIP $2"
}
is() { [ "$2" = "$3" ]; check $? "$1" "is $2, not $3"; }
finish() {
	echo "1..$tests"
	[ "$failed" = 0 ]
	exit
}
give_up() {
	check 1 "$1" "$(cat qemu.log; tail -n 40 console.log)"
	finish
}
if [ "$mode" = private ] && ! has_switch; then
	echo "1..0 # SKIP this QEMU has no $switch"
	exit 4
fi

# works WHAT COMMAND: in the guest
works() { in_guest "$2"; check $? "$1" "$output"; }
# says WHAT COMMAND OUTPUT
says() { in_guest "$2"; is "$1" "$output" "$3"; }

sum() { sha256sum <"$1" | cut -d' ' -f1; }

# off WHAT: the guest has had no trouble, powers off, and QEMU ends
off() {
	in_guest faults
	is "$1: nothing wrong in the guest's log" "$output" ""
	echo "poweroff -f" >&4
	wait "$pid"
	is "$1: QEMU ends" $? 0
	# The emulated host has three CPUs.
	is "$1: QEMU has no complaints" "$(grep -v 'exceeds the recommended cpus' qemu.log)" ""
	exec 4<&- 5<&- 6<&- 7<&-
	: >console.log
}
hmp() { qmp human-monitor-command "\"command-line\": \"$1\""; }

# private: MiB of the guest's memory
private() {
	qmp query-private-memory
	echo $(($(number private) >> 20))
}
# disk NAME MEGABYTES: an empty one
disk() { rm -f "$1"; truncate -s "$2M" "$1"; }
