# shellcheck shell=dash disable=SC3045,SC2034,SC2154
# SPDX-License-Identifier: GPL-2.0-only
# Sourced in the emulated host: a guest; one in which guest_secret runs, and its
# QEMU's monitor. All talk goes through pipes in the current directory. Who calls
# start has give_up MESSAGE, for when there is no reply.

# A guest's CPU. Without the TSC deadline timer: in the emulated host, it stops after a
# while. The emulated CPU does not tell KVM of XSETBV, and then the guest wonders about
# the size of its state; so without XSAVE, and what needs it.
cpu=host,-tsc-deadline,-xsave,-avx,-avx2,-fma,-f16c

# no_pv_eoi: for where time counts instructions. When its time is up, the emulated CPU
# delivers the interrupt once more that was injected last, also where interrupts are off,
# unless the guest has exited since: it then waits for ever for a lock that it holds
# itself. The end of interrupt is such an exit then, a few hundred instructions later.
no_pv_eoi() { cpu=$cpu,-kvm-pv-eoi; }

# guest COMMANDLINE OPTION...: become QEMU with a guest, COMMANDLINE is its kernel's.
# What that warns of is the end of it.
guest() {
	local commandline=$1
	shift
	exec /opt/qemu/qemu-system-x86_64 -L /opt/qemu -nodefaults -display none \
		-accel kvm -cpu "$cpu" -smp 2 \
		-kernel "${kernel:-/opt/guest/bzImage}" -initrd "${initrd:-/opt/guest/initramfs}" \
		-append "console=ttyS0 quiet panic_on_warn=1 oops=panic $commandline" "$@"
}

# start OPTION...: a guest, of whose memory $megabytes are kept secret; or which
# runs what the first option says instead: run=COMMAND
start() {
	local run="run=guest_secret,$megabytes"
	case ${1-} in
	run=*) run=$1; shift ;;
	esac
	[ -e guest.in ] || mkfifo guest.in guest.out qmp.in qmp.out
	exec 4<>guest.in 5<>guest.out 6<>qmp.in 7<>qmp.out
	: >guest.log
	guest "reboot=t $run" \
		-chardev pipe,id=guest,path=guest -serial chardev:guest \
		-chardev pipe,id=qmp,path=qmp -mon qmp,mode=control "$@" >qemu.log 2>&1 &
	pid=$!
	qmp qmp_capabilities
	[ "${run#run=guest_secret}" = "$run" ] || hear hello
}

# next FD SECONDS: a line from there goes to $next. It is read in a shell that has no
# children: when one ends, busybox's forgets what it has of a line.
next() { next=$(read -r -t "$2" line <&"$1" && printf '%s\n' "$line"); }

# qmp COMMAND [ARGUMENTS]: its reply goes to $reply, events before it to the end of $events
events=''
qmp() {
	echo "{\"execute\": \"$1\", \"arguments\": {${2-}}}" >&6
	while next 7 120; do
		reply=$next
		case $reply in
		*'"return"'*|*'"error"'*) return ;;
		esac
		events="$events$reply"
	done
	give_up "QEMU does not reply to $1"
}
hmp() { qmp human-monitor-command "\"command-line\": \"$1\""; }
# number KEY: in $reply, QMP's ("KEY": 1) or HMP's (\nKEY: 1)
number() { printf '%s\n' "$reply" | sed -n "s/.*\(\"\|\\\\n\)$1\"*: \([0-9]*\).*/\2/p"; }
# measurement: of a protected guest, to $measurement
measurement() {
	qmp query-private-memory
	measurement=$(printf '%s\n' "$reply" | sed -n 's/.*"measurement": "\([0-9a-f]*\)".*/\1/p')
}

# held: KiB, by QEMU and by its memfds: there is no mapping of what is private
held() {
	{
		awk '/^RssAnon:/ { print $2 }' "/proc/$pid/status"
		for file in "/proc/$pid/fd"/*; do
			case $(readlink "$file") in
			/memfd:*) echo $(($(stat -L -c %b "$file") / 2)) ;;
			esac
		done
	} | awk '{ sum += $1 } END { print sum }'
}

# converted NUMBER: wait until $key, of query-private-memory, is that high; the most KiB
# that QEMU holds meanwhile go to $most
converted() {
	local now tries=$((3000 * ${SLOW:-1}))
	most=0
	while
		now=$(held)
		[ "$most" -gt "$now" ] || most=$now
		qmp query-private-memory
		[ "$(number "$key")" -lt "$1" ]
	do
		[ $((tries -= 1)) != 0 ] || give_up "$key does not get to $1: $reply"
		usleep 100000
	done
}

# ask WORD REPLY: of guest_secret, and wait for its reply, which goes to $line
ask() {
	echo "$1" >&4
	hear "$2"
}
hear() {
	while next 5 $((300 * ${SLOW:-1})); do
		line=$next
		echo "$line" >>guest.log
		case $line in
		"$1"*) return ;;
		esac
	done
	give_up "the guest does not say $1"
}
