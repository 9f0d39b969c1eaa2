# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Sourced by every lab script: where things are, how they are said, locked
# and timed.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/guestseal
DOWNLOADS=$CACHE/downloads
BUILD=$CACHE/build
JOBS=${JOBS:-$(nproc)}
export ROOT CACHE DOWNLOADS BUILD
export LC_ALL=C.UTF-8
# where mkfs.ext4 and the like are, and Debian's users do not look
export PATH=$PATH:/usr/sbin:/sbin
# A rebuild after a change of tree, or in another clone, costs what has changed.
export CCACHE_DIR=${CCACHE_DIR:-$CACHE/ccache} CCACHE_MAXSIZE=${CCACHE_MAXSIZE:-5G}
# The makes of the two trees are not our make's children.
unset MAKEFLAGS MFLAGS MAKELEVEL

say() { printf '%s\n' "$@"; }
warn() { printf 'warning: %s\n' "$*" >&2; }

# die WHAT [ADVICE...]
die() {
	printf 'error: %s\n' "$1" >&2
	shift
	[ $# = 0 ] || printf '  %s\n' "$@" >&2
	exit 1
}

# make, the kernel's build and QEMU's options have no way to say such paths.
for path in "$ROOT" "$CACHE" "${TMPDIR:-/tmp}"; do
	case $path in
	[!/]*) die "not an absolute path: $path" "set XDG_CACHE_HOME or TMPDIR to one" ;;
	*[[:space:]:,\;\"\'\`\$\#%\&\|\\*\?\<\>\(\)]*)
		die "blanks, and any of :,;\"'\`\$#%&|\\*?<>(), can't be in the path $path" \
			"move this clone, or set XDG_CACHE_HOME or TMPDIR to a path without them" ;;
	esac
done
cache_folders() { mkdir -p "$DOWNLOADS" "$BUILD" "$CACHE/locks" "$CACHE/logs" "$CACHE/times"; }
cache_folders

# --- locks, and the end ---------------------------------------------------

# The locks of all that is built in $BUILD
# shellcheck disable=SC2034 # for who sources this
BUILD_LOCKS=(build-{linux-normal,linux-debug,selftests,tools,qemu,stock,debian,module})

# lock NAME [shared]: held until this script and all it started have ended; a
# second make waits. A script may lock what the one that runs it has locked.
lock() {
	local fd file=$CACHE/locks/$1
	case " ${GUESTSEAL_LOCKS-} " in *" $1 "*) return ;; esac
	while :; do
		exec {fd}>>"$file"
		flock -n ${2:+-s} "$fd" || {
			say "waiting for another make to finish with $1 ..."
			flock ${2:+-s} "$fd"
		}
		# unless it was distclean that had it
		[ ! "$file" -ef "/proc/self/fd/$fd" ] || break
		exec {fd}>&-
		cache_folders
	done
	export GUESTSEAL_LOCKS="${GUESTSEAL_LOCKS-} $1"
}

# For work=$(work_folder): a folder; $work is gone when this script ends.
work_folder() { mktemp -d "${TMPDIR:-/tmp}/guestseal.XXXXXX"; }

# Processes that this script has started, and those that they have.
descendants() {
	cat /proc/[0-9]*/stat 2>/dev/null | awk -v top=$$ -v self="$BASHPID" '
		{ pid = $1; sub(/^.*\) /, ""); state[pid] = $1; parent[pid] = $2 }
		END {
			for (pid in parent) {
				for (p = parent[pid]; p in parent && p != top; p = parent[p]) ;
				if (p == top && state[pid] != "Z" && pid != self && parent[pid] != self)
					print pid
			}
		}'
}

# Bash gets here at once when a signal ends it, and would leave behind whatever
# it waited for: builds and emulated hosts.
finish() {
	local pids pid n
	trap '' HUP INT TERM
	mapfile -t pids < <(descendants)
	kill -TERM "${pids[@]}" 2>/dev/null || :
	for ((n = 0; n < 50; n++)); do
		for pid in "${pids[@]}"; do
			! grep -qs '^[^)]*) [^Z]' "/proc/$pid/stat" || { sleep 0.1; continue 2; }
		done
		break
	done
	[ "$n" -lt 50 ] || kill -KILL "${pids[@]}" 2>/dev/null || :
	[ -z "${work-}" ] || rm -rf "$work"
}
trap finish EXIT

# --- pins and trees ---------------------------------------------------------

