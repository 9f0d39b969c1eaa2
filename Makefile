# SPDX-License-Identifier: GPL-2.0-only
# The order of things, no more: each step is a script in lab/, does nothing
# when there is nothing to do, and keeps what it makes in
# ${XDG_CACHE_HOME:-~/.cache}/guestseal.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
export ACCEL LINUX_SRC QEMU_SRC MIRROR NAME REROLL SANITIZE TOPIC V

define HELP
guestseal: private memory for KVM guests in sealed memfds

  first time: make demo installs missing packages, fetches and builds all it
  needs: about 17 minutes and 6 GB on two cores. After that, minutes are:

  demo          see guests keep secrets from their host            2
  debian        see Debian with systemd start wholly private       4
  test          the tests of the normal kernel; NAME= picks one    17
  test-ci       what CI runs: lint, check, test, and on Intel and the
                debug kernel what may find something there         45
  test-full     all tests on both kernels, Intel, stock guests    120
  test-intel    KVM tests and a stock guest on Intel, in Bochs     11
  test-lab      the tests of the scripts in lab/ only              1
  bench         what conversions and private guests cost, counted  30
  lint          checkpatch, sparse, W=1, clang-format, shellcheck  4
  check         do the topics apply, and export the same?          0.1

  shell         a shell in the emulated host                       0.2
  guest-shell   a shell in a guest inside it                       0.5
  gdb           debug the emulated host's kernel

  doctor        what this machine lacks                            0
  setup         install it (only this needs root)                  1
  fetch         the pinned sources, from Debian                    1
  apply         import them, and put the series on top             1
  kernel        build the kernel (host and guest)                  5
  kernel-debug  the same with lockdep, KASAN, ...                  13
  qemu          build QEMU                                         3
  selftests     build the kernel's KVM and memfd selftests         0.5
  tools         build tools/ and bench/                            0.1
  module        the guest driver for Debian 12's and 13's kernels  0.2
  stock         stock kernels and a root file system, unpacked     0.5

  refresh       save your commits in the trees as the series       0.1
  series        all topics as mails, in outgoing/; TOPIC=seal: one 0.1
  clean         forget what was built, keep downloads and trees
  distclean     forget everything, downloads and trees too

  V=1           show all output          NAME=...   one test
  TOPIC=        one topic of the series  REROLL=2   its mails as v2
  ACCEL=kvm     run the emulated host with KVM, where nesting works
  LINUX_SRC=    a kernel tree or tarball instead of the pinned one
  QEMU_SRC=     the same for QEMU
  MIRROR=       a Debian mirror instead of the one apt uses here
  SANITIZE=     build these of tools/ with ASan and UBSan
endef

help:
	$(info $(HELP))
	@:

doctor setup:
	@lab/$@

fetch: fetch-linux fetch-qemu
fetch-%: setup
	@lab/fetch $*

import-%: fetch-%
	@lab/import $*

apply: apply-linux apply-qemu
apply-%: import-%
	@lab/apply $*

kernel: apply-linux
	@lab/build-kernel normal

kernel-debug: apply-linux
	@lab/build-kernel debug

qemu: apply-qemu
	@lab/build-qemu

selftests: apply-linux
	@lab/build-selftests

tools: apply-linux
	@lab/build-tools

module: kernel fetch-headers-12 fetch-headers-13
	@lab/build-module

stock: tools fetch-debian-12 fetch-debian-13
	@lab/build-stock

demo: kernel qemu tools stock
	@lab/demo

debian: kernel qemu stock debian-image
	@lab/debian

debian-image: fetch-system-13
	@lab/setup debian
	@lab/build-debian

# Suites, see lab/test.
test: kernel qemu selftests tools module stock
	@lab/test lab normal

test-ci: kernel kernel-debug qemu selftests tools module stock
	@lab/setup intel
	@lab/test lint check lab normal debug-ci intel-ci

test-full: kernel kernel-debug qemu selftests tools module stock debian-image
	@lab/setup intel
	@lab/test lab normal normal-full debug intel

test-intel: kernel qemu selftests tools stock
	@lab/setup intel
	@lab/test intel

test-lab: setup
	@lab/test lab

bench: kernel qemu tools stock
	@lab/setup bench
	@lab/bench

shell: kernel selftests tools qemu
	@lab/shell

guest-shell: kernel qemu tools
	@lab/guest-shell

gdb: kernel-debug selftests
	@lab/setup gdb
	@lab/gdb

lint: apply kernel
	@lab/lint

check: import-linux import-qemu
	@lab/check-series linux
	@lab/check-series qemu

refresh: import-linux import-qemu
	@lab/refresh linux
	@lab/refresh qemu

series outgoing: import-linux import-qemu
	@lab/outgoing

clean distclean:
	@lab/clean $@

.PHONY: help doctor setup fetch apply kernel kernel-debug qemu selftests tools module stock demo \
	debian debian-image \
	test test-ci test-full test-intel test-lab bench shell guest-shell gdb lint check refresh series outgoing \
	clean distclean
.DELETE_ON_ERROR:
.NOTPARALLEL:
