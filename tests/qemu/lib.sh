# shellcheck shell=dash disable=SC2034,SC2154,SC3045
# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the tests of QEMU, in the emulated host: TAP, a guest in which
# guest_secret runs, and its QEMU's monitor.
# shellcheck source=lab/host/guest.sh
. /opt/guest.sh
# shellcheck source=lab/host/tap.sh
. /opt/tap.sh

give_up() {
	check 1 "$1"
	cat qemu.log guest.log console.log 2>/dev/null | sed 's/^/# /'
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
# paused OPTION...: QEMU, with its monitor, which does not run the guest; if set, by $under
paused() {
	[ -e qmp.in ] || mkfifo qmp.in qmp.out
	exec 6<>qmp.in 7<>qmp.out
	# shellcheck disable=SC2086
	${under-} timeout -s KILL 100 /opt/qemu/qemu-system-x86_64 -L /opt/qemu -nodefaults \
		-display none -S -accel kvm "$@" \
		-chardev pipe,id=qmp,path=qmp -mon qmp,mode=control >qemu.log 2>&1 &
	pid=$!
	qmp qmp_capabilities
}
# echo_kernel FILE: a "Linux" that needs no devices but the serial port, and sends back
# what comes from there; with the header of the boot protocol, two sectors, before it
echo_kernel() {
	local at bytes
	head -c 8192 /dev/zero >"$1"
	# sectors, signatures, version 2.12, LOADED_HIGH, and how long the command line may be
	while read -r at bytes; do
		# shellcheck disable=SC2059
		printf "$bytes" | dd of="$1" bs=1 seek="$at" conv=notrunc 2>/dev/null
	done <<-'END'
		497 \001
		510 \125\252\353\146HdrS\014\002
		529 \001
		556 \377\377\377\067
		568 \377\007\000\000
		1024 \271\000\000\001\000\342\376
		1031 \146\272\375\003\354\250\001\164\360
		1040 \146\272\370\003\354\356\353\350
	END
	# mov $0x10000, %ecx; loop .
	# mov $0x3fd, %dx; in; test $1, %al; je to the start
	# mov $0x3f8, %dx; in; out; jmp to the start
}
# refuse PATTERN OPTION...: QEMU does not start, and says why in $lines, one if not set
refuse() {
	local pattern=$1
	shift
	timeout -s KILL 100 /opt/qemu/qemu-system-x86_64 -L /opt/qemu -nodefaults \
		-display none -S "$@" >qemu.log 2>&1 </dev/null
	[ $? = 1 ] && [ "$(wc -l <qemu.log)" -le "${lines:-1}" ] && grep -q "$pattern" qemu.log
	check $? "$*" "$(head -n 3 qemu.log)"
}

# count: the converted, to private and to shared, on request and implicitly;
# failures; and private pages
count() {
	local key
	qmp query-private-memory
	counters=
	for key in to-private to-shared implicit-to-private implicit-to-shared failures; do
		counters="$counters $(number $key)"
	done
	counters="$counters $(($(number private) / 4096))"
}

# does COMMAND REPLY DIFFERENCES: what the converter replies, and how the counters change,
# of which $counters are the last. $what says where.
does() {
	local command=$1 expected="$2: $3" before=$counters number differences=
	ask "$command" "$command"
	count
	# shellcheck disable=SC2086
	set -- $counters
	for number in $before; do
		differences="$differences $(($1 - number))"
		shift
	done
	is "$what: $command" "${line#"$command "}:$differences" "$expected"
}