# pins TREE: the file that says what is used. pins/TREE does, unless Debian no
# longer has that version: then what lab/fetch has found instead, for as long as
# pins/TREE stays the same.
pins() {
	local instead
	instead=$(pins_instead "$1")
	if [ -e "$instead" ]; then echo "$instead"; else echo "$ROOT/pins/$1"; fi
}
pins_instead() { echo "$CACHE/pins/$1-$(sha256sum <"$ROOT/pins/$1" | cut -c1-12)"; }

# pin TREE KEY: the rest of the line that starts with KEY in there.
pin() { awk -v k="$2" '$1 == k { $1 = ""; sub(/^ +/, ""); print }' "$(pins "$1")"; }

# Git as it is for everybody: no personal configuration, a fixed committer.
tree_git() {
	local tree=$1
	shift
	GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null \
	GIT_COMMITTER_NAME=guestseal GIT_COMMITTER_EMAIL=guestseal@localhost \
	GIT_COMMITTER_DATE=2026-01-01T00:00:00Z \
		command git -C "$CACHE/$tree" "$@"
}

known_tree() {
	case ${1-} in
	linux|qemu) ;;
	*) die "usage: ${0##*/} linux|qemu" ;;
	esac
}

# host_initramfs ROOT COMMAND DIR...: write the emulated host's initramfs to
# standard output: ROOT, which this fills, and DIRs laid over it. COMMAND is the
# script that it runs, if not empty.
host_initramfs() {
	local root=$1 command=$2 dir
	shift 2
	mkdir -p "$root/bin"
	cp "$ROOT/lab/host/init" "$root/init"
	chmod +x "$root/init"
	cp /bin/busybox "$root/bin"
	[ -z "$command" ] || cp "$command" "$root/command"
	for dir in "$root" "$@"; do
		"$ROOT/lab/initramfs" "$dir"
	done
}

# --- long steps ---------------------------------------------------------

clock() { printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); }

step_label() {
	case $1 in
	fetch-*) echo '[1/6]' ;;
	import-*) echo '[2/6]' ;;
	kernel*) echo '[3/6]' ;;
	qemu) echo '[4/6]' ;;
	selftests|tools|module|stock) echo '[5/6]' ;;
	*) echo '[6/6]' ;;
	esac
}

# step NAME UNIT PATTERN ADVICE -- COMMAND...: run a long command with its
# output in a log. PATTERN picks the log lines that count as one UNIT done;
# the best count and time of earlier runs tell how far it has to go. Runs that
# turn out to have nothing to do stay silent.
step() {
	local name=$1 unit=$2 pattern=$3 advice=$4
	shift 5
	local log=$CACHE/logs/$name.log times=$CACHE/times/$name
	local total='' last='' begin=$SECONDS pid status=0
	[ ! -r "$times" ] || read -r total last <"$times"

	if [ -n "${V:-}" ]; then
		set +e
		(set -e; "$@") 2>&1 | tee "$log"
		status=${PIPESTATUS[0]}
		set -e
	else
		"$@" >"$log" 2>&1 </dev/null &
		pid=$!
		watch_step
		wait "$pid" || status=$?
	fi

	local took=$((SECONDS - begin)) count
	count=$(grep -cE -- "$pattern" "$log" || :)
	if [ "$status" != 0 ]; then
		say "$(step_label "$name") $name failed after $(clock $took); the log's last lines:" >&2
		tail -n 20 "$log" | sed 's/^/    /' >&2
		die "$name failed" "log: $log" "$advice"
	fi
	if [ "$count" -gt 0 ]; then
		say "$(step_label "$name") $name  $count $unit  $(clock $took)"
	fi
	if [ "$count" -gt "${total:-0}" ] || [ "$count" = "${total:-0}" ]; then
		[ "$count" = 0 ] || echo "$count $(clock $took)" >"$times"
	fi
}

# Uses step's variables: a status line each second on a terminal, else a
# timestamped line every half minute.
watch_step() {
	local line count wait=0 n
	for n in {1..10}; do
		kill -0 "$pid" 2>/dev/null || return 0
		sleep 0.1
	done
	while kill -0 "$pid" 2>/dev/null; do
		sleep 1
		wait=$((wait + 1))
		count=$(grep -cE -- "$pattern" "$log" || :)
		line="$(step_label "$name") $name  $count${total:+/$total} $unit  $(clock $((SECONDS - begin)))${last:+ (last $last)}"
		if [ -t 1 ]; then
			printf '\r\033[K%s' "$line"
		elif [ $((wait % 30)) = 0 ]; then
			say "$(date +%H:%M:%S) $line"
		fi
	done
	[ ! -t 1 ] || printf '\r\033[K'
}
