# shellcheck shell=bash
# What the scripts share: words, root, packages and the Rust toolchain. To be sourced.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '==> %s\n' "$*" >&2; }

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# Runs a command as root: as it is for root, else through sudo.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -- "$@"
    fi
}

need_root() {
    [ "$(id -u)" -eq 0 ] && return
    command -v sudo >/dev/null || fail "containers need root, and there is no sudo here: run this as root"
    say "containers need root: sudo may ask for your password"
    sudo -v || fail "containers need root, and sudo does not give it: run this as root"
}

# The system's own copy of a program: tasks of the host image see /usr, not what a user has installed at home.
in_system() { [ -x "/usr/bin/$1" ] || [ -x "/usr/local/bin/$1" ]; }

# need_packages PACKAGE=TEST...: installs each package whose test, a shell command, does not succeed.
need_packages() {
    local missing=() pair
    for pair in "$@"; do
        eval "${pair#*=}" >/dev/null 2>&1 || missing+=("${pair%%=*}")
    done
    [ "${#missing[@]}" -eq 0 ] && return
    command -v apt-get >/dev/null ||
        fail "these are missing, and only Debian's and Ubuntu's can be installed from here: ${missing[*]}"
    say "installing ${missing[*]}"
    as_root apt-get update -qq || fail "the package lists cannot be read: is the network there?"
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >&2 ||
        fail "these packages cannot be installed: ${missing[*]}"
}

# What compiling needs.
need_build() {
    [ "$(uname -s)" = Linux ] || fail "Faber runs on Linux only: containers are a feature of its kernel"
    need_packages 'gcc=command -v cc' 'libc6-dev=test -e /usr/include/stdlib.h'
    need_rust
}

need_rust() {
    local wanted found
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' Cargo.toml)
    command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
    command -v cargo >/dev/null || fail "Rust $wanted or newer is missing: install it from https://rustup.rs, then run this again"
    found=$(rustc --version | cut -d' ' -f2)
    [ "$(printf '%s\n' "$wanted" "$found" | sort -V | head -n 1)" = "$wanted" ] ||
        fail "Rust $found is too old: $wanted or newer is needed (rustup update)"
}

# build_faber ARGUMENT...: builds Faber, and prints where it is: with CARGO_TARGET_DIR, or build.target-dir in a config.toml, that
# is not below target.
build_faber() {
    cargo build --locked --bin faber --message-format json-render-diagnostics "$@" |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

# Has cargo build into target whatever is set: for what goes into a machine, in which programs are where they were built.
build_into_target() { export CARGO_TARGET_DIR=$PWD/target; }

# Cargo compiles as whoever calls, and has what it compiled run as root.
run_built_as_root() {
    [ "$(id -u)" -eq 0 ] && return
    local triple
    triple=$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${triple}_RUNNER=sudo -E --"
}
