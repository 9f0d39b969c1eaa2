#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-only
"""any_input.py FOLDER: run FOLDER/measure, which is guestseal-measure with sanitizers, on
log, vmlinuz and initrd from there, changed in many ways: the same ones each time."""
import random
import struct
import subprocess
import sys

top = sys.argv[1]
names = "log", "vmlinuz", "initrd"
good = {name: open(f"{top}/{name}", "rb").read() for name in names}
numbers = 0, 1, 255, 0x1000, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 4096, 2**64 - 1
# What is looked at in the header of a kernel
fields = 0x1F1, 0x201, 0x202, 0x206, 0x207, 0x211, 0x22C, 0x22E, 0x236, 0x238, 0x23A


def put_number(rng, data, at):
    size = rng.choice((1, 2, 4, 8))
    number = rng.choice(numbers + (rng.getrandbits(64),)) % 256**size
    data[at : at + size] = number.to_bytes(size, "little")


def records(log):
    at, found = 0, []
    while at < len(log):
        kind, size = struct.unpack_from("<II", log, at)
        found.append((kind, log[at + 8 : at + 8 + size]))
        at += 8 + size
    return found


def other_log(rng, log):
    if rng.random() < 0.1:
        return rng.randbytes(rng.randrange(3000))
    found = records(log)
    for _ in range(rng.choice((0, 1, 1, 2))):
        n = rng.randrange(len(found))
        kind, data = found[n]
        data = bytearray(data)
        match rng.randrange(5):
            case 0:
                del data[rng.randrange(len(data) + 1) :]
                del found[n + rng.choice((1, 99)) :]
            case 1:
                put_number(rng, data, rng.randrange(0, len(data) + 1, 8))
            case 2:
                data += rng.randbytes(rng.randrange(64))
            case 3:
                kind = rng.choice((kind, rng.randrange(16)))
            case 4:
                found.insert(rng.randrange(len(found) + 1), found[n])
        found[n] = (kind, bytes(data))
    log, starts = bytearray(), []
    for kind, data in found:
        starts.append(len(log))
        log += struct.pack("<II", kind, len(data)) + data
    if rng.random() < 0.3:
        put_number(rng, log, rng.choice(starts) + rng.choice((0, 4)))
    if rng.random() < 0.3:
        del log[rng.choice(starts) + rng.randrange(16) :]
    return log


def other_kernel(rng, kernel):
    kernel = bytearray(kernel)
    for _ in range(rng.choice((0, 1, 2))):
        put_number(rng, kernel, rng.choice(fields))
    if rng.random() < 0.2:
        del kernel[rng.randrange(2000) :]
    return kernel


for seed in range(150):
    rng = random.Random(seed)
    other = dict(good)
    if seed % 2:
        other["log"] = other_log(rng, good["log"])
    else:
        other["vmlinuz"] = other_kernel(rng, good["vmlinuz"])
    for name, data in other.items():
        with open(f"{top}/any-{name}", "wb") as file:
            file.write(data)
    kernel = ["-k", f"{top}/any-vmlinuz"]
    options = rng.choice((
        kernel + ["-i", f"{top}/any-initrd", "-a", rng.choice(("", "x" * 255, "x" * 256))],
        kernel,
        kernel if seed % 2 == 0 else ["-d", rng.choice(("0-0xffffffffffffffff", "-1-0", "5-"))],
        kernel if seed % 2 == 0 else ["-l", rng.choice(("-4096", "0x1000", "")) + f"={top}/vmlinuz"],
    ))
    args = [f"{top}/measure", "-p", *options, f"{top}/any-log"]
    done = subprocess.run(args, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, timeout=60)
    said = done.stderr.decode(errors="replace")
    if done.returncode not in (0, 1, 2) or "anitizer" in said or "runtime error" in said:
        sys.exit(f"seed {seed}: {args}: {done.returncode}\n{said}")
