#!/usr/bin/env bash
# A Chromium for the tests of web environments, from Debian packages. One that is there is used.
set -euo pipefail

for name in "${TURNWISE_CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
    if [ -n "$name" ] && command -v "$name" >/dev/null; then
        exit 0
    fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "ci_chromium: no chromium; run \`sudo apt-get install chromium\`" >&2
    exit 1
fi
echo "installing chromium" >&2
export DEBIAN_FRONTEND=noninteractive
timeout -s KILL 600 apt-get -qq update </dev/null >&2 || true # one source of many may be down
timeout -s KILL 900 apt-get -qq install -y --no-install-recommends \
    chromium fonts-liberation </dev/null >&2
