# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# tools/guestseal-measure: what it makes of launch logs and pages, and what it refuses.
# shellcheck source=tests/lab/fixture
. "$REAL/tests/lab/fixture"

# le BYTES NUMBER...: little endian
le() {
	local bytes=$1 number i
	shift
	for number in "$@"; do
		for ((i = 0; i < bytes; i++)); do
			# shellcheck disable=SC2059 # it is the format
			printf "\\x$(printf %02x $((number >> 8 * i & 255)))"
		done
	done
}

zeros() { head -c "$1" /dev/zero; }
content() { head -c 4096 < <(yes "$1"); }

# record TYPE, with the data from standard input
record() {
	cat >"$T/data"
	le 4 "$1" "$(stat -c %s "$T/data")"
	cat "$T/data"
}

# page GPA CONTENT, as QEMU has it in its log
page() { { le 8 "$1"; content "$2"; } | record 256; }

# digest GPA CONTENT, as it is measured
digest() {
	# shellcheck disable=SC2059 # it is the format
	{ le 8 "$1"; printf "$(content "$2" | sha384 | sed 's/../\\x&/g')"; } | record 13
}

# start VERSION; memory is private from 0 to 8 MiB
head_records() {
	{ printf 'guestseal launch'; le 4 "$1" 0; } | record 1
	zeros 48 | record 2
	{ le 8 0 0x800000; le 4 1 0; } | record 3
	zeros 32 | record 4
	zeros 28 | record 5
	zeros 144 | record 6
	# what follows isn't aligned
	zeros 577 | record 11
	zeros 16 | record 12
}

end() { record 14 </dev/null; }

measure() {
	[ -e "$T/measure" ] || gcc -std=gnu11 -D_GNU_SOURCE -fsanitize=address,undefined -fno-sanitize-recover=all -I "$T/include" -o "$T/measure" "$REAL/tools/guestseal-measure.c"
	"$T/measure" "$@" >"$T/said" 2>&1
}

headers() {
	mkdir -p "$T/include/asm"
	cp "$REAL/kernel/files/arch/x86/include/uapi/asm/kvm_measurement.h" "$T/include/asm"
}

# bzimage FILE: a setup of two sectors, then the kernel, two pages
bzimage() {
	{ zeros 497; le 1 1; zeros 16; printf HdrS; le 2 0x20f; zeros 9; le 1 1; zeros 26; le 4 0x7fffffff; zeros 8; le 4 255; } >"$1"
	# the jump that says where the header ends
	le 1 0x6a | dd of="$1" bs=1 seek=513 conv=notrunc status=none
	truncate -s 1024 "$1"
	{ content k; content l; } >>"$1"
}

sha384() { sha384sum | cut -d' ' -f1; }

test_pages_are_sorted_and_zeros_left_out() {
	headers
	{ head_records 1; end; } >"$T/log"
	{ page 0x3000 c; page 0x1000 x; { le 8 0x2000; zeros 4096; } | record 256; page 0x1000 a; } >"$T/pages"
	measure -o "$T/stream" "$T/log" "$T/pages"
	[ "$(cat "$T/said")" = "$({ head_records 1; digest 0x1000 a; digest 0x3000 c; end; } | sha384)" ]
	[ "$(cat "$T/said")" = "$(sha384 <"$T/stream")" ]
	content b >"$T/b"
	measure -d 0x1000-0x2000 -l "0x4000=$T/b" "$T/stream"
	[ "$(cat "$T/said")" = "$({ head_records 1; digest 0x3000 c; digest 0x4000 b; end; } | sha384)" ]
	measure -p "$T/stream"
	said "page 0x3000 $(content c | sha384)"
	said 'range 0-0x800000 private'
}

test_linux_takes_the_place_of_another() {
	headers
	bzimage "$T/vmlinuz"
	content i >"$T/initrd"
	{ head_records 1; page 0x10000 p; page 0x20000 cmdline; page 0x100000 old; page 0x102000 old; page 0x700000 old; end; } >"$T/launch"
	measure -p -k "$T/vmlinuz" -i "$T/initrd" -a quiet "$T/launch"
	said "page 0x20000 $({ printf quiet; zeros 4091; } | sha384)"
	said "page 0x100000 $(content k | sha384)"
	said "page 0x101000 $(content l | sha384)"
	said "page 0x7d6000 $(content i | sha384)"
	[ "$(grep -c ^page "$T/said")" = 5 ]
	fails measure -k "$T/initrd" "$T/launch"
	said 'is not a bzImage'
}

test_what_is_refused() {
	headers
	{ head_records 2; end; } >"$T/other"
	fails measure "$T/other"
	said 'version 2 of the measurement is not known'
	echo >"$T/short"
	fails measure "$T/short"
	said 'part of a record'
	page 0x1000 a >"$T/pages"
	fails measure "$T/pages"
	said 'no end'
	{ head_records 1; digest 0x10000 p; end; } >"$T/digests"
	fails measure -k "$T/short" "$T/digests"
	said 'no boot parameters'
	{ head_records 1; page 0x800000 a; end; } >"$T/outside"
	fails measure "$T/outside"
	said 'no private memory at 0x800000'
	{ head_records 1; end; } >"$T/log"
	fails measure -d 0x1000-0x2000x "$T/log"
	fails measure -d 0x1000 "$T/log"
	fails measure -l "0x1001=$T/log" "$T/log"
	fails measure -l 0x1000 "$T/log"
	measure "$T/log"
	fails eval "'$T/measure' '$T/log' >/dev/full"
}

# Whatever is in the files: it says what it doesn't like, or comes to an end, and touches
# nothing but its own memory.
test_any_input() {
	headers
	bzimage "$T/vmlinuz"
	content i >"$T/initrd"
	{ head_records 1; page 0x10000 p; page 0x20000 cmdline; page 0x700000 old; end; } >"$T/log"
	measure -k "$T/vmlinuz" -i "$T/initrd" "$T/log"
	ASAN_OPTIONS=detect_leaks=0 python3 "$REAL/tests/lab/any_input.py" "$T"
}
