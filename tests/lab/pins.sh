# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# When Debian drops a pinned version, its successor will do. The archive is a
# folder; apt is the real one, but for where it looks and that it trusts it.
# shellcheck source=tests/lab/fixture
. "$REAL/tests/lab/fixture"

# archive VERSION...: has these, and nothing else
archive() {
	local version program
	mkdir -p "$T/archive"
	rm -f "$T"/archive/*
	for version; do linux_deb "$version" "$T/archive" "${THIRD-three}"; done
	(cd "$T/archive" && dpkg-scanpackages -m . >Packages 2>/dev/null)
	echo "deb [trusted=yes] file:$T/archive ./" >"$T/sources.list"
	for program in apt-get apt-cache; do
		stub $program <<-END
			exec /usr/bin/$program "\$@" -o Dir::Etc::sourcelist=$T/sources.list
		END
	done
	export MIRROR=http://mirror.invalid/debian
}
steps() {
	local step -
	set +x
	for step in fetch import apply; do
		"$ROOT/lab/$step" linux || return 1
	done >"$T/said" 2>&1
}
# the checkout is as it was
same_checkout() { (cd "$ROOT" && find . -type f -print0 | sort -z | xargs -0 sha256sum) | cmp - "$T/checkout"; }
forget_download() {
	rm -f "$CACHE"/downloads/*
	(cd "$ROOT" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"$T/checkout"
}

test_pinned_version_is_there() {
	forget_download
	cp "$ROOT/pins/linux" "$T/pin"
	mkdir -p "$T/archive"
	archive 6.12.1-1 6.12.2-1
	# built again, so it has another sum
	pin_linux 6.12.1-1 "$T/archive"
	forget_download
	steps
	said_not 'instead of'
	[ ! -e "$CACHE/pins" ]
	[ "$(linux log -1 --format=%s base)" = 'Import linux-source-6.12 6.12.1-1' ]
	same_checkout
}

test_newest_takes_the_place_of_a_pinned_one() {
	forget_download
	archive 6.12.9-1 6.12.10-1 6.12.10-1~rc1 6.13.1-1
	steps
	said 'linux-source-6.12 6.12.10-1 instead of 6.12.1-1, which Debian no longer has'
	[ "$(linux log -1 --format=%s base)" = 'Import linux-source-6.12 6.12.10-1' ]
	grep -qx more "$CACHE/linux/mm/a.c"
	same_checkout
	# visible later, too
	"$ROOT/lab/doctor" >"$T/said" || :
	said 'linux-source-6.12 6.12.10-1 instead of 6.12.1-1'
	# nothing to do any more
	rm -r "$T/archive"
	steps
	[ -z "$(cat "$T/said")" ]
	# the base has an id now, and is held to it
	grep -q '^base  *[0-9a-f]\{40\}$' "$CACHE"/pins/linux-*
	rm -rf "$CACHE/linux"
	steps
	sed -i 's/^base .*/base    0123456789012345678901234567890123456789/' "$CACHE"/pins/linux-*
	rm -rf "$CACHE/linux"
	fails steps
	said 'says 0123456789'
}

test_the_newest_goes_as_well() {
	forget_download
	archive 6.12.9-1
	steps
	forget_download
	archive 6.12.11-1
	steps
	said '6.12.11-1 instead of 6.12.1-1'
	[ "$(linux log -1 --format=%s base)" = 'Import linux-source-6.12 6.12.11-1' ]
	same_checkout
}

test_a_pin_that_moves_is_followed() {
	forget_download
	archive 6.12.9-1
	steps
	archive 6.12.9-1 6.12.10-1
	pin_linux 6.12.10-1 "$T/archive"
	steps
	said_not 'instead of'
	[ "$(linux log -1 --format=%s base)" = 'Import linux-source-6.12 6.12.10-1' ]
}

test_series_does_not_apply_to_the_newest() {
	forget_download
	THIRD=drei archive 6.12.10-1
	fails steps
	said 'does not apply to linux-source-6.12 6.12.10-1 instead of 6.12.1-1'
	said 'LINUX_SRC=PATH'
	same_checkout
}

test_nothing_of_that_line_is_there() {
	forget_download
	archive 6.13.1-1
	fails steps
	said 'has no linux-source-6.12 6.12.*'
	said 'LINUX_SRC=PATH'
	[ ! -e "$CACHE/pins" ]
	same_checkout
}

