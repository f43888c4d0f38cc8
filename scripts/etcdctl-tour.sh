#!/usr/bin/env bash
# Takes etcd's own etcdctl through every service of a cluster, and prints what it says with ids, sizes and times
# replaced: two servers that behave alike give the same text.
#
#   scripts/etcdctl-tour.sh ENDPOINTS [SECTION...]
#
# ENDPOINTS is of a cluster whose data may be lost: everything in it is deleted. Without SECTION: all of them.
set -uo pipefail

endpoints=${1:?ENDPOINTS}
shift
sections=${*:-kv txn lease watch lock elect member maintenance defrag snapshot auth}
export ETCDCTL_API=3
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

# What differs between two clusters that behave alike.
plain() {
    sed -E \
        -e 's/"(cluster_id|member_id|raft_term|ID|id|leader|hash|dbSize|dbSizeInUse|raftIndex|raftAppliedIndex|lease)":[0-9]+/"\1":N/g' \
        -e 's/"(ClusterID|MemberID|ID|Lease)" : [0-9]{2,}/"\1" : N/; s/"RaftTerm" : [1-9][0-9]*/"RaftTerm" : N/' \
        -e 's/"raftTerm":[0-9]+/"raftTerm":N/; s/"TTL" : [0-9]+/"TTL" : N/' \
        -e 's/"version":"[0-9.]+"/"version":"V"/' \
        -e 's/[0-9.]+(µs|ms|s)\b/TIME/g; s/"ttl":[0-9]+/"ttl":N/' \
        -e 's/[0-9a-f]{11,16}/ID/g; s/ +ID/ ID/g' \
        -e "s#(http://)?127\.0\.0\.1:[0-9]+#ADDRESS#g" \
        -e "s#$dir#DIR#g"
}
# Runs etcdctl; prints the command, what it says, and how it ends if not well. Of errors the last line: newer versions
# say more above it.
ctl() {
    echo "\$ etcdctl $*" | plain
    etcdctl --endpoints "$endpoints" "$@" 2>"$dir/errors" | plain
    local code=${PIPESTATUS[0]}
    [ "$code" -eq 0 ] || echo "exit $code: $(grep -v '^{' "$dir/errors" | tail -1 | plain)"
}
quiet() { etcdctl --endpoints "$endpoints" "$@" >/dev/null 2>&1; }
# The revision now.
revision() { etcdctl --endpoints "$endpoints" get x -w json | sed -E 's/.*"revision":([0-9]+).*/\1/'; }
# Prints so many lines of a command that goes on, then ends it.
some() {
    local lines=$1 file="$dir/some"
    : >"$file"
    shift
    echo "\$ etcdctl $*" | plain
    etcdctl --endpoints "$endpoints" "$@" >"$file" 2>/dev/null </dev/null &
    local child=$!
    await "$file" "$lines"
    kill "$child" 2>/dev/null
    wait "$child" 2>/dev/null
    head -n "$lines" "$file" | plain
}
await() {
    local tries
    for tries in $(seq 600); do
        [ "$(wc -l <"$1")" -ge "$2" ] && return
        sleep 0.05
    done
    echo "waited in vain for $2 lines"
}

kv() {
    ctl put a 1
    ctl put a 2 --prev-kv
    ctl put b 1
    ctl put dir/x 1
    ctl put dir/y 2
    for form in simple json fields; do ctl get dir/ --prefix -w "$form"; done
    ctl get "" --prefix --keys-only --limit 2
    ctl get "" --from-key --sort-by=VALUE --order=DESCEND --print-value-only
    ctl get a c --consistency=s
    ctl get a --rev "$(($(revision) - 4))" --print-value-only
    ctl get a --rev 1000000
    ctl get ""
    ctl put a --ignore-value
    ctl put none --ignore-value
    ctl put a 3 --lease 77
    ctl del dir/ --prefix --prev-kv
    ctl del none -w json
    ctl compaction "$(revision)"
    ctl get a --rev 1
    ctl compaction 1
    ctl compaction 1000000
}

txn() {
    quiet put t 1
    for form in simple json fields; do
        printf 'value("t") = "1"\nversion("t") > "0"\n\nput t 1\nget t\nput u 1\n\ndel t\n\n' | ctl txn -w "$form"
        printf 'create("t") = "0"\n\nput t 2\n\nget t\ndel u --prev-kv\n\n' | ctl txn -w "$form"
    done
    printf '\nput t 1\nput t 2\n\n\n' | ctl txn
    printf 'mod("none") = "0"\nvalue("none") != "x"\n\n\nput failed yes\n\n' | ctl txn
}

lease() {
    ctl lease list
    local id
    id=$(etcdctl --endpoints "$endpoints" lease grant 1000 | awk '{print $2}')
    ctl lease grant 500
    ctl lease grant 0 -w json
    # One key: etcd lists them in no order.
    ctl put l/1 x --lease "$id"
    for form in simple json fields; do
        ctl lease timetolive "$id" --keys -w "$form"
        ctl lease keep-alive "$id" --once -w "$form"
    done
    ctl get l/1 -w fields
    ctl lease list | grep -v ID
    ctl lease revoke "$id"
    ctl get l/ --prefix
    ctl lease revoke "$id"
    ctl lease timetolive "$id"
    ctl lease keep-alive "$id"
    quiet put short x --lease "$(etcdctl --endpoints "$endpoints" lease grant 2 | awk '{print $2}')"
    local tries
    for tries in $(seq 300); do
        [ -z "$(etcdctl --endpoints "$endpoints" get short)" ] && break
        sleep 0.1
    done
    ctl get short
}

