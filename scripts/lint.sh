#!/usr/bin/env bash
# Every static check. All of them run even if one fails; the exit code says whether any did.
set -uo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
failed=()

check() {
    local name=$1
    shift
    if "$@"; then
        say "lint: $name ok"
    else
        failed+=("$name")
        say "lint: $name FAILED"
    fi
}

c_format() {
    local files
    mapfile -t files < <(git ls-files '*.c' '*.h')
    [ "${#files[@]}" -eq 0 ] || clang-format --dry-run -Werror "${files[@]}"
}

check "ruff check" .venv/bin/ruff check --quiet .
check "ruff format" .venv/bin/ruff format --check --quiet .
check "mypy rootseal" .venv/bin/mypy pants-plugins/rootseal bench scripts
# The plugin is checked against the Pants it runs in.
if [ -x .venv-pants/bin/python ] || [ -n "${CI:-}" ]; then
    check "mypy rootseal_pants" .venv/bin/mypy --python-executable .venv-pants/bin/python \
        pants-plugins/rootseal_pants
else
    say "lint: mypy rootseal_pants NOT RUN: no .venv-pants; \`make setup\` says why"
fi
check "clang-format" c_format
check "tidy" .venv/bin/python -m pytest -q -p no:cacheprovider tests/tidy_test.py tests/tidy_docs_test.py
[ "${#failed[@]}" -eq 0 ] || die "lint: failed: ${failed[*]}"
