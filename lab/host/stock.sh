# shellcheck shell=dash disable=SC3045,SC2034,SC2154
# SPDX-License-Identifier: GPL-2.0-only
# Sourced in the emulated host: a stock guest, which does what it is told, and its
# QEMU's monitor. $mode is "private", wholly private by one switch of QEMU's;
# "protected", from QEMU as well, by another; or "ordinary", for comparison. Who calls has give_up MESSAGE, see guest.sh.
# shellcheck source=lab/host/guest.sh
. /opt/guest.sh

cr=$(printf '\r')

# stock KERNEL OPTION...: a guest of that kernel, see lab/build-stock, with $memory,
# $cpus and, on its command line, $append; if protected, with the host's key $key.
# $patience: seconds for it to come up, or to do what it is told
memory=512M cpus=1 patience=300 append='' key=''
stock() {
	local machine=q35
	kernel=$1
	shift
	case $mode in
	private) machine=$machine,private-memory-isolation=on ;;
	protected) machine=$machine,private-memory-protected=on${key:+,private-memory-key=$key} ;;
	esac
	[ -e agent.in ] || mkfifo agent.in agent.out
	[ -e qmp.in ] || mkfifo qmp.in qmp.out
	exec 4<>agent.in 5<>agent.out 6<>qmp.in 7<>qmp.out
	/opt/qemu/qemu-system-x86_64 -L /opt/qemu -nodefaults -display none -accel kvm \
		-cpu "$cpu" -machine "$machine" -m "$memory" -smp "$cpus" \
		-kernel "/opt/stock/vmlinuz-$kernel" -initrd "/opt/stock/initrd-$kernel" \
		-append "$(words)" \
		-serial file:console.log -chardev pipe,id=agent,path=agent -serial chardev:agent \
		-chardev pipe,id=qmp,path=qmp -mon qmp,mode=control "$@" >qemu.log 2>&1 &
	pid=$!
	qmp qmp_capabilities
}

# words: its command line
words() { echo "console=ttyS0 quiet panic=-1 $append"; }

# compute INITRD: $measurement, to $computed, for $kernel and $append, without KVM: from
# machine.launch, the log of a launch with any
compute() {
	computed=$(guestseal-measure -k "/opt/stock/vmlinuz-$kernel" -i "$1" -a "$(words)" machine.launch 2>&1)
}

# up: wait for the guest
up() {
	while next 5 "$patience"; do
		case $next in
		"stock "*) return ;;
		esac
	done
	give_up "the guest does not come up"
}

# in_guest COMMAND: there; its output goes to $output
in_guest() {
	echo "$1" >&4
	output=
	while next 5 "$patience"; do
		next=${next%"$cr"}
		case $next in
		"= "*) return "${next#= }" ;;
		esac
		output="$output${output:+
}$next"
	done
	give_up "the guest does not end: $1"
}

# The emulated host is 10.0.0.1 on a network with one guest, which gets 10.0.0.2.
# network: QEMU's options for it go to $net
network() {
	mkdir -p /dev/net
	[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
	ip link set lo up
	tunctl -t tap0 >/dev/null
	ip addr add 10.0.0.1/24 dev tap0 2>/dev/null # it is there after an earlier test
	ip link set tap0 up
	cat >udhcpd.conf <<-END
		start 10.0.0.2
		end 10.0.0.2
		interface tap0
		lease_file $PWD/leases
		pidfile $PWD/udhcpd.pid
		option subnet 255.255.255.0
	END
	: >leases
	udhcpd -f udhcpd.conf >udhcpd.log 2>&1 &
	net="-netdev tap,id=net,ifname=tap0,script=no,downscript=no -device virtio-net-pci,netdev=net,romfile="
}

# page OPTION...: have one from its TLS server; OPTIONs are OpenSSL's
page() {
	local tries=100
	until printf 'GET / HTTP/1.0\r\n\r\n' | timeout 60 /opt/stock/openssl/run s_client -ign_eof -showcerts \
		-connect 10.0.0.2:443 "$@" >page 2>tls.log && grep -q 'Ciphers supported' page
	do
		[ $((tries -= 1)) != 0 ] || return
		sleep 1
	done
}

# address: have the guest get it
address() {
	in_guest 'ip link set lo up; ip link set eth0 up; udhcpc -i eth0 -n -q -t 20 -T 1 -s /bin/lease 2>&1; ip -4 addr show eth0 | grep -q "inet 10.0.0.2/"'
}
