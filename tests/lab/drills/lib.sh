# What the drills share. Sourced by the scripts that run in a guest; never run.
#
# Two nodes, alpha and beta, run in one guest over loopback: each with its own run directory
# /run/NODE, its disk /dev/shm/NODE.img and its block device (alpha /dev/ublkb0, beta
# /dev/ublkb1). One resource, r0.

cd /tmp || exit 1
exec 3>&1
config=/tmp/lockstep.conf
mkdir -p /mnt/alpha /mnt/beta

step() { echo "drill: $(cut -d ' ' -f 1 /proc/uptime) $*" >&3; }
fail() {
    echo "drill: FAILED: $*" >&3
    for log in /tmp/*.log; do
        echo "--- $log"
        tail -n 25 "$log"
    done >&3
    for node in alpha beta; do
        echo "--- status of $node"
        on $node status 2>&1
    done >&3
    echo "--- kernel" >&3
    dmesg | tail -n 20 >&3
    exit 1
}
same() { [ "$1" = "$2" ] || fail "$3: expected '$2', found '$1'"; }
milliseconds() { echo $(($(date +%s%N) / 1000000)); }
absent() { [ ! -e "$1" ]; }

# Waits up to $1 seconds for a command to succeed.
wait_for() {
    local end=$(($(milliseconds) + $1 * 1000))
    shift
    until "$@"; do
        [ "$(milliseconds)" -lt $end ] || return 1
        sleep 0.05
    done
}

# One command on a node; `ok` ends the drill when it fails, `refused CODE TEXT` when it does not
# fail with that exit code and that text.
on() {
    local node=$1
    shift
    lockstep -c $config --node "$node" --run-dir "/run/$node" "$@"
}
ok() { on "$@" >/tmp/last.log 2>&1 || fail "lockstep on $* (exit code $?)"; }
refused() {
    local code=$1 text=$2
    shift 2
    on "$@" >/tmp/last.log 2>&1
    same $? "$code" "exit code of $*"
    grep -q "$text" /tmp/last.log || fail "'$text' is not said by $*"
}
# A value of `status --json`: of the device, or of the peer device.
device() { on "$1" status r0 --json | python3 -c 'import json, sys
print(json.load(sys.stdin)[0]["devices"][0][sys.argv[1]])' "$2"; }
peer_device() { on "$1" status r0 --json | python3 -c 'import json, sys
print(json.load(sys.stdin)[0]["connections"][0]["peer_devices"][0][sys.argv[1]])' "$2"; }

# configure PROTOCOL [MIB]: the configuration and empty disks.
configure() {
    local protocol=$1 size=${2:-320}
    {
        echo "resource r0 {"
        echo "    net { protocol $protocol; shared-secret \"of the drill\"; connect-int 3; timeout 25; }"
        local id=0 node
        for node in alpha beta; do
            echo "    on $node {"
            echo "        node-id $id; address 127.0.0.$((id + 1)):7789;"
            echo "        volume 0 { device /dev/ublkb$id; disk ${disk:-/dev/shm}/$node.img; meta-disk internal; }"
            echo "    }"
            id=$((id + 1))
        done
        echo "}"
    } >$config
    for node in alpha beta; do
        [ -n "${disk:-}" ] || truncate -s "${size}M" /dev/shm/$node.img
        ok $node create-md r0
    done
}
start_agent() {
    setsid lockstep -c $config --node "$1" --run-dir "/run/$1" agent >>"/tmp/$1.log" 2>&1 &
    echo $! >"/tmp/$1.agent"
    disown $!
    wait_for 30 on "$1" status >/dev/null 2>&1 || fail "the agent of $1 does not answer"
}
# Both nodes up and in sync, alpha primary with its block device.
start_pair() {
    start_agent alpha
    start_agent beta
    wait_for 60 on alpha wait-connect r0 --timeout 30 >/tmp/last.log 2>&1 || fail "no connection"
    ok alpha primary r0 --force
    [ -b /dev/ublkb0 ] || fail "no /dev/ublkb0 on the primary"
    ok alpha wait-sync r0 --timeout 120
}
plane() { cat "/run/$1/r0.pid" 2>/dev/null; }
new_plane() { [ -n "$(plane "$1")" ] && [ "$(plane "$1")" != "$2" ]; }
role_is() { [ "$(on "$1" role r0 2>/dev/null)" = "$2" ]; }
cstate_is() { [ "$(on "$1" cstate r0 2>/dev/null)" = "$2" ]; }
# kill -9 of every process of a node, agent first, so that nobody starts a successor.
kill_node() { kill -KILL "$(cat "/tmp/$1.agent")" "$(plane "$1")" || fail "nothing to kill on $1"; }

quiet_kernel() {
    dmesg | grep -E 'I/O error|EXT4-fs (error|warning)|XFS.*(error|corrupt)|hung task' >&3 &&
        fail "the kernel saw errors"
}
check_file_system() { # KIND DEVICE
    case $1 in
    ext4) e2fsck -fn "$2" >/tmp/fsck.log 2>&1 || fail "e2fsck of $2" ;;
    xfs) xfs_repair -n "$2" >/tmp/fsck.log 2>&1 || fail "xfs_repair of $2" ;;
    esac
}
# A tree of real files in $1, and its checksums in /tmp/tree.sums.
copy_tree() {
    mkdir "$1" && cp -r /usr/share/common-licenses "$1/" &&
        cp -r /usr/lib/python3*/{asyncio,email,json,unittest,xml} "$1/" || fail "copying to $1"
    (cd "$1" && find . -type f -exec sha256sum {} + >/tmp/tree.sums) || fail "checksums of $1"
    [ "$(wc -l </tmp/tree.sums)" -gt 100 ] || fail "the tree is too small"
}
check_tree() {
    (cd "$1" && sha256sum --quiet -c /tmp/tree.sums >/tmp/sums.log 2>&1) || fail "files differ in $1"
}
