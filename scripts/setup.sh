#!/usr/bin/env bash
# Make this checkout ready on Debian 12 or Ubuntu: system packages, .venv, .venv-pants.
# Everything is pinned (requirements/), nothing is repeated: a second run takes a moment.
# PYTHON=/path/to/python picks the interpreter of .venv; ROOTSEAL_PYTHON39 that of .venv-pants.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
mkdir -p build
trap 'give_back build .venv .venv-pants' EXIT

PACKAGES=(gcc make pkg-config libc6-dev libssl-dev libcap2-bin musl-tools linux-libc-dev
    clang clang-format llvm libbpf-dev libelf-dev python3 python3-venv python3-dev git
    ca-certificates util-linux strace e2fsprogs)
# Sanitizers and fuzzer of clang, where they are a package of their own (Debian 12, Ubuntu 24.04).
PACKAGES_IF_KNOWN=(libclang-rt-dev)
# What only tests of the BCC loader need; without them they say so and skip. Any kernel's headers do.
TEST_PACKAGES=(python3-bpfcc)
ls /usr/src/*/include/generated/utsrelease.h >/dev/null 2>&1 ||
    TEST_PACKAGES+=("$(. /etc/os-release && [ "$ID" = ubuntu ] && echo linux-headers-generic ||
        echo "linux-headers-$(dpkg --print-architecture 2>/dev/null)")")

missing_packages() {
    local package
    for package; do
        dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null | grep -qx installed ||
            printf '%s\n' "$package"
    done
}

known_packages() {
    local package
    for package in "${PACKAGES_IF_KNOWN[@]}"; do
        ! apt-cache show "$package" >/dev/null 2>&1 || printf '%s\n' "$package"
    done
}

install_packages() {
    command -v dpkg-query >/dev/null || {
        say "setup: not Debian or Ubuntu; install these by hand: ${PACKAGES[*]}"
        return
    }
    local missing
    mapfile -t missing < <(missing_packages "${PACKAGES[@]}" $(known_packages))
    [ "${#missing[@]}" -gt 0 ] || return 0
    say "setup: installing ${missing[*]}"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq || [ $? -ne 77 ] || die \
        "setup: not root and no sudo; ask root to run: apt-get install ${missing[*]}"
    mapfile -t missing < <(missing_packages "${PACKAGES[@]}" $(known_packages)) # apt knows more of them now
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >build/apt.log 2>&1 ||
        die "setup: apt-get failed; its output is in build/apt.log"
}

install_test_packages() {
    command -v dpkg-query >/dev/null || return 0
    local missing
    mapfile -t missing < <(missing_packages "${TEST_PACKAGES[@]}")
    [ "${#missing[@]}" -gt 0 ] || return 0
    say "setup: installing ${missing[*]} (for tests)"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get update -qq || true
    as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${missing[@]}" >build/apt-tests.log 2>&1 ||
        say "setup: going on without ${missing[*]}: tests of the BCC loader cannot run"
}

# Able to make a venv and to compile an extension, and at least 3.9.
python_is_usable() {
    "$1" - 2>/dev/null <<'PY'
import ensurepip, os, sys, sysconfig, venv
header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
sys.exit(not (sys.version_info >= (3, 9) and os.path.exists(header)))
PY
}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" /usr/bin/python3 python3 python3.13 python3.12 python3.11 python3.10 \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1*/bin/python3 python3.9; do
        [ -n "$candidate" ] || continue
        if python_is_usable "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "setup: no Python >= 3.9 with venv and headers; install python3-venv and python3-dev, or name one: PYTHON=/path/to/python3 make setup"
}

make_venv() {
    local stamp=build/venv.stamp want python
    want=$(cat requirements/dev.txt requirements/constraints.txt | sha256sum | cut -d' ' -f1)
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ]; then
        return
    fi
    python=$(find_python)
    say "setup: .venv with $("$python" --version 2>&1)"
    [ -x .venv/bin/python ] && .venv/bin/python -c '' 2>/dev/null || {
        rm -rf .venv
        "$python" -m venv .venv
    }
    .venv/bin/python -m pip install -q -r requirements/dev.txt -c requirements/constraints.txt
    printf '%s\n' "$want" >"$stamp"
}

install_packages
install_test_packages
make_venv
code=0
scripts/setup-pants.sh || code=$?
case $code in
0) ;;
3) say "setup: going on without Pants: the groups plugin and integration, and the demo, cannot run" ;;
*) exit "$code" ;;
esac
