#!/usr/bin/env bash
# The main job on examples/ with real Pants: package, verify, prove, refuse what was tampered with.
# Works as root, with sudo and without root; the posture that was reached is printed with its reason.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

rootseal=$PWD/.venv/bin/rootseal
pants=${ROOTSEAL_PANTS_VENV:-$PWD/.venv-pants}/bin/pants
demo=$PWD/build/demo
[ -x "$pants" ] || die "demo: there is no $pants; \`make setup\` says how to get it"
bundle=dist/rootseal/build.rootseal
export PANTS_CONFIG_FILES=${PANTS_CONFIG_FILES:-$PWD/build/pants-local.toml}
if [ -t 1 ]; then bold=$'\e[1m' dim=$'\e[2m' plain=$'\e[0m'; else bold='' dim='' plain=''; fi

step() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
show() { printf '%s$ %s%s\n' "$dim" "${*//$PWD\//}" "$plain"; }
run() {
    show "$@"
    "$@"
}
# refused CMD...: the command must exit with 1 and say why; anything else ends the demo.
refused() {
    local code=0
    show "$@"
    "$@" || code=$?
    [ "$code" = 1 ] || die "demo: that should have been refused with exit code 1, not $code"
}

# A daemon that this demo starts is stopped at its end; one that runs already is left alone.
had_daemon=no
"$rootseal" daemon status >/dev/null 2>&1 && had_daemon=yes
finish() {
    local code=$?
    [ "$had_daemon" = yes ] || "$rootseal" daemon stop >/dev/null 2>&1 || true
    give_back build dist .pants.d
    [ "$code" = 0 ] || say "demo: stopped with exit code $code" >&2
}
trap finish EXIT
rm -rf "$demo" dist/rootseal
mkdir -p "$demo"

step "1. What this host can capture"
export COLUMNS=${COLUMNS:-120}
run "$rootseal" doctor || true

step "2. A signing key"
run "$rootseal" keygen "$demo/release.key"

step "3. Package examples/ with Pants; every action is captured, the run is sealed"
export PANTS_ROOTSEAL_KEY=$demo/release.key
run "$pants" --no-pantsd package examples::
"$rootseal" show "$bundle" --key "$demo/release.pub" --json >"$demo/show.json"
ask() { .venv/bin/python -c 'import json, sys; d = json.load(open(sys.argv[1])); print(eval(sys.argv[2], {"d": d}))' "$demo/show.json" "$1"; }

step "4. Verify the bundle and every artifact, offline"
mapfile -t artifacts < <(ask "'\n'.join('dist/' + item['name'] for item in d['subjects'])")
arguments=()
for artifact in "${artifacts[@]}"; do arguments+=(--artifact "$artifact"); done
run "$rootseal" verify "$bundle" --key "$demo/release.pub" "${arguments[@]}"

step "5. Prove single facts to somebody who has neither the bundle nor the sources"
source=examples/src/c/checksum/checksum.c
run "$rootseal" prove "$bundle" --artifact "${artifacts[0]}" --out "$demo/artifact.proof"
run "$rootseal" verify-proof "$demo/artifact.proof" --key "$demo/release.pub" \
    --artifact "${artifacts[0]}"
run "$rootseal" prove "$bundle" --material "$source" --out "$demo/material.proof"
run "$rootseal" verify-proof "$demo/material.proof" --key "$demo/release.pub"
run "$rootseal" prove "$bundle" --absent /etc/shadow --out "$demo/absent.proof"
run "$rootseal" verify-proof "$demo/absent.proof" --key "$demo/release.pub"

step "6. Tamper: one byte of an artifact, then one byte of the bundle"
# flip FILE COPY: a copy with one bit changed in the middle.
flip() {
    .venv/bin/python - "$1" "$2" <<'PY'
import pathlib, sys
data = bytearray(pathlib.Path(sys.argv[1]).read_bytes())
data[len(data) // 2] ^= 1
pathlib.Path(sys.argv[2]).write_bytes(data)
PY
}
flip "${artifacts[0]}" "$demo/tampered.artifact"
refused "$rootseal" verify "$bundle" --key "$demo/release.pub" --artifact "$demo/tampered.artifact"
flip "$bundle" "$demo/tampered.rootseal"
refused "$rootseal" verify "$demo/tampered.rootseal" --key "$demo/release.pub"

posture=$(ask "d['build']['summary']['posture']")
step "Done: $(ask "d['build']['summary']['actions']") actions, posture $posture"
case $posture in
sealed) say "Every file was sealed with fs-verity: the kernel refuses other content." ;;
held) say "Every opener was held by the kernel until its file was hashed." ;;
*)
    say "Why not held:"
    ask "'\n'.join(sorted({'  ' + f['reason'] for a in d['actions'] for f in a['capture']['fallbacks']}))"
    ;;
esac
say "The attestation is in dist/rootseal/: build.rootseal, manifest.json, targets/*.intoto.json"
