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

# exchange WHAT KIND ADDRESS: the guest sends its /tmp/data to the host, and the host
# to-guest to the guest, at once, through a connection to ADDRESS. See tools/stream.c
exchange() {
	local sent tries=30
	in_guest "sha256sum </tmp/data; stream $2 listen 1000 </tmp/data >/tmp/received 2>/tmp/stream.log &"
	sent=$output
	until stream "$2" "$3" 1000 <to-guest >received 2>stream.log || [ $((tries -= 1)) = 0 ]; do
		usleep 300000
	done
	[ "$tries" -gt 0 ] || give_up "$1: $(cat stream.log)"
	is "$1 to the host" "$(sum received)  -" "$sent"
	says "$1 to the guest" "wait; cat /tmp/stream.log; sha256sum </tmp/received" "$(sum to-guest)  -"
}

# can_load KERNEL: a guest that has its own kernel and initrd, to load them
can_load() {
	kernel_size=$(stat -c %s "/opt/stock/vmlinuz-$1") initrd_size=$(stat -c %s "/opt/stock/initrd-$1")
	kernel_sum=$(sum "/opt/stock/vmlinuz-$1") initrd_sum=$(sum "/opt/stock/initrd-$1")
	stock "$1" -drive "if=none,id=kernel,file=/opt/stock/vmlinuz-$1,format=raw,readonly=on" \
		-device virtio-blk-pci,drive=kernel \
		-drive "if=none,id=initrd,file=/opt/stock/initrd-$1,format=raw,readonly=on" \
		-device virtio-blk-pci,drive=initrd
	up
	kernel_files
}
# kernel_files: from its disks, of whole sectors, to /tmp
kernel_files() {
	in_guest "there /dev/vda; there /dev/vdb; head -c $kernel_size /dev/vda >/tmp/kernel; head -c $initrd_size /dev/vdb >/tmp/initrd; cd /tmp; sha256sum kernel initrd; cd /"
	is "kernel and initrd, from its disks" "$output" "$kernel_sum  kernel
$initrd_sum  initrd"
}
