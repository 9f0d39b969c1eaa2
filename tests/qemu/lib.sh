# shellcheck shell=dash disable=SC3045,SC2034
# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the tests of QEMU, in the emulated host: TAP, a guest in which
# guest_secret runs, and its QEMU's monitor. All talk goes through pipes.

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

qemu() { /opt/qemu/qemu-system-x86_64 -L /opt/qemu -nodefaults -display none "$@"; }

# start OPTION...: QEMU with a guest
start() {
	[ -e guest.in ] || mkfifo guest.in guest.out qmp.in qmp.out
	exec 4<>guest.in 5<>guest.out 6<>qmp.in 7<>qmp.out
	: >guest.log
	qemu -accel kvm -cpu host -smp 2 \
		-kernel /opt/guest/bzImage -initrd /opt/guest/initramfs \
		-append "console=ttyS0 quiet reboot=t run=guest_secret,8" \
		-chardev pipe,id=guest,path=guest -serial chardev:guest \
		-chardev pipe,id=qmp,path=qmp -mon qmp,mode=control "$@" >qemu.log 2>&1 &
	pid=$!
	qmp qmp_capabilities
	hear hello
}
stop() {
	qmp quit
	wait "$pid"
	is "$1: QEMU ends" $? 0
	is "$1: QEMU has no complaints" "$(cat qemu.log)" ""
	exec 4<&- 5<&- 6<&- 7<&-
}

# qmp COMMAND [ARGUMENTS]: its reply goes to $reply
qmp() {
	echo "{\"execute\": \"$1\", \"arguments\": {${2-}}}" >&6
	while read -r -t 100 reply <&7; do
		case $reply in
		*'"return"'*|*'"error"'*) return ;;
		esac
	done
	give_up "QEMU does not reply to $1"
}
hmp() { qmp human-monitor-command "\"command-line\": \"$1\""; }
# number KEY: in $reply, QMP's ("KEY": 1) or HMP's (\nKEY: 1)
number() { printf '%s\n' "$reply" | sed -n "s/.*\(\"\|\\\\n\)$1\"*: \([0-9]*\).*/\2/p"; }

# say WORD REPLY: to guest_secret, and wait for its reply
say() {
	echo "$1" >&4
	hear "$2"
}
hear() {
	while read -r -t 100 line <&5; do
		echo "$line" >>guest.log
		case $line in
		"$1"*) return ;;
		esac
	done
	give_up "the guest does not say $1"
}
