#!/usr/bin/env bash
# Three containers, as users run them: written to on one and read on another while their leader is killed, stopped,
# paused, and cut off from the network. Every value written is read back through every member at the end.
set -euo pipefail
cd "$(dirname "$0")/.."

project=pontoon-test
compose() { docker-compose -p "$project" "$@"; }
finish() {
    local code=$?
    if [ "$code" -ne 0 ]; then
        compose ps || true
        compose logs --tail 30 || true
    fi
    compose down -v --remove-orphans >/dev/null 2>&1 || true
    exit "$code"
}
trap finish EXIT

docker image inspect rust:1-bookworm >/dev/null 2>&1 || scripts/standin-images.sh
compose build --build-arg PROFILE="${PONTOON_PROFILE:-dev}" node1
compose up -d

nodes="node1 node2 node3"
written=0
pontoon() { local node=$1; shift; compose exec -T "$node" pontoon --command-timeout 15s "$@"; }
within() {
    local what=$1 limit=$((SECONDS + 60)); shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$limit" ] || { echo "waited in vain for $what"; return 1; }
        sleep 0.3
    done
}
# Which of the nodes given leads; any of them can be asked.
leader() {
    local node
    for node in "$@"; do
        if pontoon "$node" endpoint status -w json 2>/dev/null | python3 -c '
import json, sys
status = json.load(sys.stdin)[0]["Status"]
sys.exit(status.get("leader") != status["header"]["member_id"])'; then
            echo "$node"
            return
        fi
    done
    return 1
}
others() { local node; for node in $nodes; do [ "$node" = "$1" ] || echo "$node"; done; }
write() {
    written=$((written + 1))
    # One that was under way when its leader died is of unknown fate, and is made again.
    within "a write" pontoon "$1" put "/test/$written" "value $written"
}
all_there() {
    local node at
    for node in $nodes; do
        for at in $(seq "$written"); do
            [ "$(pontoon "$node" get --print-value-only "/test/$at")" = "value $at" ] || { echo "$node lacks /test/$at"; return 1; }
        done
    done
}
find_leader() { within "a leader" leader $nodes; leader $nodes; }

for node in $nodes; do within "$node" pontoon "$node" health; done
write node1
[ "$(pontoon node3 get --print-value-only /test/1)" = "value 1" ]
echo "three members: put on one, got on another"

network=$(docker network ls --format '{{.Name}}' | grep "^${project}_default$")
for fault in kill stop pause cut; do
    victim=$(find_leader)
    survivors=$(others "$victim")
    survivor=$(echo "$survivors" | head -n 1)
    container=$(compose ps -q "$victim")
    case $fault in
        kill) docker kill "$container" >/dev/null ;;
        stop) compose stop "$victim" 2>/dev/null ;;
        pause) docker pause "$container" >/dev/null ;;
        cut) docker network disconnect "$network" "$container" ;;
    esac
    started=$(date +%s%N)
    write "$survivor"
    echo "leader $victim: $fault; a write was acknowledged $((($(date +%s%N) - started) / 1000000)) ms later"
    case $fault in
        kill | stop) docker start "$container" >/dev/null ;;
        pause) docker unpause "$container" >/dev/null ;;
        # It may get another address.
        cut) docker network connect --alias "$victim" "$network" "$container" ;;
    esac
    within "$victim to catch up" pontoon "$victim" health
    write "$victim"
done
all_there
for node in $nodes; do
    within "$node to be healthy" bash -c "[ \"\$(docker inspect -f '{{.State.Health.Status}}' \$(docker-compose -p $project ps -q $node))\" = healthy ]"
done
echo "all $written values are on all members"
