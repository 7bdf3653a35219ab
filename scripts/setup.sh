#!/usr/bin/env bash
# Makes .venv, with everything that the demo and the tests need. Run again it does nothing, until
# pyproject.toml, constraints.txt or this file change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TORCH="torch==2.13.0"
readonly CPU_INDEX="https://download.pytorch.org/whl/cpu"
readonly VENV=".venv"
readonly PYTHONS=(python3.13 python3.12 python3.11 python3)
readonly PY="$VENV/bin/python"
readonly STAMP="$VENV/turnwise-setup"

say() { if [ -t 2 ]; then printf '\033[2m%s\033[0m\n' "$*"; else printf '%s\n' "$*"; fi >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

# A Python that is new enough and can make environments: Debian and Ubuntu pack ensurepip apart.
find_python() {
    local name
    for name in "${PYTHONS[@]}"; do
        if "$name" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
            >/dev/null 2>&1; then
            command -v "$name"
            return
        fi
    done
    return 1
}

# The apt packages that would give one.
lacking() {
    local name
    for name in "${PYTHONS[@]}"; do
        "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11)
            or print("python%d.%d-venv" % sys.version_info[:2]))' 2>/dev/null && return
    done
    if command -v python3 >/dev/null; then
        echo "python3.11 python3.11-venv" # the usual one is older
    else
        echo "python3 python3-venv"
    fi
}

install_python() {
    local packages
    packages="$(lacking)"
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "installing $packages"
        # shellcheck disable=SC2086  # several words
        apt_install $packages && find_python >/dev/null && return
    fi
    fail "need Python 3.11 or newer with venv; run \`sudo apt-get install $packages\`"
}

apt_install() {
    apt-get -qq update </dev/null >/dev/null || true # one source of many may be down
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" \
        </dev/null >/dev/null
}

# What decides the contents of .venv; a copied checkout has another path and gets its own.
fingerprint() {
    { pwd; cat pyproject.toml constraints.txt scripts/setup.sh; } | sha256sum | cut -d' ' -f1
}

fresh() {
    [ -f "$STAMP" ] && [ "$(cat "$STAMP")" = "$(fingerprint)" ] && "$PY" -c '' 2>/dev/null
}

pip_install() {
    local quiet=()
    [ -t 1 ] || quiet=(--quiet)
    "$PY" -m pip install --disable-pip-version-check "${quiet[@]}" "$@"
}

answers() {
    timeout 10 "$PY" -c 'import sys, urllib.request as r; r.urlopen(sys.argv[1], timeout=5)' "$1" \
        >/dev/null 2>&1
}

has_gpu() { command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; }

install_torch() {
    if has_gpu; then
        say "[2/4] torch for the GPU (large: some minutes)"
    elif answers "$CPU_INDEX/torch/"; then
        say "[2/4] torch for the CPU (some 200 MB)"
        # Alone: what it needs comes from the usual index, in the versions of constraints.txt.
        pip_install --no-deps --index-url "$CPU_INDEX" "$TORCH" && return
        say "      not from PyTorch's own index; trying the usual one"
    else
        say "[2/4] torch (PyTorch's own CPU index does not answer, so from the usual one)"
    fi
    pip_install -c constraints.txt "$TORCH"
}

# Whether .venv was made here, by a Python that is new enough, and as far as pip.
usable() {
    "$PY" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11) or sys.prefix != sys.argv[1])' \
        "$PWD/$VENV" 2>/dev/null
}

make_venv() {
    usable && return
    local python
    find_python >/dev/null || install_python
    python="$(find_python)"
    say "[1/4] $VENV with $("$python" --version)"
    rm -rf "$VENV"
    "$python" -m venv "$VENV"
}

install_packages() {
    install_torch
    say "[3/4] turnwise and what it needs"
    pip_install -c constraints.txt -e '.[train,babyai,browser,docker,remote,ray,dev]'
}

install_bubblewrap() {
    command -v bwrap >/dev/null && return
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        say "[4/4] bubblewrap, which runs the sandboxes"
        apt_install bubblewrap && return
    fi
    say "[4/4] sandboxes need bubblewrap; run \`sudo apt-get install bubblewrap\`"
}

if ! fresh; then
    make_venv
    pip_install --upgrade pip
    install_packages
    install_bubblewrap
    fingerprint >"$STAMP"
    say "ready; \`$VENV/bin/turnwise doctor\` looks at this machine"
elif ! command -v bwrap >/dev/null; then
    install_bubblewrap
fi
