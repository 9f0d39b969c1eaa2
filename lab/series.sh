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
# The series is in topics, each of which could be sent and taken apart: a folder
# patches/NN-NAME with the topic's patches and its cover letter, cover.txt. In
# the tree an empty commit "topic: NAME" stands before the first patch of each
# topic, where rebase, autosquash and reordering keep it.
#
# Everything works on git's objects and an index of its own, so a developer's
# working tree, and with it every timestamp make looks at, stays as it is.

series_dir() { case $1 in linux) echo "$ROOT/kernel" ;; qemu) echo "$ROOT/qemu" ;; esac; }

# What the series is made of, in one hash. Cover letters make no commits.
series_key() {
	local tree=$1 dir=${2-$(series_dir "$1")}
	{
		tree_git "$tree" rev-parse base
		if [ -d "$dir/patches" ]; then
			cd "$dir" || exit
			find patches files -type f ! -path 'patches/*/cover.txt' -print0 2>/dev/null |
				sort -z | xargs -0r sha256sum
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

# Paths a patch file creates; paths it has diffs for.
creates() { awk '/^diff --git / { exit } dashes && /^ create mode / { print $4 } /^---$/ { dashes = 1 }' "$1"; }
diffs() { sed -n 's,^diff --git a/.* b/,,p' "$1"; }

# Topics: their folders in DIR, in order; the name without the number.
topic_dirs() { find "$1/patches" -mindepth 1 -maxdepth 1 -type d 2>/dev/null | LC_ALL=C sort; }
topic_name() { basename "$1" | sed 's/^[0-9]*-//'; }

# count_patches TREE COMMIT
count_patches() { tree_git "$1" log --format=%s "base..$2" | grep -vc '^topic: ' || :; }

# topics_of TREE COMMIT: for each topic a line "NAME FIRST LAST", the mark and
# the last patch. Dies if a commit's topic can't be told.
topics_of() {
	local tree=$1 hash subject name='' mark='' last=base fix
	declare -A seen=()
	fix="put it right: cd $CACHE/$tree && git rebase -i base"
	while read -r hash subject; do
		case $subject in
		'topic: '*)
			[ -z "$name" ] || [ "$last" != "$mark" ] ||
				die "topic \"$name\" has no patches" "drop its mark, $(short "$mark"); $fix"
			[ -z "$name" ] || echo "$name $mark $last"
			name=${subject#topic: } mark=$hash
			[[ $name =~ ^[a-z0-9][a-z0-9-]*$ ]] ||
				die "\"$name\" can't be a topic: $(short "$hash")" \
					"letters a to z, digits and dashes make a name; $fix"
			[ -z "${seen[$name]-}" ] ||
				die "topic \"$name\" begins twice: $(short "${seen[$name]}") and $(short "$hash")" \
					"a topic's patches follow each other; $fix"
			seen[$name]=$hash
			[ "$(tree_git "$tree" rev-parse "$hash^{tree}")" = \
				"$(tree_git "$tree" rev-parse "$last^{tree}")" ] ||
				die "the mark \"$subject\", $(short "$hash"), changes files" \
					"a fixup that was meant for a patch? $fix"
			;;
		*)
			[ -n "$name" ] ||
				die "no topic: $(short "$hash") $subject" \
					"an empty commit marks where one begins:" \
					"  git commit --allow-empty -m 'topic: NAME'" \
					"$fix"
			;;
		esac
		last=$hash
	done < <(tree_git "$tree" log --reverse --format='%H %s' "base..$2")
	[ -n "$name" ] || return 0
	[ "$last" != "$mark" ] || die "topic \"$name\" has no patches" "drop its mark, $(short "$mark"); $fix"
	echo "$name $mark $last"
}
short() { echo "${1::12}"; }

# build_series TREE: make the series' commits, print the id of the last.
build_series() (
	tree=$1
	dir=$(series_dir "$tree")
	work=$(mktemp -d)
	trap 'rm -rf "$work"' EXIT
	git() { tree_git "$tree" "$@"; }
	commit=$(git rev-parse base)

	shopt -s nullglob
	patches=("$dir"/patches/*/*.patch)

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
	topic=
	for i in "${!patches[@]}"; do
		patch=${patches[i]}
		if [ "${patch%/*}" != "$topic" ]; then
			topic=${patch%/*}
			commit=$(echo "topic: $(topic_name "$topic")" |
				GIT_AUTHOR_NAME=guestseal GIT_AUTHOR_EMAIL=guestseal@localhost \
				GIT_AUTHOR_DATE=2026-01-01T00:00:00Z \
					git commit-tree "$(git write-tree)" -p "$commit")
		fi
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
	local tree=$1 commit=$2 out=$3 topics nr=0 name mark last patch path
	topics=$(topics_of "$tree" "$commit") || return
	mkdir -p "$out/patches" "$out/files"
	[ -n "$topics" ] || return 0
	while read -r name mark last; do
		nr=$((nr + 1))
		tree_git "$tree" format-patch -q -o "$out/patches/$(printf '%02d-%s' $nr "$name")" \
			--no-numbered --zero-commit --no-signature --full-index --no-renames \
			--no-ext-diff --no-cover-letter "$mark..$last"
	done <<<"$topics"
	for patch in "$out"/patches/*/*.patch; do
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
