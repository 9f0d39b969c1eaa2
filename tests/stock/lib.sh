# shellcheck shell=dash disable=SC2034,SC3045,SC2154
# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the tests of stock guests, in the emulated host: TAP, and a guest. A
# test's first argument is how it runs: private or ordinary.
# shellcheck source=lab/host/stock.sh
. /opt/stock.sh
# shellcheck source=lab/host/tap.sh
. /opt/tap.sh

mode=${1:-private}

give_up() {
	check 1 "$1" "$(cat qemu.log; tail -n 40 console.log)"
	finish
}

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

# private: MiB of the guest's memory
private() {
	qmp query-private-memory
	echo $(($(number private) >> 20))
}
# disk NAME MEGABYTES: an empty one
disk() { rm -f "$1"; truncate -s "$2M" "$1"; }
