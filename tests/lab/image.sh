# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# tools/run-image: what it finds in disk images, and what it says if it doesn't.
# shellcheck source=tests/lab/fixture
. "$REAL/tests/lab/fixture"
PATH=$PATH:/usr/sbin:/sbin

# kernel VERSION FILE: a header, and no more
kernel() {
	head -c 4096 /dev/zero >"$2"
	printf HdrS | dd of="$2" bs=1 seek=514 conv=notrunc status=none
	printf '\0\4' | dd of="$2" bs=1 seek=526 conv=notrunc status=none
	printf '%s (debian-kernel@lists.debian.org) #1\0' "$1" | dd of="$2" bs=1 seek=1536 conv=notrunc status=none
}

# image TREE FILESYSTEM: GPT with two partitions, the second holds TREE
image() {
	rm -f "$T/disk" "$T/part"
	truncate -s 24M "$T/disk"
	truncate -s 20M "$T/part"
	printf 'label: gpt\nsize=1M\nsize=20M\n' | sfdisk -q "$T/disk"
	case $2 in
	ext4) mkfs.ext4 -q -d "$1" "$T/part" ;;
	vfat)
		mkfs.vfat "$T/part" >/dev/null
		mcopy -s -i "$T/part" "$1"/* :: ;;
	xfs) printf XFSB | dd of="$T/part" conv=notrunc status=none ;;
	esac
	dd if="$T/part" of="$T/disk" bs=1M seek=2 conv=notrunc status=none
}

# with a QEMU that has the switch
run_image() {
	stub qemu <<-'END'
		case "$*" in
		*,help*) printf '  %s=<bool>\n' private-memory-isolation private-memory-protected ;;
		*netdev*help*) echo user ;;
		esac
	END
	TMPDIR=$T "$REAL/tools/run-image" --print --qemu qemu "$@" >"$T/said" 2>&1
}

debian() {
	mkdir -p "$T/tree/boot/grub"
	kernel "$1" "$T/tree/boot/vmlinuz-$1"
	echo initrd >"$T/tree/boot/initrd.img-$1"
	printf 'CONFIG_HYPERV=m\nCONFIG_AMD_MEM_ENCRYPT=y\n' >"$T/tree/boot/config-$1"
	cat >"$T/tree/boot/grub/grub.cfg" <<-END
		menuentry 'Debian GNU/Linux' {
			linux	/boot/vmlinuz-$1 root=PARTUUID=1234 ro console=ttyS0,115200
			initrd	/boot/initrd.img-$1
		}
		menuentry 'an older one' {
			linux	/boot/vmlinuz-1 root=PARTUUID=1234
		}
	END
}

test_grub_in_root_file_system() {
	debian 6.12.118+deb13-cloud-amd64
	image "$T/tree" ext4
	run_image "$T/disk" || { cat "$T/said"; return 1; }
	said 'machine q35,private-memory-isolation=on'
	said "-append 'root=PARTUUID=1234 ro console=ttyS0,115200 swiotlb=8192'"
	said 'format=raw'
	[ "$(cat "$T"/run-image.*/initrd)" = initrd ]
	cmp "$T"/run-image.*/kernel "$T/tree/boot/vmlinuz-6.12.118+deb13-cloud-amd64"
}

test_bounce_buffers() {
	debian 6.12.1
	image "$T/tree" ext4
	run_image --protected --memory 4G --cpus 4 "$T/disk"
	said ' swiotlb=16384'
	run_image --memory 512 --cpus 1 "$T/disk"
	said ' swiotlb=4096'
	run_image --append swiotlb=any "$T/disk"
	said ' swiotlb=any' && said_not ' swiotlb=8192'
	run_image --ordinary "$T/disk"
	said_not ' swiotlb='
	run_image --memory 5g "$T/disk"
	said_not ' swiotlb='
	run_image --memory size=1G "$T/disk"
	said_not ' swiotlb='
	run_image --cpus 8 "$T/disk"
	said_not ' swiotlb='
}

