# shellcheck shell=bash disable=SC2016
# SPDX-License-Identifier: GPL-2.0-only
# Trees are imported once, whole, and no work in them is lost.
# shellcheck source=tests/lab/fixture
. "$REAL/tests/lab/fixture"

both() { "$ROOT/lab/import" linux && "$ROOT/lab/apply" linux; }
change_series() { sed -i 's/^+more/+still more/' "$PATCH"; }

test_import_and_apply() {
	both
	grep -qx more "$CACHE/linux/mm/a.c"
	[ "$(linux log --format=%s)" = $'mm: Say more\ntopic: more\nImport linux-source-6.12 6.12.1-1' ]
}

# The second of two first ones would delete what the first one had made.
test_two_imports_at_once() {
	local first
	stub xz <<-END
		echo >>"$T/unpacked"
		touch "$T/unpacking"
		until [ -e "$T/go" ]; do sleep 0.05; done
		exec /usr/bin/xz "\$@"
	END
	both >"$T/first" 2>&1 &
	first=$!
	until_true test -e "$T/unpacking"
	both >"$T/second" 2>&1 &
	until_true grep -q 'waiting for another make to finish with linux' "$T/second"
	touch "$T/go"
	wait "$first"
	wait $!
	[ "$(wc -l <"$T/unpacked")" = 1 ]
	grep -qx more "$CACHE/linux/mm/a.c"
}

test_interrupted_import_starts_over() {
	stub xz <<-END
		/usr/bin/xz "\$@" | head -c 10
		kill -KILL \$PPID
	END
	fails "$ROOT/lab/import" linux
	[ ! -e "$CACHE/linux.new" ]
	stub xz <<-END
		touch "$T/unpacking"
		sleep 1000
	END
	"$ROOT/lab/import" linux &
	until_true test -e "$T/unpacking"
	kill $!
	wait $! || :
	[ ! -e "$CACHE/linux.new" ]
	rm "$T/bin/xz"
	both
	grep -qx more "$CACHE/linux/mm/a.c"
}

test_apply_keeps_edits() {
	both
	echo four >>"$CACHE/linux/mm/a.c"
	change_series
	fails "$ROOT/lab/apply" linux
	said_not 'reset --hard'
	# its advice works
	stub make <<<'"$2/lab/apply" linux'
	bash -ec "$(sed -n 's/^    //p' "$T/said")"
	[ "$(cat "$CACHE/linux/mm/a.c")" = $'one\ntwo\nstill more\nthree\nfour' ]
	[ -n "$(linux status --porcelain)" ]
}

test_apply_keeps_commits_and_edits() {
	both
	echo mine >"$CACHE/linux/b"
	linux add b
	linux commit -qm 'b: Mine'
	echo edit >>"$CACHE/linux/Makefile"
	change_series
	fails "$ROOT/lab/apply" linux
	stub make <<<'"$2/lab/apply" linux'
	bash -ec "$(sed -n 's/^    //p' "$T/said")"
	[ "$(linux log --format=%s base..)" = $'b: Mine\nmm: Say more\ntopic: more' ]
	[ "$(linux diff --name-only)" = Makefile ]
	grep -qx 'still more' "$CACHE/linux/mm/a.c"
	[ "$(linux symbolic-ref --short HEAD)" = guestseal ]
}

test_distclean_keeps_work() {
	both
	echo four >>"$CACHE/linux/mm/a.c"
	fails "$ROOT/lab/clean" distclean
	said 'not committed'
	linux stash -q
	fails "$ROOT/lab/clean" distclean
	said 'stash'
	linux stash drop -q
	linux checkout -q -b other
	linux commit -q --allow-empty -m other
	linux checkout -q guestseal
	fails "$ROOT/lab/clean" distclean
	said 'other branches'
	linux branch -q -D other
	"$ROOT/lab/clean" distclean
	[ ! -e "$CACHE" ]
}

own_tree() {
	mkdir -p "$T/my tree/mm"
	printf '%s\n' one two three >"$T/my tree/mm/a.c"
	export LINUX_SRC="$T/my tree"
}

