"""Boots one kernel under qemu (tcg), waits for it within its time, and collects what it left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from lab_kernels import LAB, Kernel, LabError
from lab_rows import DISKS, Boot, Row

MEMORY_MIB = 3072
# Debian's name of an architecture -> the emulator, its options, the console's device. Of aarch64 a
# processor without pointer authentication, which takes long to emulate.
MACHINES = {
    "amd64": ("qemu-system-x86_64", ("-cpu", "max"), "ttyS0"),
    "arm64": ("qemu-system-aarch64", ("-machine", "virt", "-cpu", "neoverse-n1"), "ttyAMA0"),
}
BOOT_SECONDS = 120
CONSOLE_TAIL_LINES = 12


def make_disk(name: str, folder: Path) -> Path:
    """A sparse image with a fresh filesystem."""
    size_mib, command = DISKS[name]
    image = folder / f"{name}.img"
    with image.open("wb") as file:
        file.truncate(size_mib << 20)
    tool = shutil.which(command[0], path="/usr/sbin:/sbin:/usr/bin:/bin")
    done = subprocess.run([tool or command[0], *command[1:], image], capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"{command[0]} failed: {done.stderr.strip()}")
    return image


def qemu_command(kernel: Kernel, boot: Boot, disks: dict[str, Path], out: Path) -> list[str]:
    """The qemu command line of a boot. Never kvm: it hangs under nested virtualisation."""
    emulator, options, console = MACHINES[kernel.architecture]
    append = f"console={console} quiet panic=-1 mitigations=off"
    # An emulated timer is late on a busy host, which the kernel takes for a broken one: a panic.
    append += " no_timer_check"
    append += f" lab.python={kernel.python} lab.runner={kernel.repo}/tests/lab/lab_guest.py"
    command = ["setpriv", "--pdeathsig", "KILL"]  # a machine never outlives the run
    command += [emulator, "-accel", "tcg,thread=multi", *options, "-smp", "2"]
    command += ["-m", str(MEMORY_MIB), "-display", "none", "-monitor", "none", "-no-reboot"]
    command += ["-nic", "none", "-serial", f"file:{out / 'console.log'}"]
    command += ["-kernel", str(kernel.image), "-initrd", str(kernel.initramfs)]
    command += ["-append", f"{append} {boot.command_line}"]
    share = "local,security_model=none,multidevs=remap"
    command += ["-virtfs", f"{share},path={kernel.root},mount_tag=host,readonly=on"]
    command += ["-virtfs", f"{share},path={out},mount_tag=out"]
    for name, image in disks.items():
        command += ["-drive", f"file={image},format=raw,if=none,cache=unsafe,id={name}"]
        command += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    return command


def write_job(
    rows: tuple[Row, ...], boot: Boot, kernel: Kernel, out: Path, *, seconds: int
) -> None:
    """Tell the guest what to run."""
    job = {
        "repo": kernel.repo,
        "pythonPath": kernel.python_path,
        "programs": kernel.programs,
        "rows": [
            {
                "filesystem": row.filesystem,
                "tests": list(row.tests),
                "expects": [*boot.expects, *row.expects],
                "timeoutSeconds": seconds,
                "figureBytes": row.figure_bytes,
            }
            for row in rows
        ],
    }
    (out / "job.json").write_text(json.dumps(job), "utf-8")


def run_boot(
    boot: Boot, kernel: Kernel, rows: tuple[Row, ...], *, row_seconds: int
) -> dict[str, Any]:
    """Boot, wait, and return {"booted", "reason", "seconds", "facts", "rows"}."""
    out = LAB / "run" / boot.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    disks = {
        row.filesystem: make_disk(row.filesystem, out) for row in rows if row.filesystem in DISKS
    }
    write_job(rows, boot, kernel, out, seconds=row_seconds)
    limit = BOOT_SECONDS + len(rows) * (row_seconds + 30)
    started = time.monotonic()
    reason = ""
    with (out / "qemu.log").open("wb") as log:
        machine = subprocess.Popen(
            qemu_command(kernel, boot, disks, out),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        status, processor_seconds = wait_for(machine, limit)
        if status is None:
            reason = f"stopped after {limit} s"
        elif status != 0:
            said = (out / "qemu.log").read_text("utf-8", "replace")[-300:]
            reason = f"qemu ended with {status}: {said}"
    for image in disks.values():
        image.unlink()
    found = collect(out, reason, time.monotonic() - started)
    return {**found, "processorSeconds": round(processor_seconds, 1)}


def is_fault_of_emulation(name: str) -> bool:
    """Whether a machine ended by a breakpoint that its kernel had set to patch itself.

    With several emulated processors one of them may still meet it (`int3`) when the kernel has
    taken it away: a real processor cannot. Any other panic is a result.

    Source:
        Documentation of text_poke_bp in arch/x86/kernel/alternative.c.
    """
    path = LAB / "run" / name / "console.log"
    text = path.read_text("utf-8", "replace") if path.exists() else ""
    return "Oops: int3" in text and "Kernel panic" in text


def wait_for(machine: subprocess.Popen[bytes], seconds: float) -> tuple[int | None, float]:
    """Wait for a machine, and kill it after its time.

    Returns:
        Its exit status, None if it was killed; and the processor time that it took, which says how
        long it takes on a machine that does nothing else.
    """
    deadline, killed = time.monotonic() + seconds, False
    while True:
        pid, status, usage = os.wait4(machine.pid, os.WNOHANG)
        if pid:
            machine.returncode = os.waitstatus_to_exitcode(status)
            return None if killed else machine.returncode, usage.ru_utime + usage.ru_stime
        if time.monotonic() > deadline and not killed:
            machine.kill()
            killed = True
        time.sleep(0.2)


def read_done(path: Path) -> dict[str, Any]:
    """The guest's own account, of the form that lab_guest.py gives it; anything else raises."""
    document = json.loads(path.read_text("utf-8"))
    rows = {
        str(name): {
            "status": None if row["status"] is None else int(row["status"]),
            "reason": str(row["reason"]),
            "seconds": float(row["seconds"]),
        }
        for name, row in dict(document["rows"]).items()
    }
    return {"facts": dict(document["facts"]), "rows": rows}


def collect(out: Path, reason: str, seconds: float) -> dict[str, Any]:
    """Read what the guest left; without done.json it did not boot, and the console says why."""
    result: dict[str, Any] = {"booted": False, "reason": reason, "seconds": round(seconds, 1)}
    result.update({"facts": {}, "rows": {}})
    try:
        result.update(read_done(out / "done.json"))
        result["booted"] = True
    except (OSError, ValueError, TypeError, KeyError):
        console = out / "console.log"
        text = console.read_text("utf-8", "replace") if console.exists() else ""
        tail = os.linesep.join(text.splitlines()[-CONSOLE_TAIL_LINES:])
        result["reason"] = f"no result. {reason} Last lines of {console}:\n{tail}"
    return result