test_protected() {
	debian 6.12.118+deb13-amd64
	image "$T/tree" ext4
	run_image --protected --key logon:guestseal:vm "$T/disk" || { cat "$T/said"; return 1; }
	said 'machine q35,private-memory-protected=on,private-memory-key=logon:guestseal:vm'
	said ' panic=10'
	run_image --protected --append panic=1 "$T/disk" && ! said ' panic=10'
	fails run_image --protected --snapshot "$T/disk"
	fails run_image --key 1 "$T/disk"
	fails run_image --protected --ordinary "$T/disk"
}

# protected_runs REASON... -- OPTION...: with a QEMU that ends with these events, the last
# argument being OPTION...; $T/runs has a line for each time that it was started
protected_runs() {
	: >"$T/runs"
	: >"$T/reasons"
	while [ "$1" != -- ]; do
		echo "$1" >>"$T/reasons"
		shift
	done
	shift
	stub qemu <<-END
		case "\$*" in
		*,help*) echo '  private-memory-protected=<bool>'; exit ;;
		*netdev*help*) echo user; exit ;;
		esac
		echo "\$*" >>"$T/runs"
		for option; do
			case \$option in
			file,id=events,path=*) path=\${option#*path=}; path=\${path%%,input-path=*} ;;
			esac
		done
		case \$path in
		*[!,],[!,]*) echo "a comma in \$path"; exit 1 ;;
		esac
		reasons=\$(sed -n "\$(wc -l <"$T/runs")p" "$T/reasons")
		[ -n "\$reasons" ] || exit 126
		for reason in \$reasons; do
			echo "{\"event\": \"SHUTDOWN\", \"data\": {\"guest\": true, \"reason\": \"\$reason\"}}"
		done >"\${path//,,/,}"
	END
	# There need not be KVM for that.
	sed 's,/dev/kvm,/dev/null,g' "$REAL/tools/run-image" >"$T/bin/run-image"
	chmod +x "$T/bin/run-image"
	mkdir -p "$T/a,b"
	TMPDIR="$T/a,b" run-image --protected --qemu qemu "$T/disk" -- "$@" >"$T/said" 2>&1
}
# runs NUMBER: that often
runs() { [ "$(wc -l <"$T/runs")" = "$1" ] || { cat "$T/said" "$T/runs"; return 1; }; }

test_protected_guest_that_reboots() {
	debian 6.12.118+deb13-amd64
	image "$T/tree" ext4
	protected_runs guest-reset guest-reset guest-shutdown -- || { cat "$T/said"; return 1; }
	runs 3
	[ "$(grep -c 'the guest reboots' "$T/said")" = 2 ]
	protected_runs guest-reset guest-shutdown -- -no-reboot
	runs 1
	protected_runs guest-reset guest-shutdown -- -action panic=none,reboot=shutdown
	runs 1
	protected_runs guest-reset guest-shutdown -- -no-reboot -action reboot=reset
	runs 2
	# QEMU stays, and is told to end.
	protected_runs 'guest-reset host-qmp-quit' guest-shutdown -- -no-shutdown
	runs 1
	# After a reboot, it can't be started any more.
	fails protected_runs guest-reset --
	runs 2
	[ -z "$(ls -A "$T/a,b")" ]
}

test_qcow2() {
	debian 6.12.118+deb13-amd64
	image "$T/tree" ext4
	qemu-img convert -O qcow2 "$T/disk" "$T/disk.qcow2"
	run_image "$T/disk.qcow2"
	said 'format=qcow2'
}

