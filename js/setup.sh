#!/bin/sh
# Installs the compiler and the bundler of the package, and builds it. The browsers that its tests
# run in come from interop/js/setup.sh.
set -eu
cd "$(dirname "$0")"

wanted=$(node --version; sha256sum package.json package-lock.json .npmrc)
stamp=node_modules/.anabranch-stamp
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ]; then
    # Neither needs an install script: their binaries are packages of their own.
    npm ci --ignore-scripts --no-audit --no-fund --loglevel=error
    printf '%s\n' "$wanted" > "$stamp"
fi
node build.mjs
