# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# What setup says and does before it installs; which paths will do; where the
# lists of tests run.
# shellcheck source=tests/lab/fixture
. "$REAL/tests/lab/fixture"

# A machine that lacks busybox-static, with an apt-get that would remove $1 for it
# and notes in $T/calls what it is told.
machine() {
	stub dpkg-query <<-'END'
		for name; do
			case $name in [a-z]*) [ "$name" = busybox-static ] || echo "ii $name" ;; esac
		done
	END
	stub apt-get <<-END
		case "\$*" in
		*" -s "*) echo "Inst busybox-static"; for name in $1; do echo "Remv \$name [1]"; done ;;
		*) echo "\$* proxy=\${http_proxy-}" >>"$T/calls" ;;
		esac
	END
	stub id <<<'echo 1000'
	# like the real one, whose policy drops these
	stub sudo <<<'unset http_proxy; exec "$@"'
	export http_proxy=http://proxy.invalid:3128
}

test_setup_says_what_goes() {
	machine busybox
	"$ROOT/lab/setup" >"$T/said"
	said 'the package busybox goes'
	grep -q 'install .* busybox-static' "$T/calls"
}

test_setup_removes_nothing_else() {
	machine 'busybox something'
	fails "$ROOT/lab/setup"
	said 'would remove: busybox something'
	[ ! -e "$T/calls" ]
}

test_setup_keeps_proxy_for_sudo() {
	machine ''
	"$ROOT/lab/setup"
	grep -q 'install .*proxy=http://proxy.invalid:3128$' "$T/calls"
}

# refused PATH COMMAND...: at once, with a line
refused() {
	local path=$1
	shift
	fails "$@"
	said "can't be in the path $path"
	[ "$(grep -c '^error: ' "$T/said")" = 1 ]
}

test_odd_paths_are_refused_at_once() {
	local odd script
	machine ''
	for odd in 'a b' 'a:b' 'a,b' "a'b"; do
		cp -r "$ROOT" "$T/$odd"
		for script in setup doctor; do
			refused "$T/$odd" "$T/$odd/lab/$script"
			XDG_CACHE_HOME=$T/tmp/$odd refused "$T/tmp/$odd" "$ROOT/lab/$script"
			TMPDIR=$T/tmp/$odd refused "$T/tmp/$odd" "$ROOT/lab/$script"
		done
	done
	XDG_CACHE_HOME=cache fails "$ROOT/lab/doctor"
	said 'not an absolute path'
	[ ! -e "$T/calls" ]
	XDG_CACHE_HOME=$T/cäche "$ROOT/lab/setup"
}

