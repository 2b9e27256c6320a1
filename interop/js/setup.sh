#!/bin/sh
# Installs what the JavaScript interop tests need: the npm packages, Chromium and Firefox, Node.js
# if there is none, and an address for Firefox if the machine has only loopback. Quiet and cheap if
# nothing is missing. Packages from apt need root and a Debian machine.
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
    # No package needs its install script: the binaries of esbuild and node-datachannel are packages
    # of their own, selected by platform.
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

install_firefox() {
    if [ -x "${FIREFOX:-/usr/bin/firefox-esr}" ]; then
        return
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends firefox-esr > /dev/null
}

# Firefox gathers a candidate only on the address from which it would send to this one, and never in
# 127.0.0.0/8. No packet is sent there.
lookup_target=8.8.8.8

provide_address() {
    if ! command -v ip > /dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends iproute2 > /dev/null
    fi
    if ! ip route get "$lookup_target" > /dev/null 2>&1; then
        # An address of a network for documentation, on the loopback interface.
        ip address replace 198.51.100.1/32 dev lo
        ip route replace "$lookup_target/32" dev lo src 198.51.100.1
    fi
}

install_node
install_packages
install_chromium
install_firefox
provide_address
