#!/usr/bin/env bash
# Makes look-alikes of the base images that the Dockerfile names, where no image can be pulled: Debian from its
# packages, this machine's Rust toolchain, and the dependencies of Cargo.lock, so that the image is built without a
# network. With a normal registry none of this is needed, and images that are there already are left alone; only a
# look-alike that was made for other dependencies or another toolchain is made anew.
set -euo pipefail
cd "$(dirname "$0")/.."

label=pontoon.standin
have() { docker image inspect "$1" >/dev/null 2>&1; }
# Which inputs a look-alike was made for; nothing for a real image.
made_for() {
    docker image inspect -f "{{.Config.Env}}" "$1" 2>/dev/null | grep -q CARGO_NET_OFFLINE=true || return 0
    echo "of $(docker image inspect -f "{{index .Config.Labels \"$label\"}}" "$1")"
}

inputs=$({ rustc -vV; cat Cargo.lock "$0"; } | sha256sum | cut -c 1-16)
missing_slim=$(have debian:bookworm-slim || echo yes)
missing_rust=$(have rust:1-bookworm || echo yes)
if [ -n "$(made_for rust:1-bookworm)" ] && [ "$(made_for rust:1-bookworm)" != "of $inputs" ]; then
    docker rmi -f rust:1-bookworm >/dev/null
    missing_rust=yes
fi
[ -n "$missing_slim$missing_rust" ] || exit 0

export DEBIAN_FRONTEND=noninteractive
command -v mmdebstrap >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends mmdebstrap; } >/dev/null </dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sources=$(find /etc/apt -name 'debian.sources' -o -name sources.list -size +0 | head -n 1)

# A minimal Debian, which names no package mirror.
debian() {
    local dir=$1 packages=$2
    mmdebstrap --quiet --variant=minbase --include="$packages" bookworm "$dir" "$sources"
    find "$dir" -path '*/etc/apt/sources.list*' -type f -delete
    rm -rf "$dir"/var/lib/apt/lists/* "$dir"/var/cache/apt/*
}

if [ -n "$missing_slim" ]; then
    debian "$work/slim" ca-certificates
    tar -C "$work/slim" -c . | docker import --change "LABEL $label=$inputs" --change 'CMD ["bash"]' - debian:bookworm-slim
fi
if [ -n "$missing_rust" ]; then
    rust=$work/rust
    debian "$rust" gcc,libc6-dev,ca-certificates,python3
    mkdir -p "$rust/usr/local/rust"
    cp -a "$(rustc --print sysroot)"/{bin,lib,libexec} "$rust/usr/local/rust/"
    CARGO_HOME=$rust/usr/local/cargo cargo fetch --locked --quiet
    # No debug information and nothing optimized: nobody debugs or measures there, and both take most of the time.
    printf '[profile.dev.package."*"]\nopt-level = 0\n' >"$rust/usr/local/cargo/config.toml"
    tar -C "$rust" -c . | docker import \
        --change "LABEL $label=$inputs" \
        --change 'ENV PATH=/usr/local/rust/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'ENV CARGO_HOME=/usr/local/cargo' \
        --change 'ENV CARGO_NET_OFFLINE=true' \
        --change 'ENV CARGO_PROFILE_DEV_DEBUG=0' \
        --change 'ENV CARGO_INCREMENTAL=0' - rust:1-bookworm
fi
