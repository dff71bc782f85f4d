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
pex_version=2.1.137 # the newest that Pants 2.17 accepts and that this script can build itself
pex=$root/build/pants/pex
mkdir -p build/pants

# Asking Pants itself whether it is there would start it: a stamp says what was installed.
stamp=build/pants/venv.stamp
want="$venv $(cat scripts/pants-requirements.txt scripts/setup-pants.sh | sha256sum)"
if [ ! -x "$venv/bin/pants" ] || [ ! -x "$pex" ] || [ "$(cat "$stamp" 2>/dev/null)" != "$want" ] ||
    ! "$venv/bin/python" -c '' 2>/dev/null; then
    python39=$(.venv/bin/python scripts/find_python39.py) # exits with 3 if there is none
    echo "setup-pants: $venv with Pants $(sed -n 's/^pantsbuild.pants==//p' scripts/pants-requirements.txt)"
    rm -rf "$venv"
    "$python39" -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check -r scripts/pants-requirements.txt
    "$venv/bin/pex" "pex==$pex_version" -c pex --no-emit-warnings --disable-cache \
        --python-shebang '/usr/bin/env python' -o "$pex.new"
    mv "$pex.new" "$pex"
    echo "$want" >"$stamp"
fi

# Interpreters that Pants may use for the builds themselves: 3.9 and later.
python39_bin=$("$venv/bin/python" -c 'import os, sys; print(os.path.join(sys.base_prefix, "bin"))')
ca_certs=${SSL_CERT_FILE:-}
sha256=$(sha256sum "$pex" | cut -d' ' -f1)
size=$(stat -c %s "$pex")
{
    echo "# Made by scripts/setup-pants.sh; used through PANTS_CONFIG_FILES."
    echo "[GLOBAL]"
    # Not the `pants` launcher, and so it is meant here.
    echo 'ignore_warnings = ["DEPRECATED: Running Pants in an external Python interpreter"]'
    [ -z "$ca_certs" ] || echo "ca_certs_path = \"$ca_certs\""
    echo "[python-bootstrap]"
    echo "search_path = [\"$python39_bin\", \"<PATH>\"]"
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
