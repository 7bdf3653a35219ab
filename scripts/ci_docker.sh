#!/usr/bin/env bash
# A docker engine for the tests, from Debian packages and with no registry:
#   eval "$(scripts/ci_docker.sh start)"    # prints `export DOCKER_HOST=...`; the image is built, too
#   scripts/ci_docker.sh stop               # leaves no process, mount, cgroup or file
# An engine that already answers is used as it is. TURNWISE_CI_DOCKER names the folder of our own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly DIR="${TURNWISE_CI_DOCKER:-/tmp/turnwise-ci-$(pwd | cksum | cut -d' ' -f1)}"
readonly PID_FILE="$DIR/docker.pid"
readonly SOCKET="$DIR/docker.sock"
readonly CGROUP="${DIR##*/}"
readonly PY=".venv/bin/python"
readonly START_S=60 STOP_S=30

say() { printf '%s\n' "$*" >&2; }
fail() { say "ci_docker: $*"; exit 1; }

# Every call is bounded: an engine that hangs must fail the tests, not hold them.
answers() { timeout -s KILL 10 "$PY" - "$1" >/dev/null 2>&1 <<'PY'
import sys
import docker
docker.APIClient(base_url=sys.argv[1], version="auto", timeout=8).ping()
PY
}

install_engine() {
    command -v dockerd >/dev/null && return
    command -v apt-get >/dev/null || fail "dockerd is missing and there is no apt-get to get it"
    say "installing docker.io"
    local policy=/usr/sbin/policy-rc.d ours=
    if [ ! -e "$policy" ]; then # the package must not start an engine of its own
        ours=1
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    export DEBIAN_FRONTEND=noninteractive
    { timeout -s KILL 600 apt-get -qq update &&
        timeout -s KILL 600 apt-get -qq install -y --no-install-recommends docker.io runc containerd; } \
        </dev/null >&2 || fail "docker.io could not be installed"
    [ -z "$ours" ] || rm -f "$policy"
}

is_ours() { # the process of the pid file, if it is a dockerd on our folder
    [ -s "$PID_FILE" ] && tr '\0' ' ' 2>/dev/null <"/proc/$(cat "$PID_FILE")/cmdline" |
        grep -q -F -- "dockerd -H unix://$SOCKET "
}

start_engine() {
    mkdir -p -m 0700 "$DIR"
    [ -O "$DIR" ] && [ ! -L "$DIR" ] || fail "$DIR belongs to somebody else"
    is_ours || rm -f "$PID_FILE" "$SOCKET"
    if ! is_ours; then
        setsid dockerd -H "unix://$SOCKET" --data-root "$DIR/data" --exec-root "$DIR/exec" \
            -p "$PID_FILE" --storage-driver overlay2 --iptables=false --ip6tables=false \
            --bridge=none --cgroup-parent "/$CGROUP" >"$DIR/dockerd.log" 2>&1 </dev/null &
    fi
    local end=$((SECONDS + START_S))
    until answers "unix://$SOCKET"; do
        if [ "$SECONDS" -ge "$end" ]; then
            tail -5 "$DIR/dockerd.log" >&2
            fail "dockerd did not answer within $START_S s"
        fi
        sleep 0.2
    done
}

start() {
    "$PY" -c 'import docker' 2>/dev/null ||
        "$PY" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docker]' >&2
    if [ -n "${DOCKER_HOST:-}" ] && answers "$DOCKER_HOST"; then
        say "using the engine at $DOCKER_HOST"
    else
        [ "$(id -u)" = 0 ] || fail "no engine answers at '${DOCKER_HOST:-}', and starting one needs root"
        install_engine
        start_engine
        export DOCKER_HOST="unix://$SOCKET"
    fi
    timeout -s KILL 600 "$PY" -m turnwise.cli.sandbox_image >&2
    printf 'export DOCKER_HOST=%s\n' "$DOCKER_HOST"
}

stop() {
    [ -d "$DIR" ] || return 0
    if is_ours; then
        local pid end=$((SECONDS + STOP_S))
        pid="$(cat "$PID_FILE")"
        kill "$pid"
        while is_ours || [ -d "/proc/$pid" ]; do
            [ "$SECONDS" -lt "$end" ] || { kill -KILL "$pid"; break; }
            sleep 0.1
        done
    fi
    local mount
    while read -r mount; do umount -l "$mount" || true; done \
        < <(cut -d' ' -f5 /proc/self/mountinfo | grep -F "$DIR/" | sort -r)
    find /sys/fs/cgroup -depth -type d -path "*/$CGROUP*" -exec rmdir {} + 2>/dev/null || true
    rm -rf --one-file-system "$DIR"
}

case "${1:-}" in
start | stop) "$1" ;;
*) fail "usage: scripts/ci_docker.sh start | stop" ;;
esac
