# SPDX-License-Identifier: GPL-2.0-only
# Turn what run-tests reports into TAP, a line for each test case, and append
# "passed|failed|skipped NAME: CASE" to the file TALLY, what it took to the file
# TIMES. Logs go to DIR. LIST is what should have run, WHERE says on what, and
# TARGET what to make for that.
#
# A test that is expected to be "tap" must print a plan and just as many
# results. One with "rc=N" must exit with N: that is how upstream's tests
# without TAP end on the unpatched kernel.

function count(verdict, text) { print verdict, prefix text >>TALLY }
function result(ok, text) {
	printf "%s %d - %s%s\n", ok ? "ok" : "not ok", ++number, prefix, text
	count(ok ? "passed" : "failed", text)
	if (!ok) bad = 1
	fflush()
}
function skip(text) {
	if (text !~ /# *SKIP/) text = text " # SKIP"
	printf "ok %d - %s%s\n", ++number, prefix, text
	count("skipped", text)
	fflush()
}
function ended(status) {
	return status == 137 ? "killed after " limit " s" : "exit status " status
}
function name_it(what) { name = what; prefix = what " (" WHERE "): " }

function begin() {
	name_it($2); limit = $3; expected = $4
	log_file = name; gsub("/", "_", log_file); log_file = DIR "/" log_file ".log"
	printf "" >log_file
	plan = -1; seen = bad = lines = splats = 0
	begun[name]
}

function end(status, took,	i) {
	if (splats)
		result(0, "the kernel's log")
	if (expected == "tap") {
		if (plan < 0)
			result(0, "no plan, " ended(status))
		else if (seen != plan)
			result(0, seen " results of " plan ", " ended(status))
		else if (!bad && status != 0 && status != 4)
			result(0, ended(status))
		else if (!plan)
			skip("nothing to run here")
	} else if (expected == "rc=0") {
		result(status == 0, ended(status))
	} else {
		result("rc=" status == expected, ended(status) ", on the unpatched kernel " substr(expected, 4))
	}
	close(log_file)
	if (bad) {
		for (i = lines > 30 ? lines - 30 : 0; i < lines; i++)
			print "#   " log_lines[i]
		for (i = 0; i < splats && i < 40; i++)
			print "#   " splat_lines[i]
		print "# whole log: " log_file
		print "# alone: make " TARGET " NAME=" name
	}
	if (took != "") {
		print "# " name ": " took " s"
		print took " s  " name ", " WHERE >>TIMES
	}
	fflush()
	name = ""
}

/^@@begin / { begin(); next }
/^@@end / { end($3, $4); next }
name == "" { next }
{ print >log_file }
/^@@kernel / { splat_lines[splats++] = substr($0, 10); next }
{ log_lines[lines++] = $0 }
expected != "tap" { next }
/^1\.\.[0-9]+/ { plan = substr($1, 4) + 0 }
/^ok [0-9]+/ {
	seen++
	sub(/^ok [0-9]+ *(- )?/, "")
	if (/# *SKIP/) skip($0); else result(1, $0)
}
/^not ok [0-9]+/ { seen++; sub(/^not ok [0-9]+ *(- )?/, ""); result(0, $0) }

END {
	if (name != "") {
		result(0, "did not end, the emulated host is gone")
		end(125)
	}
	while ((getline <LIST) > 0)
		if (!($1 in begun)) {
			name_it($1)
			result(0, "did not run")
		}
}