test_own_tree_is_copied_again() {
	own_tree
	both
	touch "$CACHE/linux/.git/same"
	both
	[ -e "$CACHE/linux/.git/same" ]
	echo four >>"$LINUX_SRC/mm/a.c"
	both
	[ "$(cat "$CACHE/linux/mm/a.c")" = $'one\ntwo\nmore\nthree\nfour' ]
	# not over work
	echo five >>"$CACHE/linux/mm/a.c"
	echo six >>"$LINUX_SRC/mm/a.c"
	fails "$ROOT/lab/import" linux
	grep -qx five "$CACHE/linux/mm/a.c"
}

test_own_git_tree_is_copied_again() {
	own_tree
	git -C "$LINUX_SRC" init -q
	echo '*.o' >"$LINUX_SRC/.gitignore"
	touch "$LINUX_SRC/gone.c"
	git -C "$LINUX_SRC" add .
	git -C "$LINUX_SRC" -c user.name=a -c user.email=b commit -qm a
	both
	rm "$LINUX_SRC/gone.c"
	echo new >"$LINUX_SRC/new.c"
	echo built >"$LINUX_SRC/a.o"
	both
	[ -e "$CACHE/linux/new.c" ]
	[ ! -e "$CACHE/linux/gone.c" ]
	[ ! -e "$CACHE/linux/a.o" ]
	touch "$CACHE/linux/.git/same"
	echo built again >"$LINUX_SRC/a.o"
	both
	[ -e "$CACHE/linux/.git/same" ]
}

test_own_tarball_is_unpacked_again() {
	own_tree
	tar -C "$T" -cf "$T/a.tar" "my tree"
	export LINUX_SRC=$T/a.tar
	both
	echo four >>"$T/my tree/mm/a.c"
	tar -C "$T" -cf "$T/a.tar" "my tree"
	both
	grep -qx four "$CACHE/linux/mm/a.c"
}

# The youngest commit that any branch has with these words is not always meant.
test_fixup_takes_a_patch_of_the_series() {
	both
	echo x >>"$CACHE/linux/mm/a.c"
	linux commit -qam 'mm: Say no more'
	linux checkout -q -b other
	linux commit -q --allow-empty -m 'KVM: Say more'
	linux checkout -q guestseal
	echo y >>"$CACHE/linux/mm/a.c"
	fails "$ROOT/lab/fixup" linux 'mm: say' -a
	said 'more than one'
	fails "$ROOT/lab/fixup" linux 'KVM: Say' -a
	# nor is a topic's mark a patch
	fails "$ROOT/lab/fixup" linux 'topic: more' -a
	said 'no patch'
	"$ROOT/lab/fixup" linux 'mm: Say more' -a
	[ "$(linux log -1 --format=%s)" = 'fixup! mm: Say more' ]
	echo z >>"$CACHE/linux/mm/a.c"
	"$ROOT/lab/fixup" linux "$PATCH" -a
	[ "$(linux log -1 --format=%s)" = 'fixup! mm: Say more' ]
	echo z >>"$CACHE/linux/mm/a.c"
	"$ROOT/lab/fixup" linux 'NO MORE' -a
	[ "$(linux log -1 --format=%s)" = 'fixup! mm: Say no more' ]
}

# An unpacking that was interrupted is not taken for done.
test_interrupted_unpack_of_build_tools() {
	mkdir -p "$CACHE/qemu/pc-bios" "$CACHE/qemu/.git/info"
	touch "$CACHE/qemu/pc-bios/meson.build" "$CACHE/downloads/meson_1_all.deb"
	ln -s /bin/true "$CACHE/qemu/configure"
	cat >"$ROOT/pins/qemu" <<-'END'
		src qemu 1:10.0.1-1 qemu_10.0.1.orig.tar.xz 0
		deb meson 1 meson_1_all.deb 0
	END
	stub dpkg-deb <<-'END'
		mkdir -p "$3/usr"
		[ -z "${INTERRUPT-}" ] || { kill -KILL $PPID; exit 1; }
		mkdir -p "$3/usr/share/seabios" "$3/usr/share/qemu"
		touch "$3/usr/share/seabios/bios.bin"
	END
	stub ninja <<<'echo "[1/1] all"'
	INTERRUPT=1 fails "$ROOT/lab/build-qemu"
	"$ROOT/lab/build-qemu"
	[ -e "$CACHE/build/qemu-deps/usr/share/seabios/bios.bin" ]
}