watch() {
    local from
    from=$(($(revision) + 1))
    quiet put w/a 1
    quiet put w/a 2
    quiet del w/a
    printf '\nput w/b 1\nput w/c 2\n\n\n' | quiet txn
    some 14 watch w/ --prefix --rev "$from"
    some 19 watch w/ --prefix --rev "$from" --prev-kv
    some 3 watch w/a --rev "$from"
    some 6 watch w/b w/d --rev "$from"
    some 1 watch w/a --rev "$from" -w json
    some 15 watch w/a --rev "$from" -w fields
    some 12 watch w/a --rev "$from" -- sh -c 'echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE'
    quiet compaction "$((from + 1))"
    ctl watch w/a --rev "$from"
}

lock() {
    etcdctl --endpoints "$endpoints" lock l >"$dir/lock" 2>/dev/null &
    local holder=$!
    await "$dir/lock" 1
    plain <"$dir/lock"
    etcdctl --endpoints "$endpoints" lock l >"$dir/waiter" 2>/dev/null &
    local waiter=$!
    sleep 0.5
    echo "waiting: $(wc -l <"$dir/waiter")"
    kill -INT "$holder"
    wait "$holder"
    echo "exit $?"
    await "$dir/waiter" 1
    plain <"$dir/waiter"
    kill -INT "$waiter"
    wait "$waiter"
    ctl lock l -- echo held
    ctl get l --prefix
}

elect() {
    etcdctl --endpoints "$endpoints" elect e one >"$dir/leader" 2>/dev/null &
    local leader=$!
    await "$dir/leader" 2
    plain <"$dir/leader"
    some 2 elect -l e
    kill -INT "$leader"
    wait "$leader"
    echo "exit $?"
    ctl get e --prefix
}

member() {
    ctl member list
    ctl member list -w json
    ctl member list -w fields
    ctl member list -w table | sed -E 's/-+/-/g; s/ +/ /g'
    # Members come in the order of their ids, which are random.
    ctl member add new --learner --peer-urls http://127.0.0.1:1 |
        sed -E 's/(ETCD_INITIAL_CLUSTER=).*(new=ADDRESS).*/\1\2/'
    local id
    id=$(etcdctl --endpoints "$endpoints" member list | awk -F, '/unstarted/ {print $1}')
    ctl member add other --learner --peer-urls http://127.0.0.1:3
    ctl member list | sort
    ctl member update "$id" --peer-urls http://127.0.0.1:2
    ctl member promote "$id"
    # etcd forgets that a member is a learner when its address is changed; we don't.
    ctl member list | sort | sed -E 's/, (true|false)$//'
    ctl member remove "$id"
    ctl member remove "$id"
    ctl member promote 1234567812345678
    ctl member list
}

maintenance() {
    ctl endpoint health -w json
    ctl endpoint status -w json
    ctl endpoint hashkv -w json | sed -E 's/"compact_revision":-?[0-9]+/"compact_revision":N/'
    # Not with --cluster: etcdctl 3.4 then sends a URL for `:authority`, which is none.
    ctl endpoint status | sed -E 's/[0-9.]+ [kM]?B/SIZE/; s/, [0-9.]+, /, N, /g; s/, [0-9]+, /, N, /g'
    ctl alarm list
    ctl alarm disarm
    local id
    id=$(etcdctl --endpoints "$endpoints" member list | awk -F, '{print $1; exit}')
    ctl move-leader 1234567812345678
    ctl move-leader "$id"
}

defrag() {
    ctl defrag
}

snapshot() {
    quiet put snapshot 1
    ctl snapshot save "$dir/snapshot"
    ctl snapshot status "$dir/snapshot" -w json | sed -E 's/"(hash|totalSize|totalKey)":[0-9]+/"\1":N/g'
}

auth() {
    ctl auth disable
    ctl auth enable
    ctl user add root:rootpw
    ctl role add root
    ctl user grant-role root root
    ctl user add u:pw
    ctl user add u:pw
    ctl role add r
    ctl role grant-permission r read a
    ctl role grant-permission r readwrite dir/ --prefix
    ctl role grant-permission r write x y
    ctl role get r
    ctl role get r -w json
    ctl user grant-role u r
    ctl user grant-role u none
    ctl user get u
    ctl user get u --detail
    ctl user list
    ctl role list
    ctl auth enable
    ctl get a
    ctl --user root:wrong get a
    ctl --user root:rootpw put a 1
    ctl --user u:pw get a
    ctl --user u:pw put a 2
    ctl --user u:pw put dir/z 2
    ctl --user u:pw get dir/ --prefix
    ctl --user u:pw user list
    ctl --user u:pw user get u
    echo new | ctl --user root:rootpw user passwd u --interactive=false
    ctl --user u:pw get a
    ctl --user u:new get a
    ctl --user root:rootpw role revoke-permission r a
    ctl --user u:new get a
    ctl --user root:rootpw user delete root
    ctl --user root:rootpw auth disable
    ctl user revoke-role u r
    ctl role delete r
    ctl user delete u
    ctl user delete root
    ctl role delete root
    ctl user list
    ctl role list
}

quiet del "" --prefix
for section in $sections; do
    echo "== $section"
    "$section"
done
