#!/usr/bin/env bash
# Makes look-alikes of the base images that the Dockerfile names, where no image can be pulled: Debian from its
# packages, this machine's Rust toolchain, and the dependencies of Cargo.lock, so that the image is built without a
# network. With a normal registry none of this is needed.
set -euo pipefail
cd "$(dirname "$0")/.."

have() { docker image inspect "$1" >/dev/null 2>&1; }
have debian:bookworm-slim && have rust:1-bookworm && exit 0

command -v mmdebstrap >/dev/null || { apt-get update -q && apt-get install -yq --no-install-recommends mmdebstrap; } >/dev/null
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
sources=$(find /etc/apt -name '*.sources' -o -name sources.list | head -n 1)

# A layer names no package mirror.
forget_sources() { find "$1" -path '*/etc/apt/sources.list*' -type f -delete; }

if ! have debian:bookworm-slim; then
    mmdebstrap --quiet --variant=minbase bookworm "$work/slim" "$sources"
    forget_sources "$work/slim"
    tar -C "$work/slim" -c . | docker import --change 'CMD ["bash"]' - debian:bookworm-slim
fi
if ! have rust:1-bookworm; then
    rust=$work/rust
    mmdebstrap --quiet --variant=minbase --include=gcc,libc6-dev,ca-certificates bookworm "$rust" "$sources"
    forget_sources "$rust"
    mkdir -p "$rust/usr/local/rust"
    cp -a "$(rustc --print sysroot)"/{bin,lib,libexec} "$rust/usr/local/rust/"
    CARGO_HOME=$rust/usr/local/cargo cargo fetch --locked
    tar -C "$rust" -c . | docker import \
        --change 'ENV PATH=/usr/local/rust/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'ENV CARGO_HOME=/usr/local/cargo' \
        --change 'ENV CARGO_NET_OFFLINE=true' - rust:1-bookworm
fi
