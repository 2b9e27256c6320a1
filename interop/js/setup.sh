#!/bin/sh
# Installs what the JavaScript interop tests need: the npm packages and Chromium, and Node.js
# where there is none. Quiet and cheap when nothing is missing. What comes from apt needs root and a
# Debian machine.
set -eu
cd "$(dirname "$0")"

install_node() {
    if ! command -v npm > /dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends nodejs npm > /dev/null
    fi
    major=$(node --version | sed 's/^v\([0-9]*\).*/\1/')
    if [ "$major" -lt 20 ]; then
        echo "js-libp2p needs Node.js 20 or later; this is $(node --version)" >&2
        exit 1
    fi
}

install_packages() {
    # Node's version is part of the stamp because a package's native parts may depend on it.
    wanted=$(node --version; sha256sum package.json package-lock.json .npmrc)
    stamp=node_modules/.anabranch-stamp
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then
        return
    fi
    # No package needs its install script: esbuild's and node-datachannel's binaries are packages
    # of their own, chosen by platform.
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
    printf '%s\n' "$wanted" > "$stamp"
}

install_chromium() {
    if [ -x "${CHROMIUM:-/usr/bin/chromium}" ]; then
        return
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends chromium > /dev/null
}

install_node
install_packages
install_chromium
