#!/bin/sh
# Installs what the Rust interop tests need, and builds their peers. Quiet and cheap if nothing is
# missing. Packages from apt need root and a Debian machine.
set -eu
cd "$(dirname "$0")"

install_packages() {
    export DEBIAN_FRONTEND=noninteractive
    # litep2p needs protoc, and OpenSSL's headers so that its bundled sources are not built.
    if ! pkg-config --exists openssl 2> /dev/null || ! command -v protoc > /dev/null; then
        apt-get update -qq
        apt-get install -y -qq --no-install-recommends libssl-dev pkg-config protobuf-compiler \
            > /dev/null
    fi
    # The applications of unified-testing meet by Redis. The peers are built without it.
    if ! command -v redis-server > /dev/null; then
        { apt-get update -qq && apt-get install -y -qq --no-install-recommends redis-server; } \
            > /dev/null || echo "$0: redis-server is not installed" >&2
    fi
}

# One build each: in a common one, each would link what only the other one needs.
build_peers() {
    export OPENSSL_NO_VENDOR=1
    cargo build --release --quiet --locked --package libp2p-peers --features webrtc \
        --bin webrtc-peer
    cargo build --release --quiet --locked --package litep2p-peer
    # Their dependencies are the same without the features of the second.
    cargo build --release --quiet --locked --package swarm-peer --package unified \
        --package qmux-peer --no-default-features
}

install_packages
build_peers
