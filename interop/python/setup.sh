#!/bin/sh
# Installs what the Python interop tests need: a virtual environment with the packages of
# requirements.txt. Quiet and cheap if nothing is missing. Packages from apt need root and a Debian
# machine.
set -eu
cd "$(dirname "$0")"

choose_python() {
    python=$(command -v python3.11 || command -v python3 || true)
}

is_complete() {
    # fastecdsa, which py-libp2p needs, has no wheels: a compiler, GMP's headers and Python's.
    [ -n "$python" ] && "$python" -c 'import ensurepip, venv' 2> /dev/null &&
        headers=$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["include"])') &&
        printf '#include <Python.h>\n#include <gmp.h>\n' | cc -E -I "$headers" - > /dev/null 2>&1
}

install_python() {
    choose_python
    if is_complete; then
        return
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends \
        python3 python3-dev python3-venv gcc libc6-dev libgmp-dev > /dev/null
    choose_python
}

install_packages() {
    wanted=$("$python" --version; sha256sum requirements.txt)
    stamp=.venv/anabranch-stamp
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    "$python" -m venv --clear .venv
    .venv/bin/pip install --quiet --disable-pip-version-check --no-deps \
        --requirement requirements.txt
    printf '%s\n' "$wanted" > "$stamp"
}

install_python
install_packages
