# shellcheck shell=dash disable=SC2154
# SPDX-License-Identifier: GPL-2.0-only
# Sourced by the demo's parts, in the emulated host: a report, with a column each for an
# ordinary and a private $kind, memory or guest; or TAP, if called with "tap". In a
# directory of its own.

cd "$(mktemp -d)" || exit
form=${1:-report}
kind=memory

checks=0 bad=0
# check OK WHAT ORDINARY PRIVATE: what came of it in either
check() {
	local mark='' word=ok
	checks=$((checks + 1))
	[ "$1" = 0 ] || { bad=$((bad + 1)); mark='  <-- WRONG'; word='not ok'; }
	if [ "$form" = tap ]; then
		echo "$word $checks - $2: ordinary $kind: $3, private $kind: $4"
	else
		row "$2" "$3" "$4$mark"
	fi
}
row() { printf '  %-40s %-24s %s\n' "$@"; }
# heading WHAT [ORDINARY PRIVATE]
heading() {
	[ "$form" = tap ] || { echo; row "$1" "${2-ordinary $kind}" "${3-private $kind}"; }
}
say() { [ "$form" = tap ] && echo "# $*" || echo "$*"; }
give_up() {
	local what="${mode:+$mode guest: }$*"
	say "$what"
	tail -n 20 qemu.log guest.log console.log 2>/dev/null
	[ "$form" != tap ] || echo "Bail out! $what"
	exit 1
}
# finish CLAIM: the end, after the report's last words, which come in. Exit status 0 if
# all was as it should be, which is what CLAIM says.
finish() {
	if [ "$form" = tap ]; then
		echo "1..$checks"
	else
		cat
		if [ $bad = 0 ]; then
			echo "All $checks checks held: $1."
		else
			echo "$bad of $checks checks did NOT hold."
		fi
	fi
	[ $bad = 0 ]
	exit
}
