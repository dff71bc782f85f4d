#!/usr/bin/env bash
# Run the kernel lab and judge its results. The options are those of tests/lab/lab_run.py.
# A whole run writes docs/kernels.md, but under CI, which leaves the tree as it is, build/lab/kernels.md.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

PACKAGES=(qemu-system-x86 qemu-system-arm cpio e2fsprogs xfsprogs btrfs-progs
    gcc-aarch64-linux-gnu libc6-dev-arm64-cross)

missing=()
for package in "${PACKAGES[@]}"; do
    dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
        missing+=("$package")
done
mkdir -p build
if [ "${#missing[@]}" -gt 0 ]; then
    say "lab: installing ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq || [ $? -ne 77 ] || die \
        "lab: not root and no sudo; ask root to run: apt-get install ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >build/apt-lab.log 2>&1 ||
        die "lab: apt-get failed; its output is in build/apt-lab.log"
fi
python=${ROOTSEAL_LAB_PYTHON:-.venv/bin/python}
"$python" tests/lab/lab_run.py "$@"
"$python" tests/lab/lab_table.py
exec "$python" -m pytest -q -p no:cacheprovider tests/lab
