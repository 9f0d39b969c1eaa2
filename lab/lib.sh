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
# A rebuild after a change of tree, or in another clone, costs what has changed.
export CCACHE_DIR=${CCACHE_DIR:-$CACHE/ccache} CCACHE_MAXSIZE=${CCACHE_MAXSIZE:-5G}
# The makes of the two trees are not our make's children.
unset MAKEFLAGS MFLAGS MAKELEVEL
mkdir -p "$DOWNLOADS" "$BUILD" "$CACHE/locks" "$CACHE/logs" "$CACHE/times"

say() { printf '%s\n' "$*"; }
warn() { printf 'warning: %s\n' "$*" >&2; }

# die WHAT [ADVICE...]
die() {
	printf 'error: %s\n' "$1" >&2
	shift
	[ $# = 0 ] || printf '  %s\n' "$@" >&2
	exit 1
}

# lock NAME: held until the script ends; a second make waits.
lock() {
	exec 9>"$CACHE/locks/$1"
	flock -n 9 && return
	say "waiting for another make to finish with $1 ..."
	flock 9
}

# pin TREE KEY: the rest of the line that starts with KEY in pins/TREE.
pin() { awk -v k="$2" '$1 == k { $1 = ""; sub(/^ +/, ""); print }' "$ROOT/pins/$1"; }

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

# --- long steps ---------------------------------------------------------

clock() { printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); }

step_label() {
	case $1 in
	fetch-*) echo '[1/6]' ;;
	import-*) echo '[2/6]' ;;
	kernel*) echo '[3/6]' ;;
	qemu) echo '[4/6]' ;;
	selftests|tools) echo '[5/6]' ;;
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
		(set -e; "$@") 2>&1 9>&- | tee "$log"
		status=${PIPESTATUS[0]}
		set -e
	else
		"$@" >"$log" 2>&1 </dev/null 9>&- &
		pid=$!
		trap 'kill $pid 2>/dev/null' INT TERM
		watch_step
		wait "$pid" || status=$?
		trap - INT TERM
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
	local line count wait=0
	sleep 0.1
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
