# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Sourced after lib.sh and series.sh: what moves pins, or may remove a tree.

# own_work TREE: what would go with $CACHE/TREE, and how to save it; nothing if
# it holds only the series.
own_work() {
	local head
	read -r _ head < <(recorded "$1")
	[ "$(tree_git "$1" rev-parse HEAD)" = "$head" ] ||
		echo "commits that are in no patch: make refresh saves them"
	[ -z "$(tree_git "$1" status --porcelain)" ] ||
		echo "edits that are not committed: commit them, then make refresh saves them"
	[ -z "$(tree_git "$1" rev-list -n 1 --exclude=old-base --exclude=guestseal-old \
		--branches --glob='refs/stas[h]' --not HEAD base)" ] ||
		echo "commits on other branches, or stashed: git branch, git stash list"
}

# may_remove TREE: stop unless nothing would be lost.
may_remove() {
	local lost
	[ -d "$CACHE/$1/.git" ] || return 0
	mapfile -t lost < <(own_work "$1")
	[ ${#lost[@]} = 0 ] || die "$CACHE/$1 would be replaced or removed, but has work of yours" \
		"${lost[@]}" "or move the folder away"
}

# move_pin OLD NEW [PACKAGE]: standard input, a file like those in pins/, with
# another version of PACKAGE, or of all packages that have the version OLD; sums
# that are to be found out become "-". File names go by the version without
# epoch; what is imported by that, too, or by the upstream part for a tarball.
move_pin() {
	local old=${1#*:} new=${2#*:}
	awk -v old="$1" -v new="$2" -v package="${3-}" -v oldp="$old" -v newp="$new" \
		-v oldu="${old%-*}" -v newu="${new%-*}" '
		function swap(s, a, b, i) {
			i = index(s, a)
			return i ? substr(s, 1, i - 1) b substr(s, i + length(a)) : s
		}
		/^(deb|src) / {
			number++
			if ($3 == old && (package == "" || $2 == package)) {
				if (number == 1)
					base = 1
				file = $4
				$0 = swap($0, old, new)
				$0 = swap($0, file, swap(file, $1 == "src" ? oldu : oldp, $1 == "src" ? newu : newp))
				sub(/[0-9a-f]+$/, "-")
			}
		}
		base && /^import / { $0 = index($0, oldp) ? swap($0, oldp, newp) : swap($0, oldu, newu) }
		base && /^base / { sub(/[0-9a-f]+$/, "-") }
		{ print }'
}

# fill_sums PINS: write down the sums of what was fetched for "-".
fill_sums() {
	local file sum
	awk '/^(deb|src) / && $5 == "-" { print $4 }' "$1" | while read -r file; do
		sum=$(sha256sum <"$DOWNLOADS/$file" | cut -d' ' -f1)
		awk -v file="$file" -v sum="$sum" '$4 == file { sub(/-$/, sum) } { print }' "$1" >"$1.new"
		mv "$1.new" "$1"
	done
}

# fill_base PINS ID: the same for the commit that import has made.
fill_base() { sed -i "s/^\(base  *\)-\$/\1$2/" "$1"; }

# other_base TREE: the version that is imported, if it is not the pinned one.
other_base() {
	[ "$(pin "$1" import)" = "$(sed -n 's/^import *//p' "$ROOT/pins/$1")" ] ||
		awk '/^(deb|src) / { print $3; exit }' "$(pins "$1")"
}

# moved_pins TREE: a line for each package of which Debian no longer has the
# pinned version, so that lab/fetch has taken another. That of headers has another
# name, too, but the same place in the file.
moved_pins() {
	awk '!/^(deb|src) / { next }
		NR == FNR { package[++pinned] = $2; version[pinned] = $3; next }
		++n && (package[n] != $2 || version[n] != $3) {
			print $2 " " $3 " instead of " (package[n] == $2 ? "" : package[n] " ") \
				version[n] ", which Debian no longer has"
		}' "$ROOT/pins/$1" "$(pins "$1")"
}
