#!/usr/bin/env bash
# Three containers, as users run them, written to without a pause while their leader is killed, stopped, paused, and
# cut off from the network until it has another address, and while all of them are killed. After each fault writes
# must go on, and the member that comes back must catch up; at the end every acknowledged value is read back through
# every member.
#
# Works with docker compose and docker-compose, with and without images at hand, and leaves no container, volume or
# network behind. PONTOON_CLIENT names a pontoon to use as the client, PONTOON_PROFILE the profile of the image.
set -euo pipefail
cd "$(dirname "$0")/.."

project=pontoon-test
if docker compose version >/dev/null 2>&1; then
    compose_command=(docker compose)
else
    compose_command=(docker-compose)
fi
compose() { "${compose_command[@]}" -p "$project" "$@" </dev/null; }

work=$(mktemp -d)
writer=
bystander=
clean() {
    [ -z "$bystander" ] || docker rm -f "$bystander" >/dev/null 2>&1 || true
    compose down -v --remove-orphans >/dev/null 2>&1 || true
}
finish() {
    local code=$?
    touch "$work/stop"
    [ -z "$writer" ] || wait "$writer" 2>/dev/null || true
    if [ "$code" -ne 0 ]; then
        compose ps || true
        compose logs --tail 40 || true
    fi
    clean
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT

# Of a run that was broken off.
clean

client=${PONTOON_CLIENT:-target/debug/pontoon}
[ -x "$client" ] || cargo build --locked --bin pontoon

export PONTOON_PROFILE=${PONTOON_PROFILE:-dev}
if ! docker image inspect rust:1-bookworm debian:bookworm-slim >/dev/null 2>&1 &&
    ! { docker pull -q rust:1-bookworm && docker pull -q debian:bookworm-slim; } >/dev/null 2>&1; then
    echo "no base image can be pulled: making stand-ins"
fi
scripts/standin-images.sh
docker build -q --force-rm --target build --build-arg PROFILE="$PONTOON_PROFILE" -t pontoon:build . >/dev/null
compose build node1 >/dev/null
# What this build replaced.
docker image prune -f --filter label=pontoon.stage=build >/dev/null
compose up -d
echo "the image is built and three containers run, after $SECONDS s"

nodes="node1 node2 node3"
port() { case $1 in node1) echo 2379 ;; node2) echo 22379 ;; node3) echo 32379 ;; esac; }
pontoon() { local node=$1; shift; "$client" --endpoints "127.0.0.1:$(port "$node")" --command-timeout 5s "$@"; }
within() {
    local what=$1 limit=$((SECONDS + 90)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$limit" ] || { echo "waited in vain for $what"; return 1; }
        sleep 0.1
    done
}
container() { compose ps -q "$1"; }
healthy() { [ "$(docker inspect -f '{{.State.Health.Status}}' "$(container "$1")")" = healthy ]; }
address() { docker inspect -f '{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}' "$1"; }
# Which of the nodes leads: its own id is the leader's.
leader() {
    local node ids
    for node in $nodes; do
        ids=$(pontoon "$node" endpoint status -w json 2>/dev/null |
            grep -oE '"(leader|member_id)":[0-9]+' | cut -d : -f 2 | sort -u | wc -l)
        [ "$ids" -ne 1 ] || { echo "$node"; return; }
    done
    return 1
}

# Writes one value after another, each until it is acknowledged, by whichever member answers.
write_on() {
    local at=0 node rest=$nodes
    while [ ! -e "$work/stop" ]; do
        at=$((at + 1))
        node=${rest%% *}
        # One that was under way when its leader died is of unknown fate, and is made again.
        until pontoon "$node" put "$(printf '/live/%06d' "$at")" "value $at" >/dev/null 2>&1; do
            [ ! -e "$work/stop" ] || return 0
            rest="${rest#* } $node"
            node=${rest%% *}
        done
        printf '/live/%06d value %d\n' "$at" "$at" >>"$work/acknowledged"
    done
}
acknowledged() { wc -l <"$work/acknowledged"; }
more_than() { [ "$(acknowledged)" -gt "$1" ]; }
# The member itself, without asking the leader, has the value.
has() { [ "$(pontoon "$1" get --consistency s --print-value-only "$2")" = "$3" ]; }
caught_up() {
    local key value
    read -r key value <<<"$(tail -n 1 "$work/acknowledged")"
    within "$1 to catch up" has "$1" "$key" "$value"
}

for node in $nodes; do within "$node to be healthy" healthy "$node"; done
pontoon node1 put /first "by node1" >/dev/null
[ "$(pontoon node3 get --print-value-only /first)" = "by node1" ]
echo "three healthy members: put on one, got on another"

: >"$work/acknowledged"
write_on &
writer=$!
network=$(docker network ls --format '{{.Name}}' | grep "^${project}_default$")

for fault in kill stop pause cut; do
    within "a leader" leader
    victim=$(leader)
    target=$(container "$victim")
    before=$(address "$target")
    within "writes" more_than "$(($(acknowledged) + 5))"
    case $fault in
        kill) docker kill "$target" >/dev/null ;;
        stop) docker stop "$target" >/dev/null ;;
        pause) docker pause "$target" >/dev/null ;;
        cut) docker network disconnect "$network" "$target" ;;
    esac
    started=$(date +%s%N)
    # The first may have been acknowledged before.
    within "writes after a $fault" more_than "$(($(acknowledged) + 1))"
    gap=$((($(date +%s%N) - started) / 1000000))
    within "writes after a $fault" more_than "$(($(acknowledged) + 20))"
    case $fault in
        kill | stop) docker start "$target" >/dev/null ;;
        pause) docker unpause "$target" >/dev/null ;;
        cut)
            # Somebody else takes its address.
            bystander=$(docker run -d --network "$network" --entrypoint sleep pontoon:dev 600)
            docker network connect --alias "$victim" "$network" "$target"
            ;;
    esac
    caught_up "$victim"
    echo "leader $victim, $fault: writes went on after $gap ms; it caught up" \
        "$([ "$before" = "$(address "$target")" ] || echo "at another address")"
done

for node in $nodes; do docker kill "$(container "$node")" >/dev/null; done
for node in $nodes; do docker start "$(container "$node")" >/dev/null; done
within "writes after all were killed" more_than "$(($(acknowledged) + 10))"
echo "all were killed and started again: writes go on"

touch "$work/stop"
wait "$writer"
for node in $nodes; do
    within "$node to be healthy" healthy "$node"
    pontoon "$node" get --prefix /live/ | paste -d ' ' - - | sort >"$work/$node"
    lost=$(sort "$work/acknowledged" | comm -23 - "$work/$node")
    [ -z "$lost" ] || { echo "$node lost:"; echo "$lost"; exit 1; }
    cmp "$work/node1" "$work/$node"
done
echo "all $(acknowledged) acknowledged values are on every member, after $SECONDS s"
