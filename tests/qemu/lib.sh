# shellcheck shell=dash disable=SC2034,SC3045
# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the tests of QEMU, in the emulated host: TAP, a guest in which
# guest_secret runs, and its QEMU's monitor.
# shellcheck source=lab/host/guest.sh
. /opt/guest.sh

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
		echo "# ${3-}"
	fi
}
is() { [ "$2" = "$3" ]; check $? "$1" "is $2, not $3"; }

finish() {
	echo "1..$tests"
	[ "$failed" = 0 ]
	exit
}
give_up() {
	check 1 "$1"
	cat qemu.log guest.log 2>/dev/null | sed 's/^/# /'
	finish
}

megabytes=8
stop() {
	qmp quit
	wait "$pid"
	is "$1: QEMU ends" $? 0
	is "$1: QEMU has no complaints" "$(cat qemu.log)" ""
	exec 4<&- 5<&- 6<&- 7<&-
}
# reset: which QEMU does when it has freed private memory. Its event comes before or
# after the reply.
reset() {
	local missing=2
	echo '{"execute": "system_reset"}' >&6
	while [ $missing -gt 0 ]; do
		read -r -t 120 reply <&7 || give_up "QEMU does not reset"
		case $reply in
		*'"return"'*|*'"event": "RESET"'*) missing=$((missing - 1)) ;;
		esac
	done
}
hmp() { qmp human-monitor-command "\"command-line\": \"$1\""; }