test_no_mirror() {
	forget_download
	archive
	rm -r "$T/archive"
	fails steps
	said 'MIRROR='
	[ ! -e "$CACHE/pins" ]
	# nothing is left behind
	[ -z "$(find "$CACHE" -maxdepth 1 -name 'fetch.*')" ]
}

test_interrupted_fetch_leaves_nothing() {
	forget_download
	archive 6.12.9-1
	stub apt-get <<-END
		case "\$*" in
		*download*) touch "$T/downloading"; sleep 1000 ;;
		esac
		exec /usr/bin/apt-get "\$@" -o Dir::Etc::sourcelist=$T/sources.list
	END
	"$ROOT/lab/fetch" linux >"$T/said" 2>&1 &
	until_true test -e "$T/downloading"
	kill $!
	wait $! || :
	[ -z "$(find "$CACHE" -maxdepth 1 -name 'fetch.*')" ]
	[ ! -e "$CACHE/pins" ]
}

# headers VERSION: an archive that has these, whose names go by the version, too
headers() {
	local name work=$T/tmp/headers
	archive
	for name in "linux-headers-$1-amd64" "linux-headers-$1-common" "linux-kbuild-$1" linux-headers-amd64; do
		rm -rf "$work"
		mkdir -p "$work/DEBIAN"
		cat >"$work/DEBIAN/control" <<-END
			Package: $name
			Version: $1-1
			Architecture: amd64
			Maintainer: Somebody <somebody@example.com>
			Description: headers
		END
		case $name in
		linux-headers-amd64) echo "Depends: linux-headers-$1-amd64 (= $1-1)" ;;
		*-amd64) echo "Depends: linux-headers-$1-common (= $1-1), linux-kbuild-$1, linux-compiler" ;;
		esac >>"$work/DEBIAN/control"
		dpkg-deb --root-owner-group -Zxz -b "$work" "$T/archive/${name}_$1-1_amd64.deb" >/dev/null
	done
	(cd "$T/archive" && dpkg-scanpackages -m . >Packages 2>/dev/null)
}

test_newest_headers() {
	local name
	headers 6.1.0-1
	for name in linux-headers-6.1.0-1-amd64 linux-headers-6.1.0-1-common linux-kbuild-6.1.0-1; do
		echo "deb $name 6.1.0-1-1 ${name}_6.1.0-1-1_amd64.deb" \
			"$(sha256sum <"$T/archive/${name}_6.1.0-1-1_amd64.deb" | cut -d' ' -f1)"
	done >"$ROOT/pins/headers-12"
	"$ROOT/lab/fetch" headers-12 >"$T/said"
	said_not 'instead of'
	[ ! -e "$CACHE/pins" ]
	forget_download
	headers 6.1.0-2
	"$ROOT/lab/fetch" headers-12 >"$T/said"
	for name in linux-headers-6.1.0-%d-amd64 linux-headers-6.1.0-%d-common linux-kbuild-6.1.0-%d; do
		# shellcheck disable=SC2059 # these are formats
		said "$(printf "$name 6.1.0-%d-1 instead of $name 6.1.0-%d-1, which" 2 2 1 1)"
		# shellcheck disable=SC2059
		[ -e "$CACHE/downloads/$(printf "${name}_6.1.0-%d-1_amd64.deb" 2 2)" ]
	done
	[ "$(grep -c '^  linux-.* instead of ' "$T/said")" = 3 ]
	same_checkout
	# nothing to do any more
	rm -r "$T/archive"
	"$ROOT/lab/fetch" headers-12 >"$T/said"
	[ -z "$(cat "$T/said")" ]
}

# stock NAME=VERSION...: an archive that has these packages; linux-image-amd64 and
# linux-image-cloud-amd64 depend on such, "wanted" on "needed"
stock() {
	local package name version work=$T/tmp/stock
	archive
	for package; do
		name=${package%%=*} version=${package#*=}
		rm -rf "$work"
		mkdir -p "$work/DEBIAN"
		cat >"$work/DEBIAN/control" <<-END
			Package: $name
			Version: $version
			Architecture: amd64
			Maintainer: Somebody <somebody@example.com>
			Description: a part of stock guests
		END
		case $name in
		linux-image-amd64) echo "Depends: linux-image-$version-amd64" ;;
		linux-image-cloud-amd64) echo "Depends: linux-image-$version-cloud-amd64" ;;
		wanted) echo "Depends: needed" ;;
		basic) echo "Essential: yes" ;;
		esac >>"$work/DEBIAN/control"
		dpkg-deb --root-owner-group -Zxz -b "$work" "$T/archive/${name}_${version#*:}_amd64.deb" >/dev/null
	done
	(cd "$T/archive" && dpkg-scanpackages -m . >Packages 2>/dev/null)
}

