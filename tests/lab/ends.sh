# shellcheck shell=bash disable=SC2016
# SPDX-License-Identifier: GPL-2.0-only
# However a make is ended, nothing of it goes on, and it keeps no lock.
# shellcheck source=tests/lab/fixture
. "$REAL/tests/lab/fixture"

# A kernel build and an emulated host that would never end, and say who they are.
endless() {
	mkdir -p "$CACHE/linux" "$CACHE/build/linux-normal/arch/x86/boot" "$ROOT/kernel/config" "$ROOT/tests"
	touch "$CACHE/build/linux-normal/arch/x86/boot/bzImage"
	touch "$ROOT"/kernel/config/{base,host}.config
	printf '%s\n' '# Runs on: normal' 'a 5 rc=0 true' >"$ROOT/tests/a.list"
	mkdir -p "$CACHE/linux/scripts/kconfig"
	cat >"$CACHE/linux/scripts/kconfig/merge_config.sh" <<-'END'
		#!/bin/sh
		touch .config
	END
	chmod +x "$CACHE/linux/scripts/kconfig/merge_config.sh"
	cat >"$CACHE/linux/Makefile" <<-END
		.RECIPEPREFIX = >
		.PHONY: tinyconfig olddefconfig bzImage a.o b.o
		tinyconfig olddefconfig:
		bzImage: a.o b.o
		a.o b.o:
		>@echo "  CC      \$@"
		>@echo \$\$\$\$ >>$T/pids; exec sleep 1000
	END
	stub qemu-system-x86_64 <<-END
		echo \$\$ >>$T/pids
		exec sleep 1000
	END
	applied_trees
	printf '%s\n' '.PHONY: kernel test' 'kernel:' $'\t@lab/build-kernel normal' 'test:' $'\t@lab/test normal' >"$ROOT/Makefile"
}

# ends TARGET NUMBER SIGNAL [GROUP]: make TARGET starts NUMBER processes; all
# end with the signal, to make alone or to all that have its terminal
ends() {
	local pid make
	rm -f "$T/pids"
	# a session of its own, and not deaf to SIGINT as what bash has in the background
	setsid env --default-signal=INT,QUIT make -C "$ROOT" "$1" >"$T/said" 2>&1 </dev/null &
	make=$!
	until_true eval '[ "$(wc -l <"$T/pids")" = '"$2"' ]'
	kill "-$3" -- "${4:+-}$make"
	wait "$make" || :
	while read -r pid; do
		until_true gone "$pid"
	done <"$T/pids"
	until_true flock -n "$CACHE/locks/${5-build-linux-normal}" true
	until_true flock -n "$CACHE/locks/results" true
	until_true eval '[ -z "$(find "$T/tmp" -name "guestseal.*")" ]'
}

test_sigterm_ends_a_build() { endless; ends kernel 2 TERM; }
test_ctrl_c_ends_a_build() { endless; ends kernel 2 INT group; }
test_closed_terminal_ends_a_build() { endless; ends kernel 2 HUP group; }
test_sigterm_ends_a_verbose_build() { endless; V=1 ends kernel 2 TERM; }
test_sigterm_ends_an_emulated_host() { endless; ends test 1 TERM; }
test_ctrl_c_ends_an_emulated_host() { endless; ends test 1 INT group; }
test_closed_terminal_ends_an_emulated_host() { endless; ends test 1 HUP group; }

bochs() {
	endless
	sed -i 's/normal/intel/' "$ROOT/tests/a.list"
	mkdir -p "$CACHE/linux/arch/x86/kvm/vmx"
	touch "$CACHE/linux/arch/x86/kvm/vmx/vmx.c"
	stub grub-mkrescue </dev/null
	cp "$T/bin/qemu-system-x86_64" "$T/bin/bochs"
	printf '%s\n' '.PHONY: test-intel bochs' 'test-intel:' $'\t@lab/test intel' \
		'bochs:' $'\t@lab/boot-bochs -c /dev/null' >"$ROOT/Makefile"
}
test_sigterm_ends_bochs() { bochs; ends test-intel 1 TERM; }
test_ctrl_c_ends_bochs() { bochs; ends test-intel 1 INT group; }
test_sigterm_ends_bochs_without_tests() { bochs; ends bochs 1 TERM; }

test_series_of_another_clone_is_not_tested() {
	endless
	touch "$ROOT/kernel/patches/new"
	fails "$ROOT/lab/test" normal
	said "does not have this clone's series"
	[ ! -e "$T/pids" ]
}

# As long as a build whose make was shot goes on, nobody else starts one.
test_lock_lasts_as_long_as_the_build() {
	endless
	"$ROOT/lab/build-kernel" normal >"$T/said" 2>&1 &
	until_true eval '[ "$(wc -l <"$T/pids")" = 2 ]'
	kill -KILL $!
	fails flock -n "$CACHE/locks/build-linux-normal" true
	# shellcheck disable=SC2046
	kill $(cat "$T/pids")
	until_true flock -n "$CACHE/locks/build-linux-normal" true
}

test_two_tests_do_not_mix_results() {
	endless
	stub qemu-system-x86_64 <<-END
		echo \$\$ >>$T/pids
		until [ -e "$T/go" ]; do sleep 0.1; done
	END
	make -C "$ROOT" test >"$T/first" 2>&1 &
	until_true test -e "$T/pids"
	make -C "$ROOT" test >"$T/second" 2>&1 &
	until_true grep -q 'waiting for another make to finish with results' "$T/second"
	[ "$(wc -l <"$T/pids")" = 1 ]
	# nor is anything built under their feet
	fails flock -n "$CACHE/locks/build-linux-normal" true
	touch "$T/go"
	wait
	[ "$(wc -l <"$T/pids")" = 2 ]
	grep -qx '0 passed, 1 failed' "$T/first"
	grep -qx '0 passed, 1 failed' "$T/second"
}

test_clean_waits_for_a_build() {
	endless
	"$ROOT/lab/build-kernel" normal >"$T/said" 2>&1 &
	until_true eval '[ "$(wc -l <"$T/pids")" = 2 ]'
	"$ROOT/lab/clean" >"$T/clean" 2>&1 &
	until_true grep -q 'waiting for another make' "$T/clean"
	[ -e "$CACHE/build/linux-normal" ]
	# shellcheck disable=SC2046
	kill $(cat "$T/pids")
	wait
	[ ! -e "$CACHE/build" ]
}
