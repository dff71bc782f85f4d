#!/usr/bin/env bash
# Make Pants ready for this checkout without the `pants` launcher:
#   .venv-pants             Pants 2.17.1 from the package index, on CPython 3.9
#   build/pants/pex         the pex CLI (Pants would download it from GitHub)
#   build/pants-local.toml  what only this machine needs; use it with PANTS_CONFIG_FILES
# Running it again is quick. A user of the ordinary `pants` launcher does not need it.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$PWD
venv=${ROOTSEAL_PANTS_VENV:-$root/.venv-pants}
pants_version=$(sed -n 's/^pants_version = "\(.*\)"$/\1/p' pants.toml)
pex_version=2.1.137 # the newest that Pants 2.17 accepts and that this script can build itself

if ! "$venv/bin/pants" --version >/dev/null 2>&1 ||
    ! "$venv/bin/python" -c 'import pants.testutil' 2>/dev/null; then
    python39=$(.venv/bin/python scripts/find_python39.py)
    "$python39" -m venv "$venv"
    "$venv/bin/pip" install --quiet -r scripts/pants-requirements.txt
fi

pex=$root/build/pants/pex
if ! "$venv/bin/python" "$pex" --version 2>/dev/null | grep -qx "$pex_version"; then
    mkdir -p build/pants
    "$venv/bin/pex" "pex==$pex_version" -c pex --no-emit-warnings --disable-cache \
        --python-shebang '/usr/bin/env python' -o "$pex.new"
    mv "$pex.new" "$pex"
fi

# Interpreters that Pants may use for the builds themselves: 3.9 and later.
search_path=$("$venv/bin/python" - <<'PY'
import json, os, pathlib, sys
found = ["<PATH>"]
versions = pathlib.Path(os.environ.get("PYENV_ROOT", str(pathlib.Path.home() / ".pyenv"))) / "versions"
wanted = pathlib.Path(sys.base_prefix) / "bin" / "python3.9"
found.insert(0, str(wanted.parent))
print(json.dumps(found))
PY
)
ca_certs=${SSL_CERT_FILE:-}
sha256=$(sha256sum "$pex" | cut -d' ' -f1)
size=$(stat -c %s "$pex")
{
    echo "# Made by scripts/setup-pants.sh; used through PANTS_CONFIG_FILES."
    echo "[GLOBAL]"
    [ -z "$ca_certs" ] || echo "ca_certs_path = \"$ca_certs\""
    echo "[python-bootstrap]"
    echo "search_path = $search_path"
    echo "[pex-cli]"
    echo "version = \"v$pex_version\""
    echo "url_template = \"file://$pex\""
    echo "known_versions = ["
    for platform in linux_x86_64 linux_arm64; do
        echo "  \"v$pex_version|$platform|$sha256|$size\","
    done
    echo "]"
} >build/pants-local.toml.new
mv build/pants-local.toml.new build/pants-local.toml
echo "setup-pants: ready. PANTS_CONFIG_FILES=build/pants-local.toml $venv/bin/pants package ::"
