"""First process of a lab guest after the initramfs: runs the rows of its job, then powers off.

Reads /lab/out/job.json; leaves one JUnit file and one log per row, and done.json, in /lab/out.
As process 1 it also reaps orphans, which tests of descendants rely on. Stdlib only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OUT = Path("/lab/out")
FILESYSTEMS = Path("/lab/fs")
INTERRUPT_SECONDS = 20
# No whole ticks of the kernel, which are 1, 4 or 10 ms.
CLOCK_FRACTION_NS = 1_234_567


def read_text(path: str) -> str:
    """A file of /proc or /sys, empty if it is not there."""
    try:
        return Path(path).read_text("utf-8", "replace").strip()
    except OSError:
        return ""


def facts() -> dict[str, Any]:
    """What this kernel is, for the results."""
    ima = read_text("/sys/kernel/security/ima/runtime_measurements_count")
    return {
        "release": os.uname().release,
        "version": os.uname().version,
        "lsm": read_text("/sys/kernel/security/lsm"),
        "imaMeasurements": int(ima or 0),
        "btf": Path("/sys/kernel/btf/vmlinux").exists(),
        "commandLine": read_text("/proc/cmdline"),
    }


def device_of(serial: str) -> str:
    """The virtio disk whose serial number the host set to the filesystem's name."""
    for block in Path("/sys/block").iterdir():
        if read_text(f"{block}/serial") == serial:
            return f"/dev/{block.name}"
    raise RuntimeError(f"no disk with the serial {serial}")


def mount_filesystem(name: str) -> Path:
    """Mount the row's filesystem and return the folder for temporary files on it."""
    folder = FILESYSTEMS / name
    folder.mkdir(parents=True, exist_ok=True)
    if name == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=50%,mode=755", "tmpfs", str(folder)]
        subprocess.run(command, check=True)
    elif name != "overlay":  # the root of the guest is an overlay already
        subprocess.run(["mount", "-t", name, device_of(name), str(folder)], check=True)
    temporary = folder / "tmp"
    temporary.mkdir(mode=0o1777, exist_ok=True)
    temporary.chmod(0o1777)
    return temporary


def stop(child: subprocess.Popen[bytes]) -> int:
    """Interrupt pytest, so that it reports what ran until now; kill it if that does not help."""
    os.kill(child.pid, signal.SIGINT)
    try:
        return child.wait(timeout=INTERRUPT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        return child.wait()


def run_row(row: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
    """Run pytest for one row, within its time, and say how it ended."""
    stem = OUT / row["filesystem"]
    started = time.monotonic()
    try:
        temporary = mount_filesystem(row["filesystem"])
    except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
        return {"status": None, "reason": f"not mounted: {error}", "seconds": 0.0}
    environment = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",  # so that the log shows where a test hangs
        "TMPDIR": str(temporary),
        "PYTHONPATH": job["pythonPath"],
        "MUST_RUN": "kernel",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # hypothesis alone costs seconds under tcg
        "ROOTSEAL_LAB_EMULATED": "1",
        "ROOTSEAL_LAB_PROGRAMS": job["programs"],
        "ROOTSEAL_FIGURE_BYTES": str(row["figureBytes"]),
        "ROOTSEAL_LAB_EXPECTS": ",".join(row["expects"]),
        "ROOTSEAL_LAB_FILESYSTEM": row["filesystem"],
    }
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider"]
    command += [f"--junitxml={stem}.xml", f"--basetemp={temporary}/pytest", *row["tests"]]
    reason = ""
    with Path(f"{stem}.log").open("wb") as log:
        child = subprocess.Popen(
            command, cwd=job["repo"], env=environment, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            status = child.wait(timeout=row["timeoutSeconds"])
        except subprocess.TimeoutExpired:
            reason = f"stopped after {row['timeoutSeconds']} s"
            status = stop(child)
    return {"status": status, "reason": reason, "seconds": time.monotonic() - started}


def run_rows() -> None:
    """Run every row; done.json is rewritten after each, so that a later hang loses nothing."""
    job = json.loads((OUT / "job.json").read_text("utf-8"))
    document: dict[str, Any] = {"facts": facts(), "rows": {}}
    for row in job["rows"]:
        print(f"LAB: row {row['filesystem']}", flush=True)
        document["rows"][row["filesystem"]] = run_row(row, job)
        (OUT / "done.part").write_text(json.dumps(document, indent=1), "utf-8")
        (OUT / "done.part").replace(OUT / "done.json")
    print("LAB: done", flush=True)


def set_clock_beside_the_tick() -> None:
    """Keep file times off whole seconds, as they are on real machines.

    An emulated machine counts exact ticks from a whole second, so one file in 250 would get a time
    that the core takes for that of a filesystem with no finer ones, and treats with more care.
    """
    time.clock_settime_ns(time.CLOCK_REALTIME, int(time.time()) * 10**9 + CLOCK_FRACTION_NS)


def main() -> None:
    """As process 1: fork the runner, reap everything until it ends, power off."""
    os.environ["PATH"] = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    set_clock_beside_the_tick()
    runner = os.fork()
    if runner == 0:
        os.setsid()
        run_rows()
        os._exit(0)
    while os.wait()[0] != runner:
        pass
    os.sync()
    Path("/proc/sysrq-trigger").write_text("b", "ascii")  # qemu -no-reboot ends here
    time.sleep(60)


if __name__ == "__main__":
    main()
