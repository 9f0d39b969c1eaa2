# SPDX-License-Identifier: GPL-2.0-only
# shellcheck shell=bash
# Between a branch of commits in $CACHE/TREE and its series in this
# repository; sourced after lib.sh.
#
# A file that the series creates is kept whole in files/, at its in-tree path.
# The patch that creates it has its message, its hooks into existing files and
# a "create mode" line for it, no body. A later patch that changes the file is
# an ordinary diff: files/ has the last state, and the body the creating patch
# needs is found by taking the later diffs back.
#
# Everything works on git's objects and an index of its own, so a developer's
# working tree, and with it every timestamp make looks at, stays as it is.

series_dir() { case $1 in linux) echo "$ROOT/kernel" ;; qemu) echo "$ROOT/qemu" ;; esac; }

# What the series is made of, in one hash.
series_key() {
	local tree=$1 dir=${2-$(series_dir "$1")}
	{
		tree_git "$tree" rev-parse base
		if [ -d "$dir/patches" ]; then
			cd "$dir" || exit
			find patches files -type f -print0 2>/dev/null | sort -z | xargs -0r sha256sum
			find files -type f -perm -u+x 2>/dev/null | sort
		fi
	} | sha256sum | cut -d' ' -f1
}

# The series and the commit that the tree last agreed on: "KEY COMMIT". A tree
# fresh from import agrees with the empty series.
recorded() {
	cat "$CACHE/$1/.git/guestseal-applied" 2>/dev/null ||
		echo "$(series_key "$1" /nonexistent) $(tree_git "$1" rev-parse base)"
}

# record TREE [KEY]
record() {
	echo "${2-$(series_key "$1" /nonexistent)} $(tree_git "$1" rev-parse HEAD)" \
		>"$CACHE/$1/.git/guestseal-applied"
}

# Does the tree hold nothing but what apply or refresh last left there?
untouched() {
	local head
	read -r _ head < <(recorded "$1")
	[ "$(tree_git "$1" rev-parse HEAD)" = "$head" ] &&
		[ -z "$(tree_git "$1" status --porcelain)" ]
}

# Paths a patch file creates; paths it has diffs for.
creates() { awk '/^diff --git / { exit } dashes && /^ create mode / { print $4 } /^---$/ { dashes = 1 }' "$1"; }
diffs() { sed -n 's,^diff --git a/.* b/,,p' "$1"; }

# build_series TREE: make the series' commits, print the id of the last.
build_series() (
	tree=$1
	dir=$(series_dir "$tree")
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	git() { tree_git "$tree" "$@"; }
	commit=$(git rev-parse base)

	shopt -s nullglob
	patches=("$dir"/patches/*.patch)

	export GIT_INDEX_FILE=$work/bodies
	git read-tree --empty
	if [ -d "$dir/files" ]; then
		find "$dir/files" -type f -printf '%P\n' | while read -r path; do
			mode=100644
			[ ! -x "$dir/files/$path" ] || mode=100755
			echo "$mode $(git hash-object -w --no-filters "$dir/files/$path")	$path"
		done | git update-index --add --index-info
	fi
	for ((i = ${#patches[@]} - 1; i >= 0; i--)); do
		patch=${patches[i]}
		mapfile -t created < <(creates "$patch")
		if [ ${#created[@]} -gt 0 ]; then
			git ls-files -s -- "${created[@]}" >"$work/$i"
			[ "$(wc -l <"$work/$i")" = ${#created[@]} ] ||
				die "${patch##*/} creates a file that $dir/files does not have"
			git update-index --force-remove -- "${created[@]}"
		fi
		mapfile -t changed < <(comm -12 <(git ls-files | sort) <(diffs "$patch" | sort))
		[ ${#changed[@]} = 0 ] ||
			git apply --cached -R --whitespace=nowarn "${changed[@]/#/--include=}" "$patch" ||
			die "${patch##*/} does not fit the bodies in $dir/files"
	done
	[ -z "$(git ls-files)" ] || die "no patch creates" "$(git ls-files)"

	export GIT_INDEX_FILE=$work/index
	git read-tree base
	for i in "${!patches[@]}"; do
		patch=${patches[i]}
		if [ -n "$(diffs "$patch")" ]; then
			git apply --cached --whitespace=nowarn "$patch" || die "${patch##*/} does not apply"
		fi
		[ ! -e "$work/$i" ] || git update-index --add --index-info <"$work/$i"
		git mailinfo --no-scissors "$work/body" /dev/null <"$patch" >"$work/info"
		field() { sed -n "s/^$1: //p" "$work/info"; }
		commit=$({ field Subject; echo; cat "$work/body"; } | git stripspace |
			GIT_AUTHOR_NAME=$(field Author) GIT_AUTHOR_EMAIL=$(field Email) \
			GIT_AUTHOR_DATE=$(field Date) \
				git commit-tree "$(git write-tree)" -p "$commit")
	done
	echo "$commit"
)

# export_series TREE COMMIT DIR: write base..COMMIT to DIR/patches, DIR/files.
export_series() {
	local tree=$1 commit=$2 out=$3 patch path
	mkdir -p "$out/patches" "$out/files"
	tree_git "$tree" format-patch -q -o "$out/patches" --no-numbered --zero-commit \
		--no-signature --full-index --no-renames --no-ext-diff --no-cover-letter \
		"base..$commit"
	for patch in "$out"/patches/*.patch; do
		[ -e "$patch" ] || break
		for path in $(creates "$patch"); do
			mkdir -p "$out/files/${path%/*}"
			tree_git "$tree" show "$commit:$path" >"$out/files/$path"
			case $(tree_git "$tree" ls-tree "$commit" -- "$path") in
			100755*) chmod +x "$out/files/$path" ;;
			esac
		done
		# Of the diffstat only the "create mode" lines stay: the counts
		# would change with every line of a body.
		awk '
			/^diff --git / {
				if (part == "stat") print ""
				part = "diff"
				skip = substr($4, 3) in created
			}
			part == "stat" && / create mode / { created[$4] = 1; print }
			part == "stat" || (part == "diff" && skip) { next }
			{ print }
			part == "" && /^---$/ { part = "stat" }
		' "$patch" >"$patch.new"
		mv "$patch.new" "$patch"
	done
}
