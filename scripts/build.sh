#!/usr/bin/env bash
# Compile the static launcher and helper (native/) and the capture core, and install rootseal
# into .venv in place. Skipped when no source changed since the last time.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
mkdir -p build
trap 'give_back build .venv pants-plugins/rootseal pants-plugins/rootseal.egg-info' EXIT

[ ! -f native/Makefile ] || make -s -C native all
# The trace programs are optional: `rootseal doctor` says what to install for them.
if command -v clang >/dev/null && [ -f /usr/include/bpf/bpf_helpers.h ]; then
    make -s -C bpf all
else
    say "build: without the eBPF backend; for it: apt-get install clang libbpf-dev"
fi

inputs() {
    git ls-files --cached --others --exclude-standard native bpf setup.py pyproject.toml \
        pants-plugins/rootseal/_native_build.py 2>/dev/null ||
        find native bpf setup.py pyproject.toml -type f 2>/dev/null
}

want=$({
    .venv/bin/python -V
    inputs | sort | while read -r file; do
        [ ! -f "$file" ] || sha256sum "$file"
    done
} | sha256sum | cut -d' ' -f1)
stamp=build/build.stamp
if [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && [ -x .venv/bin/rootseal ]; then
    exit 0
fi
.venv/bin/python -m pip install -q --no-build-isolation --no-deps -e . >build/pip.log 2>&1 || {
    tail -n 40 build/pip.log >&2
    die "build: the extension did not build; the whole output is in build/pip.log"
}
printf '%s\n' "$want" >"$stamp"
say "build: rootseal $(.venv/bin/python -c 'import rootseal; print(rootseal.__version__)') is installed in .venv"
