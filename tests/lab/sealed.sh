# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# tools/sealing_key, tools/host_key and tools/open_sealed, with what they aren't meant for:
# without KVM, and with stubs of cryptsetup and the msr module.
# shellcheck source=tests/lab/fixture
. "$REAL/tests/lab/fixture"


# tool NAME: tools/NAME.c, in which /dev/cpu/0/msr is a file where each byte has a place of
# its own, unlike MSRs
tool() {
	[ -e "$T/bin/$1" ] || sed "s,/dev/cpu/0/msr,$T/msr," "$REAL/tools/$1.c" |
		gcc -std=gnu11 -D_GNU_SOURCE -fsanitize=address,undefined -fno-sanitize-recover=all -x c -o "$T/bin/$1" -
}
key=$((0x4b564d90))
# It would trace what can't be traced.
export ASAN_OPTIONS=detect_leaks=0

test_sealing_key() {
	tool sealing_key
	fails sealing_key
	said 'is the module msr loaded?'
	fails sealing_key one two
	said usage
	: >"$T/msr"
	fails sealing_key measurement
	said 'no protected guest'
	# all but the last byte
	truncate -s $key "$T/msr"
	printf '0123456789ab' >>"$T/msr"
	fails sealing_key
	[ "$(cat "$T/said")" = "sealing_key: there is no sealing key: $(cut -d: -f3- "$T/said" | cut -c2-)" ]
	printf c >>"$T/msr"
	sealing_key >"$T/key"
	[ "$(cat "$T/key")" = 0123456712345678234567893456789a456789ab56789abc ]
	fails eval 'sealing_key >/dev/full'
	fails eval 'sealing_key >&-'
	fails eval 'sealing_key measurement >/dev/full'
	sealing_key -d
	[ "$(tail -c 13 "$T/msr" | tr '\0' .)" = ........89abc ]
}

test_host_key() {
	tool host_key
	fails host_key logon
	said usage
	head -c 32768 /dev/zero >"$T/long"
	fails eval "host_key logon guestseal:test <'$T/long'"
	said 'too long'
	fails eval 'host_key logon guestseal:test <&-'
	said 'standard input'
	fails eval 'host_key logon guestseal:test </'
	said 'standard input'
	fails eval 'host_key "" guestseal:test </dev/null'
	said 'add_key'
	# Some of them would be taken for keyrings.
	local bad
	for bad in -4 0 '' ' 5' +5 5x 0x5 x 2147483648 4294967292 18446744073709551612 99999999999999999999; do
		fails host_key -r "$bad"
		said "'$bad' is not the serial number of a key"
		fails host_key -p 3f "$bad"
		said "'$bad' is not the serial number of a key"
	done
	for bad in -1 '' z 3fx 40000000 100000001; do
		fails host_key -p "$bad" 2147483647
		said "'$bad' is not what keys permit"
	done
	fails host_key -r
	said usage
	fails host_key -x 5
	said usage
	fails host_key -r 2147483647
	said KEYCTL_REVOKE
	# from a pipe, in parts
	fails eval '{ echo a; sleep 0.1; head -c 32767 /dev/zero; } | host_key logon guestseal:test'
	said 'too long'
}

# A header as cryptsetup prints it, shorter
header='{
  "keyslots":{ "0":{ "type":"luks2", "key_size":64,
      "af":{ "type":"luks1", "stripes":4000, "hash":"sha256" },
      "area":{ "type":"raw", "offset":"32768", "encryption":"aes-xts-plain64", "key_size":64 },
      "kdf":{ "type":"argon2id", "time":4, "memory":1048576, "cpus":4, "salt":"ysRi+B/X=" } } },
  "tokens":{},
  "segments":{ "0":{ "type":"crypt", "offset":"16777216", "size":"dynamic", "iv_tweak":"0",
      "encryption":"aes-xts-plain64", "sector_size":4096 } },
  "digests":{ "0":{ "type":"pbkdf2", "keyslots":[ "0" ], "segments":[ "0" ], "hash":"sha256" } },
  "config":{ "json_size":"12288", "keyslots_size":"16744448" }
}'

# stubs: of what open_sealed runs. The host changes the disk as soon as it has been read.
stubs() {
	stub sealing_key <<-END
		[ "\${1-}" = -d ] && { echo forgotten >>"$T/log"; exit; }
		printf KEY
	END
	stub cryptsetup <<-END
		case \$1 in
		luksHeaderBackup) cp "$T/disk" "\$3"; echo evil >"$T/disk" ;;
		luksDump) [ "\$2" = --dump-json-metadata ] && cat "\$3" ;;
		open)
			echo "\$* \$(cat)" >>"$T/log"
			while [ "\$1" != --header ]; do shift; done
			cmp "\$2" "$T/good" ;;
		esac
	END
}

# opened HEADER: what comes of a disk with that
opened() {
	stubs
	: >"$T/log"
	printf '%s\n' "$1" | tee "$T/good" >"$T/disk"
	sh "$REAL/tools/open_sealed" /dev/disk name >"$T/said" 2>&1
}

test_open_sealed() {
	opened "$header" || { cat "$T/said"; return 1; }
	grep -q '^open .*/dev/disk name .*KEY$' "$T/log"
	[ "$(tail -n 1 "$T/log")" = forgotten ]
	fails sh "$REAL/tools/open_sealed" /dev/disk
}

test_open_sealed_refuses() {
	local bad=(
		"${header/'"encryption":"aes-xts-plain64", "sector'/'"encryption":"cipher_null-ecb", "sector'}"
		"${header/'"encryption":"aes-xts-plain64", "key'/'"encryption":"cipher_null-ecb", "key'}"
		"${header//aes-xts-plain64/aes-cbc-essiv:sha256}"
		"${header//'"encryption"'/'"other"'}"
		"${header/'"type":"crypt"'/'"type":"linear"'}"
		"${header/'"tokens":{}'/'"tokens":{ "0":{ "type":"luks2-keyring", "keyslots":[ "0" ] } }'}"
		"${header/'"iv_tweak":"0"'/'"iv_tweak":"0", "integrity":{ "type":"none" }'}"
		"${header/'"json_size"'/'"requirements":{ "mandatory":[ "online-reencrypt-v2" ] }, "json_size"'}"
		'' '{'
	) one
	for one in "${bad[@]}"; do
		[ "$one" != "$header" ]
		if opened "$one"; then
			echo "opened: $one"
			return 1
		fi
		[ "$(cat "$T/log")" = forgotten ] || { echo "not forgotten, or opened: $one"; return 1; }
	done
}

# The host may send one from the console.
test_open_sealed_forgets_the_key_after_a_signal() {
	local signal
	for signal in HUP INT QUIT TERM; do
		stubs
		stub cryptsetup <<<"kill -$signal \$PPID"
		rm -f "$T/log"
		# Bash has started its background with some of these ignored; Python starts afresh.
		fails env -i PATH="$PATH" TMPDIR="$TMPDIR" python3 -c 'import signal, subprocess, sys
for s in "HUP", "INT", "QUIT", "TERM": signal.signal(getattr(signal, "SIG" + s), signal.SIG_DFL)
sys.exit(subprocess.call(sys.argv[1:]))' sh "$REAL/tools/open_sealed" /dev/disk name
		[ "$(cat "$T/log")" = forgotten ]
	done
}
