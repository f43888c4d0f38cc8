#!/usr/bin/env bash
# Are the files of deploy/ true? scripts/check-deploy.sh [path of pontoon]
#
# Starts one member on loopback, and looks for each metric that the rules and the dashboard name on its page; has the
# member read the example settings; and runs promtool (rules and their tests), systemd-analyze and kubernetes-validate
# where they are installed.
set -euo pipefail
pontoon=$(realpath "${1:-target/debug/pontoon}")
cd "$(dirname "$0")/.."
port=${PONTOON_CHECK_PORT:-24790}

work=$(mktemp -d)
member=
finish() {
    local code=$?
    [ -z "$member" ] || { kill "$member" && wait "$member"; } 2>/dev/null || true
    [ "$code" -eq 0 ] || tail -n 20 "$work/log" 2>/dev/null || true
    rm -rf "$work"
    exit "$code"
}
trap finish EXIT

start() {
    "$pontoon" serve --name check --data-dir "$work/data" \
        --listen-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$((port + 1))" \
        >"$work/log" 2>&1 &
    member=$!
    local limit=$((SECONDS + 30))
    until curl -fsS -m 2 "127.0.0.1:$port/readyz" >/dev/null 2>&1; do
        kill -0 "$member" 2>/dev/null || { echo "the member ended"; return 1; }
        [ "$SECONDS" -lt "$limit" ] || { echo "the member does not get ready"; return 1; }
        sleep 0.1
    done
}

# All names of the page, by their heads, as of what is between members there is no more without others. A histogram has
# three.
offered() {
    curl -fsS "127.0.0.1:$port/metrics" | awk '$1 == "#" && $2 == "TYPE" {
        print $3
        if ($4 == "histogram") { print $3 "_bucket"; print $3 "_sum"; print $3 "_count" }
    }' | sort -u
}

# Words that look like names of metrics. A label, such as grpc_method, does not.
named() { grep -oE '\b(etcd|pontoon|process|os|grpc_server)_[a-z0-9_]+' "$1" | sort -u; }

names() {
    local file unknown
    offered >"$work/offered"
    for file in deploy/prometheus/rules.yml deploy/prometheus/rules_test.yml deploy/grafana/dashboard.json; do
        named "$file" >"$work/named"
        [ -s "$work/named" ] || { echo "$file names no metric"; return 1; }
        unknown=$(comm -23 "$work/named" "$work/offered")
        [ -z "$unknown" ] || { echo "$file names what no member has:"; echo "$unknown"; return 1; }
        echo "$file: all $(wc -l <"$work/named") metrics are on a member's page"
    done
}

rules() {
    promtool check config deploy/prometheus/prometheus.yml
    promtool test rules deploy/prometheus/rules_test.yml
}

settings() {
    "$pontoon" serve --config-file deploy/systemd/pontoon.toml --print-config >"$work/settings"
    echo "deploy/systemd/pontoon.toml: $(grep -c 'pontoon\.toml:' "$work/settings") settings are understood"
}

# The program is not where the unit looks for it; and verify would only warn of words that it does not know.
unit() {
    local said
    sed "s#/usr/local/bin/pontoon#$pontoon#" deploy/systemd/pontoon.service >"$work/pontoon.service"
    said=$(systemd-analyze verify --man=no "$work/pontoon.service" 2>&1) || { echo "$said"; return 1; }
    [ -z "$said" ] || { echo "$said"; return 1; }
    systemd-analyze security --offline=true "$work/pontoon.service" | tail -n 1
}

# The tools that are there; the others are named.
with() {
    if command -v "$1" >/dev/null; then
        shift
        "$@"
    else
        echo "$1 is not installed: left out"
    fi
}

start
names
settings
with promtool rules
with systemd-analyze unit
with kubernetes-validate kubernetes-validate --strict deploy/kubernetes/*.yaml