test_bls_on_boot_partition() {
	mkdir -p "$T/tree/loader/entries" "$T/tree/grub2"
	for version in 6.9.1 6.12.3; do
		kernel $version "$T/tree/vmlinuz-$version"
		echo $version >"$T/tree/initrd-$version"
		cat >"$T/tree/loader/entries/id-$version.conf" <<-END
			title $version
			linux /vmlinuz-$version
			initrd /initrd-$version \$tuned_initrd
			options root=UUID=12 \$kernelopts quiet
		END
	done
	printf '# GRUB Environment Block\nkernelopts=one two\n' >"$T/tree/grub2/grubenv"
	image "$T/tree" ext4
	run_image "$T/disk" --append more
	said "-append 'root=UUID=12 one two quiet more console=ttyS0 swiotlb=8192'"
	[ "$(cat "$T"/run-image.*/initrd)" = 6.12.3 ]
	rm -rf "$T"/run-image.*
	image "$T/tree" vfat
	run_image "$T/disk"
	[ "$(cat "$T"/run-image.*/initrd)" = 6.12.3 ]
}

# The first entry is what it is, not filled up from others.
test_entries_without_initrd_or_options() {
	debian 6.12.1
	sed -i '0,/initrd/{/initrd/d}' "$T/tree/boot/grub/grub.cfg"
	sed -i 's,/boot/vmlinuz-1 .*,&\n\tinitrd /boot/initrd.img-6.12.1,' "$T/tree/boot/grub/grub.cfg"
	image "$T/tree" ext4
	run_image "$T/disk"
	said_not '-initrd'
	rm -rf "$T"/run-image.* "$T/tree"
	mkdir -p "$T/tree/loader/entries"
	kernel 6.12.1 "$T/tree/vmlinuz"
	printf a >"$T/tree/a"
	printf b >"$T/tree/b"
	printf 'linux /vmlinuz\ninitrd /a\ninitrd /b\n' >"$T/tree/loader/entries/a.conf"
	image "$T/tree" ext4
	run_image "$T/disk"
	said "-append 'console=ttyS0 swiotlb=8192'"
	[ "$(tr '\0' . <"$T"/run-image.*/initrd)" = a...b... ]
}

test_links_are_followed() {
	debian 6.12.1
	sed -i 's,/boot/vmlinuz-6.12.1,/vmlinuz,' "$T/tree/boot/grub/grub.cfg"
	ln -s boot/vmlinuz-6.12.1 "$T/tree/vmlinuz"
	image "$T/tree" ext4
	run_image "$T/disk"
	said 'Linux 6.12.1 from /vmlinuz'
}

test_kernel_that_is_too_old() {
	debian 6.1.0-56-amd64
	image "$T/tree" ext4
	fails run_image "$T/disk"
	said "6.1.0-56-amd64, can't be wholly private: that takes 6.4"
	run_image --ordinary "$T/disk"
	said 'machine q35 '
}

test_kernel_without_the_interface() {
	debian 6.12.1
	echo CONFIG_AMD_MEM_ENCRYPT=y >"$T/tree/boot/config-6.12.1"
	image "$T/tree" ext4
	fails run_image "$T/disk"
	said 'no CONFIG_HYPERV'
}

test_what_is_missing_in_the_image() {
	mkdir -p "$T/tree"
	image "$T/tree" xfs
	fails run_image "$T/disk"
	said 'its partitions have: unknown, XFS'
	[ ! -e "$(echo "$T"/run-image.*)" ]
	debian 6.12.1
	rm "$T/tree/boot/initrd.img-6.12.1"
	image "$T/tree" ext4
	fails run_image "$T/disk"
	said 'names the initrd /boot/initrd.img-6.12.1, but does not have it'
	truncate -s 1M "$T/empty"
	fails run_image "$T/empty"
	said 'has no partition table'
	fails run_image "$T/nothing"
	said "can't read"
}

test_what_is_missing_on_the_host() {
	debian 6.12.1
	image "$T/tree" ext4
	stub other </dev/null
	fails "$REAL/tools/run-image" --qemu other "$T/disk"
	said 'has no private-memory-isolation'
	fails "$REAL/tools/run-image" --qemu no-such-program "$T/disk"
	said 'there is no no-such-program'
}