# Each list says where it runs, make test-full runs all of them, CI no other.
test_every_list_says_where_it_runs() {
	local list where suite full ci lists
	suites() { sed -n "/^$1:/,/^\$/s,.*lab/test \(.*\), \1 ,p" "$REAL/Makefile"; }
	full=$(suites test-full)
	ci=$(suites test-ci)
	for list in "$REAL"/tests/*.list; do
		where=" $(sed -n 's/^# Runs on: *//p' "$list" | tr -d ,) "
		[[ $where =~ [a-z] ]]
		for suite in $where; do
			case $suite in
			normal|normal-full|debug|intel) [[ $full == *" $suite "* ]] ;;
			debug-ci|intel-ci) [[ $ci == *" $suite "* && $where == *" ${suite%-ci} "* ]] ;;
			*) echo "$list: $suite?"; return 1 ;;
			esac
		done
	done
	# a name is one test's; Intel has lists of its own
	for suite in intel 'normal|debug'; do
		mapfile -t lists < <(grep -lE "^# Runs on:.*($suite)" "$REAL"/tests/*.list)
		[ ${#lists[@]} -gt 0 ]
		[ -z "$(cat "${lists[@]}" | awk '!/^#/ && NF { print $1 }' | sort | uniq -d)" ]
	done
	printf '%s\n' '# name' 'a 5 rc=0 true' >"$ROOT/a.list"
	mkdir "$ROOT/tests"
	mv "$ROOT/a.list" "$ROOT/tests"
	applied_trees
	fails "$ROOT/lab/test" normal
	said 'does not say where it runs'
}

# A suite that prints TAP itself is counted; what it does not finish has failed.
test_sums() {
	mkdir -p "$ROOT/tests/lab"
	suite() { { echo '#!/bin/bash'; cat; } >"$ROOT/tests/lab/run"; chmod +x "$ROOT/tests/lab/run"; }
	suite <<-'END'
		printf '%s\n' 'ok 1 - a' 'ok 2 - b # SKIP no' 'ok 3 - c' 1..3 '2 passed, 0 failed, 1 skipped'
	END
	"$ROOT/lab/test" lab >"$T/said"
	[ "$(tail -n 1 "$T/said")" = '2 passed, 0 failed, 1 skipped' ]
	suite <<-'END'
		printf '%s\n' 'ok 1 - a' 'not ok 2 - b' 1..2 '1 passed, 1 failed'
		exit 1
	END
	fails "$ROOT/lab/test" lab
	[ "$(tail -n 1 "$T/said")" = '1 passed, 1 failed' ]
	suite <<-'END'
		printf '%s\n' 'ok 1 - a' 1..2 '1 passed, 0 failed'
	END
	fails "$ROOT/lab/test" lab
	[ "$(tail -n 1 "$T/said")" = '1 passed, 1 failed' ]
	suite <<-'END'
		printf '%s\n' 'ok 1 - a' 1..1 '1 passed, 0 failed'
		exit 3
	END
	fails "$ROOT/lab/test" lab
	said 'exit status 3'
	suite <<<'exit 0'
	fails "$ROOT/lab/test" lab
	[ "$(tail -n 1 "$T/said")" = '0 passed, 1 failed' ]
	suite <<<'echo "ok 1 - a"; kill -KILL $$'
	fails "$ROOT/lab/test" lab
	[ "$(tail -n 1 "$T/said")" = '1 passed, 1 failed' ]
	# suites add up, Intel's in another emulator
	suite <<-'END'
		printf '%s\n' 'ok 1 - a' 'ok 2 - b' 1..2 '2 passed, 0 failed'
	END
	printf '%s\n' '# Runs on: intel' 'c 5 rc=0 true' 'd 5 rc=0 true' >"$ROOT/tests/c.list"
	applied_trees
	mkdir -p "$CACHE/linux/arch/x86/kvm/vmx"
	touch "$CACHE/linux/arch/x86/kvm/vmx/vmx.c"
	bochs() { { echo '#!/bin/bash'; cat; } >"$ROOT/lab/boot-bochs"; }
	bochs <<-'END'
		printf '%s\n' '@@begin c 5 rc=0' '@@end c 0 1' '@@begin d 5 rc=0' '@@end d 0 1'
	END
	"$ROOT/lab/test" lab intel >"$T/said" || { cat "$T/said"; return 1; }
	[ "$(tail -n 1 "$T/said")" = '4 passed, 0 failed' ]
	[ "$(sed -n 's/^ok \([0-9]*\) - .*/\1/p' "$T/said" | paste -sd' ')" = '1 2 3 4' ]
	bochs <<-'END'
		printf '%s\n' '@@begin c 5 rc=0'
		exit 125
	END
	fails "$ROOT/lab/test" lab intel
	said 'c (Intel): did not end, the emulated host is gone'
	said 'd (Intel): did not run'
	grep -q '^[0-9] passed, [1-9] failed$' "$T/said"
	# CI's last line is the sum, whatever make says after it
	cp -r "$REAL/.ci" "$ROOT"
	ci() { printf '%s\n' '.PHONY: test-ci' 'test-ci:' "	@$1" >"$ROOT/Makefile"; }
	ci "echo '3 passed, 0 failed, 1 skipped'"
	"$ROOT/.ci/run" >"$T/said"
	[ "$(tail -n 1 "$T/said")" = '3 passed, 0 failed, 1 skipped' ]
	ci "echo '3 passed, 2 failed'; false"
	fails "$ROOT/.ci/run"
	[ "$(tail -n 1 "$T/said")" = '3 passed, 2 failed' ]
	ci "echo '3 passed, 0 failed'; false"
	fails "$ROOT/.ci/run"
	[ "$(tail -n 1 "$T/said")" = '3 passed, 1 failed' ]
	ci false
	fails "$ROOT/.ci/run"
	[ "$(tail -n 1 "$T/said")" = '0 passed, 1 failed' ]
	printf '%s\n' '.PHONY: lint' 'lint:' $'\t@false' >"$ROOT/Makefile"
	fails "$ROOT/lab/test" lint
	[ "$(tail -n 1 "$T/said")" = '0 passed, 1 failed' ]
}
