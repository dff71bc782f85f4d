#!/usr/bin/env bash
# native_tests.sh asan            C tests under ASan and UBSan
# native_tests.sh fuzz SECONDS    each libFuzzer target of native/ so long, then the Python parsers
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
[ -f native/Makefile ] || die "native_tests: native/Makefile is missing from this checkout"
case ${1:-} in
asan) make -C native asan ;;
fuzz)
    make -C native fuzz FUZZ_SECONDS="${2:-60}"
    .venv/bin/python tests/unit/fuzz_parsers.py "${2:-60}"
    ;;
*) die "usage: native_tests.sh asan | fuzz SECONDS" ;;
esac
