# SPDX-License-Identifier: GPL-2.0-only
# Turn what run-tests reports into TAP, one line for each test case, and append
# "PASSED FAILED SKIPPED" to the file that TALLY names. Logs go to DIR.
#
# A test that is expected to be "tap" must print a plan and just as many
# results. One with "rc=N" must exit with N: that is how upstream's tests
# without TAP end on the unpatched kernel.
function result(ok, text) {
	printf "%s %d - %s%s\n", ok ? "ok" : "not ok", ++number, prefix, text
	if (ok) passed++; else { failed++; bad = 1 }
	fflush()
}
function skip(text) {
	printf "ok %d - %s%s\n", ++number, prefix, text
	skipped++
}
function begin() {
	name = $2; expected = $3
	log_file = DIR "/" name ".log"; gsub("/", "_", name); log_file = DIR "/" name ".log"
	name = $2; prefix = name ": "
	plan = -1; seen = 0; bad = 0; lines = 0; kernel = 0
	printf "" >log_file
}
function end(status,	i) {
	if (expected == "tap") {
		if (plan < 0)
			result(0, "no plan, exit status " status)
		else if (seen != plan)
			result(0, seen " results of " plan ", exit status " status)
		else if (!bad && status != 0 && status != 4)
			result(0, "exit status " status)
	} else {
		result(expected == "rc=" status, "exit status " status ", expected " substr(expected, 4))
	}
	if (kernel)
		result(0, "the kernel complained " kernel " times")
	close(log_file)
	if (bad) {
		for (i = lines > 30 ? lines - 30 : 0; i < lines; i++)
			print "# " log_lines[i]
		print "# whole log: " log_file
		print "# alone: make test NAME=" name
	}
	name = ""
}
/^@@begin / { begin(); next }
/^@@end / { end($3); next }
/^@@kernel / { kernel++ }
name != "" {
	print >log_file
	log_lines[lines++] = $0
	if (expected != "tap")
		next
	if (/^1\.\.[0-9]+/) {
		plan = substr($1, 4) + 0
		if (plan == 0) skip($0)
	} else if (/^ok [0-9]+.*# *SKIP/) {
		seen++; sub(/^ok [0-9]+ *(- )?/, ""); skip($0)
	} else if (/^ok [0-9]+/) {
		seen++; sub(/^ok [0-9]+ *(- )?/, ""); result(1, $0)
	} else if (/^not ok [0-9]+/) {
		seen++; sub(/^not ok [0-9]+ *(- )?/, ""); result(0, $0)
	}
}
END {
	if (name != "") {
		result(0, "did not end, the emulated host is gone")
		end(125)
	}
	print passed + 0, failed + 0, skipped + 0 >>TALLY
}