# A kernel's successor has another name, that of anything else has not.
test_newest_of_stock_guests() {
	local kernel=linux-image-6.12.1+deb13 next=linux-image-6.12.2+deb13 name
	stock $kernel-amd64=1 $kernel-cloud-amd64=1 libssl=1:3-1 same=1
	echo "# kind  package" >"$ROOT/pins/debian-13"
	for name in $kernel-amd64 $kernel-cloud-amd64; do
		echo "deb $name 1 ${name}_1_amd64.deb $(sha256sum <"$T/archive/${name}_1_amd64.deb" | cut -d' ' -f1)"
	done >>"$ROOT/pins/debian-13"
	{
		echo "deb libssl 1:3-1 libssl_1%3a3-1_amd64.deb $(sha256sum <"$T/archive/libssl_3-1_amd64.deb" | cut -d' ' -f1)"
		echo "deb same 1 same_1_amd64.deb $(sha256sum <"$T/archive/same_1_amd64.deb" | cut -d' ' -f1)"
	} >>"$ROOT/pins/debian-13"
	"$ROOT/lab/fetch" debian-13 >"$T/said"
	said_not 'instead of'
	[ ! -e "$CACHE/pins" ]
	forget_download
	stock $next-amd64=1 $next-cloud-amd64=1 libssl=1:3-2 same=1 \
		linux-image-amd64=6.12.2+deb13 linux-image-cloud-amd64=6.12.2+deb13
	# another build of it would have another sum
	sed -i "s/^\(deb same .* \).*/\1$(sha256sum <"$T/archive/same_1_amd64.deb" | cut -d' ' -f1)/" "$ROOT/pins/debian-13"
	(cd "$ROOT" && find . -type f -print0 | sort -z | xargs -0 sha256sum) >"$T/checkout"
	"$ROOT/lab/fetch" debian-13 >"$T/said"
	said "$next-amd64 1 instead of $kernel-amd64 1, which"
	said "$next-cloud-amd64 1 instead of $kernel-cloud-amd64 1, which"
	said "libssl 1:3-2 instead of 1:3-1, which"
	[ "$(grep -c ' instead of ' "$T/said")" = 3 ]
	[ -e "$CACHE/downloads/libssl_1%3a3-2_amd64.deb" ]
	same_checkout
	rm -r "$T/archive"
	"$ROOT/lab/fetch" debian-13 >"$T/said"
	[ -z "$(cat "$T/said")" ]
}

# A system is what it wants, what every system has, and what these depend on.
test_system_is_pinned_anew() {
	stock wanted=1 needed=1:2 basic=1 other=1
	printf '%s\n' "# why" "want wanted" "deb gone 1 gone_1_amd64.deb 00" >"$ROOT/pins/system-13"
	"$ROOT/lab/repin" system-13 >"$T/said"
	said "system-13: 3 packages"
	[ "$(cut -d' ' -f1-4 "$ROOT/pins/system-13")" = "# why
want wanted
deb basic 1 basic_1_amd64.deb
deb needed 1:2 needed_1%3a2_amd64.deb
deb wanted 1 wanted_1_amd64.deb" ]
	"$ROOT/lab/fetch" system-13 >"$T/said"
	said_not 'instead of'
	[ -e "$CACHE/downloads/needed_1%3a2_amd64.deb" ]
	[ ! -e "$CACHE/downloads/other_1_amd64.deb" ]
	[ ! -e "$CACHE/pins" ]
}

# QEMU's firmware package has its version, its build tools have others.
test_companions_move() {
	. "$ROOT/lab/lib.sh"
	. "$ROOT/lab/trees.sh"
	trap - EXIT
	cat >"$T/pin" <<-END
		src     qemu              1:10.0.1+ds-1  qemu_10.0.1+ds.orig.tar.xz           0a
		deb     meson             1.7.0-1        meson_1.7.0-1_all.deb                0b
		deb     qemu-system-data  1:10.0.1+ds-1  qemu-system-data_1%3a10.0.1+ds-1_all.deb  0c
		import  qemu 10.0.1+ds
		base    0d
	END
	move_pin 1:10.0.1+ds-1 1:10.0.2+ds-1+deb13u1 <"$T/pin" >"$T/moved"
	diff - <(tr -s ' ' <"$T/moved") <<-END
		src qemu 1:10.0.2+ds-1+deb13u1 qemu_10.0.2+ds.orig.tar.xz -
		deb meson 1.7.0-1 meson_1.7.0-1_all.deb 0b
		deb qemu-system-data 1:10.0.2+ds-1+deb13u1 qemu-system-data_1%3a10.0.2+ds-1+deb13u1_all.deb -
		import qemu 10.0.2+ds
		base -
	END
	move_pin 1.7.0-1 1.8.0-1 meson <"$T/pin" >"$T/moved"
	diff - <(tr -s ' ' <"$T/moved") <<-END
		src qemu 1:10.0.1+ds-1 qemu_10.0.1+ds.orig.tar.xz 0a
		deb meson 1.8.0-1 meson_1.8.0-1_all.deb -
		deb qemu-system-data 1:10.0.1+ds-1 qemu-system-data_1%3a10.0.1+ds-1_all.deb 0c
		import qemu 10.0.1+ds
		base 0d
	END
}

# What refresh exports from another base is not what is pinned; repin makes it so,
# with what was done meanwhile.
test_work_on_the_newest() {
	forget_download
	archive 6.12.10-1
	steps
	"$ROOT/lab/check-series" linux
	echo four >>"$CACHE/linux/mm/a.c"
	linux commit -qam 'mm: Say four'
	fails "$ROOT/lab/refresh" linux
	said 'lab/repin linux 6.12.10-1'
	same_checkout
	"$ROOT/lab/repin" linux 6.12.10-1
	[ "$(linux log --format=%s)" = $'mm: Say four\nmm: Say more\ntopic: more\nImport linux-source-6.12 6.12.10-1' ]
	git -C "$ROOT" init -q
	"$ROOT/lab/refresh" linux
	[ -e "${PATCH%/*}/0002-mm-Say-four.patch" ]
	"$ROOT/lab/doctor" >"$T/said" || :
	said_not 'instead of'
}

# repin writes into pins/ what the others only have in the cache, and keeps topics.
test_repin() {
	steps
	linux commit -q --allow-empty -m 'topic: four'
	echo four >>"$CACHE/linux/mm/a.c"
	linux commit -qam 'mm: Say four'
	linux commit -q --allow-empty -m 'topic: new'
	echo new >"$CACHE/linux/mm/newer.c"
	linux add mm/newer.c
	linux commit -qm 'mm: Add a newer file'
	archive 6.12.9-1 6.12.10-1
	# to the newest
	"$ROOT/lab/repin" linux
	grep -q ' 6.12.10-1 .*_6.12.10-1_all.deb  *[0-9a-f]\{64\}$' "$ROOT/pins/linux"
	grep -qx "base    $(linux rev-parse base)" "$ROOT/pins/linux"
	[ "$(linux log -1 --format=%s base)" = 'Import linux-source-6.12 6.12.10-1' ]
	grep -qx more "$CACHE/linux/mm/a.c"
	[ "$(linux branch --format='%(refname:short)' | sort | paste -sd' ')" = 'base guestseal' ]
	[ "$(linux log --reverse --format=%s base.. | paste -sd,)" = \
		'topic: more,mm: Say more,topic: four,mm: Say four,topic: new,mm: Add a newer file' ]
	git -C "$ROOT" init -q
	"$ROOT/lab/refresh" linux
	[ "$(cd "$ROOT/kernel/patches" && echo *)" = '01-more 02-four 03-new' ]
	[ -e "${PATCH%/*}/cover.txt" ]
	# to one that is not there, nothing changes
	cp "$ROOT/pins/linux" "$T/pin"
	fails "$ROOT/lab/repin" linux 6.12.11-1
	cmp "$T/pin" "$ROOT/pins/linux"
	# or if it is interrupted
	archive 6.12.10-1 6.12.11-1
	stub apt-get <<<"touch $T/fetching; exec sleep 1000"
	"$ROOT/lab/repin" linux 6.12.11-1 &
	until_true test -e "$T/fetching"
	kill -TERM $!
	wait $! || :
	cmp "$T/pin" "$ROOT/pins/linux"
	[ ! -e "$ROOT/pins/linux.old" ]
	[ "$(linux log -1 --format=%s base)" = 'Import linux-source-6.12 6.12.10-1' ]
}
