#!/usr/bin/env bash
# A Chromium for the tests of web environments, from Debian packages. One that is there is used.
set -euo pipefail

for name in "${TURNWISE_CHROMIUM:-}" chromium-headless-shell chromium chromium-browser \
    google-chrome google-chrome-stable; do
    if [ -n "$name" ] && command -v "$name" >/dev/null; then
        exit 0
    fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "ci_chromium: no chromium; run \`sudo apt-get install chromium-headless-shell\`" >&2
    exit 1
fi
echo "installing chromium-headless-shell" >&2
export DEBIAN_FRONTEND=noninteractive
timeout -s KILL 600 apt-get -qq update </dev/null >&2 || true # one source of many may be down
timeout -s KILL 900 apt-get -qq install -y --no-install-recommends \
    chromium-headless-shell fonts-liberation </dev/null >&2
