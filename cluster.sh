#!/usr/bin/env bash
# A local cluster of quorumlog nodes on loopback. `./cluster.sh help` lists what it does.
#
# State, all below one directory: `cluster` (what was made: size, first port, token) and, for node I,
# nI/data, nI/log and nI/pid. A pid file holds the process id and the time it was started at, in the kernel's
# ticks: both must agree before any signal is sent, so that a recycled pid is never hit. What a crash of this
# script leaves is read again by its next call: nodes that run are found by their pid files.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
directory=$(realpath -ms "${QUORUMLOG_CLUSTER_DIR:-$top/.cluster}")
size_max=9
size=0 # 0: no cluster was made yet
port=${QUORUMLOG_CLUSTER_PORT:-2379}
token=""

START_S=60 # a node that replays a long log takes a while; one that died is noticed at once
STOP_S=20

usage() {
    cat <<'END'
usage: ./cluster.sh COMMAND

  start [N]      start the cluster of N nodes (1 to 9; 3 for a new one) and wait until all of it serves.
                 Makes .venv first if need be. Starts what is down, resumes what is paused, leaves what runs.
  status         a table of the nodes; exit status 1 unless all of them run
  stop           end all nodes in good order (SIGTERM)
  kill I         end node I at once (SIGKILL)
  pause I        freeze node I (SIGSTOP)
  resume I       let it go on (SIGCONT)
  restart I      stop node I if it runs, start it, wait until it serves
  logs I [-f]    the end of node I's log; -f follows it (more options are given to tail)
  wipe           end all nodes and remove the cluster with all its data
  wipe I         remove the data of node I, which must be stopped
  ctl ARGS...    the command `quorumlog ARGS...` with this cluster's endpoints
  help           this text

Node I has the client URL http://127.0.0.1:P with P = 2379 + 10(I-1), and its peer URL on port P + 1.
QUORUMLOG_CLUSTER_DIR   where everything is kept (.cluster beside this script)
QUORUMLOG_CLUSTER_PORT  the first client port (2379). With both set, clusters run side by side.
END
}

die() { printf 'cluster.sh: %s\n' "$*" >&2; exit 1; }
misuse() { printf 'cluster.sh: %s (see ./cluster.sh help)\n' "$*" >&2; exit 2; }

# --- the cluster and its nodes ------------------------------------------------------------------------------

load() {
    [[ $port =~ ^[1-9][0-9]{0,4}$ ]] && ((port + 10 * size_max <= 65535)) ||
        misuse "QUORUMLOG_CLUSTER_PORT is not a port with $((10 * size_max)) more above it: $port"
    [[ -e $directory/cluster ]] || return 0
    local made_port="" key value
    while IFS='=' read -r key value; do
        case $key in
            size) size=$value ;;
            port) made_port=$value ;;
            token) token=$value ;;
        esac
    done <"$directory/cluster"
    [[ -z ${QUORUMLOG_CLUSTER_PORT:-} || -z $made_port || $port == "$made_port" ]] ||
        die "the cluster in $directory was made for first port $made_port, not $port; wipe it or choose another directory"
    port=$made_port
    [[ $size =~ ^[1-9]$ && -n $port && -n $token ]] || die "$directory/cluster is damaged: size, port or token is missing"
}

must_exist() { ((size > 0)) || die "no cluster in $directory; make one with: ./cluster.sh start"; }

# Sets `node` to the number given, or ends with an error.
node=0
take_node() {
    must_exist
    [[ $# -ge 1 ]] || misuse "which node? Give its number, 1 to $size"
    [[ ${1#n} =~ ^[1-9]$ ]] && ((${1#n} <= size)) || misuse "no node '$1': this cluster has 1 to $size"
    node=${1#n}
}

client_port() { echo $((port + 10 * ($1 - 1))); }
client_url() { echo "http://127.0.0.1:$(client_port "$1")"; }
peer_url() { echo "http://127.0.0.1:$(($(client_port "$1") + 1))"; }

endpoints() {
    local i urls=()
    for ((i = 1; i <= size; i++)); do urls+=("$(client_url "$i")"); done
    (IFS=,; echo "${urls[*]}")
}

initial_cluster() {
    local i members=()
    for ((i = 1; i <= size; i++)); do members+=("n$i=$(peer_url "$i")"); done
    (IFS=,; echo "${members[*]}")
}

# --- processes ----------------------------------------------------------------------------------------------

# Prints "STATE STARTED" of a process: fields 3 and 22 of its stat line, counted after the command's name,
# which may hold spaces and parentheses.
process_state() {
    local stat fields
    { stat=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    read -ra fields <<<"${stat##*) }"
    echo "${fields[0]} ${fields[19]}"
}

# Prints the pid of node I if that very process lives. A zombie does not.
node_pid() {
    local pid started state now
    { read -r pid started <"$directory/n$1/pid"; } 2>/dev/null || return 1
    read -r state now < <(process_state "$pid") || return 1
    [[ $now == "$started" && $state != [ZX] ]] && echo "$pid"
}

# running, paused or stopped
node_state() {
    local pid state _
    pid=$(node_pid "$1") && read -r state _ < <(process_state "$pid") || { echo stopped; return; }
    [[ $state == T ]] && echo paused || echo running
}

wait_for_state() { # NODE STATE SECONDS
    local deadline=$((SECONDS + $3))
    until [[ $(node_state "$1") == "$2" ]]; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

signal_node() { # NODE SIGNAL
    local pid
    pid=$(node_pid "$1") || return 1
    kill "-$2" "$pid" 2>/dev/null
}

# Prints "pid 4711: command" of the process that listens on a port, and nothing if none does.
port_holder() {
    local row fields file pid
    # Not line by line with `read`: it seeks back after each, and the kernel makes the whole table anew.
    row=$(grep -hsE "^ *[0-9]+: [0-9A-F]+:$(printf '%04X' "$1") [0-9A-F]+:0000 0A " /proc/net/tcp /proc/net/tcp6) ||
        return 0
    read -ra fields <<<"$row"
    [[ ${#fields[@]} -ge 10 ]] || return 0
    file=$(find /proc/[0-9]*/fd -lname "socket:\[${fields[9]}\]" -print -quit 2>/dev/null) || true
    pid=${file#/proc/} pid=${pid%%/*}
    [[ -n $pid ]] || { echo "a process of another user"; return; }
    echo "pid $pid: $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | cut -c 1-150)"
}

check_ports() { # NODE
    local at holder
    for at in "$(client_port "$1")" "$(($(client_port "$1") + 1))"; do
        holder=$(port_holder "$at")
        [[ -z $holder ]] || die "port $at, which n$1 needs, is held by $holder"
    done
}

launch() { # NODE
    local home=$directory/n$1 pid state started
    mkdir -p "$home"
    # A session of its own: neither the terminal's Ctrl-C nor its end reaches the node. It must not inherit
    # this script's lock.
    setsid "$top/.venv/bin/quorumlog" serve --name "n$1" --data-dir "$home/data" \
        --listen-client-urls "$(client_url "$1")" --advertise-client-urls "$(client_url "$1")" \
        --listen-peer-urls "$(peer_url "$1")" --initial-advertise-peer-urls "$(peer_url "$1")" \
        --initial-cluster "$(initial_cluster)" --initial-cluster-token "$token" --initial-cluster-state new \
        </dev/null >>"$home/log" 2>&1 9>&- &
    pid=$!
    read -r state started < <(process_state "$pid") || started=0 # gone already: probe will say so
    echo "$pid $started" >"$home/pid"
}

stop_node() { # NODE: in good order if it lets us
    signal_node "$1" TERM || return 0
    signal_node "$1" CONT || true
    wait_for_state "$1" stopped "$STOP_S" && return
    echo "n$1 did not stop within $STOP_S s: killed"
    signal_node "$1" KILL || true
    wait_for_state "$1" stopped "$STOP_S" || die "n$1 cannot be killed; it may hang in the disk"
}

# --- asking the nodes ---------------------------------------------------------------------------------------

# probe SECONDS READ NODE... : see quorumlog/probe.py. Here the names of the nodes are their numbers.
probe() {
    local seconds=$1 read=$2 i arguments=()
    shift 2
    for i; do arguments+=("$i" "$(client_url "$i")" "$(node_pid "$i" || echo 0)"); done
    "$top/.venv/bin/python" -m quorumlog.probe "$seconds" "$read" "${arguments[@]}"
}

# Ends with an error if a process that no pid file tells of has the data of node I in use: this script was
# killed, or a disk was full, between the start of a node and the note of it.
must_be_unused() { # NODE
    local file=$directory/n$1/data/LOCK
    [[ ! -e $file ]] || flock -n "$file" true ||
        die "the data of n$1 is in use by pid $(tr -dc 0-9 <"$file"), which was not noted here: end it first"
}

# Waits until the nodes given serve, or shows why one does not and ends.
wait_until_serving() { # READ NODE...
    local read=$1 lines i verdict reason
    shift
    lines=$(probe "$START_S" "$read" "$@") && return
    while read -r i verdict reason; do
        [[ $verdict == failed ]] || continue
        printf 'cluster.sh: n%s does not serve: %s\n' "$i" "$reason" >&2
        printf '  the end of %s:\n' "$directory/n$i/log" >&2
        tail -n 12 "$directory/n$i/log" 2>/dev/null | sed 's/^/  | /' >&2
    done <<<"$lines"
    exit 1
}

table() {
    local i verdict rest running=() state=() answer=()
    for ((i = 1; i <= size; i++)); do
        state[i]=$(node_state "$i")
        [[ ${state[i]} != running ]] || running+=("$i")
    done
    if ((${#running[@]})); then
        while read -r i verdict rest; do
            [[ $verdict == ok ]] && answer[i]=$rest || answer[i]="unanswering - -"
        done < <(probe 1 serializable "${running[@]}")
    fi
    printf '%-5s %-8s %-8s %-23s %-23s %-11s %5s %9s\n' NODE STATE PID CLIENT PEER ROLE TERM APPLIED
    for ((i = 1; i <= size; i++)); do
        # shellcheck disable=SC2086 # three words
        printf '%-5s %-8s %-8s %-23s %-23s %-11s %5s %9s\n' "n$i" "${state[i]}" "$(node_pid "$i" || echo -)" \
            "$(client_url "$i")" "$(peer_url "$i")" ${answer[i]:-- - -}
    done
    ((${#running[@]} == size))
}

# --- commands -----------------------------------------------------------------------------------------------

lock() { # one command that changes something at a time
    mkdir -p "$directory"
    exec 9<"$directory"
    flock -w 120 9 || die "another cluster.sh has been at work in $directory for two minutes"
    load
}

command_start() {
    local i
    [[ $# -le 1 ]] || misuse "start takes one number"
    [[ $# -eq 0 || $1 =~ ^[1-9]$ ]] || misuse "a cluster has 1 to $size_max nodes, not '$1'"
    "$top/setup.sh"
    lock
    if ((size == 0)); then
        size=${1:-3} token=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
        for ((i = 1; i <= size; i++)); do check_ports "$i"; done
        printf 'size=%s\nport=%s\ntoken=%s\n' "$size" "$port" "$token" >"$directory/cluster.new"
        mv "$directory/cluster.new" "$directory/cluster"
    elif [[ $# -eq 1 && $1 != "$size" ]]; then
        die "there is a cluster of $size in $directory; for one of $1, wipe it first: ./cluster.sh wipe"
    fi
    for ((i = 1; i <= size; i++)); do
        case $(node_state "$i") in
            stopped) check_ports "$i"; launch "$i" ;;
            paused) echo "resuming n$i"; signal_node "$i" CONT ;;
        esac
    done
    # shellcheck disable=SC2046 # numbers
    wait_until_serving linearizable $(seq "$size")
    table
}

command_status() {
    must_exist
    table
}

command_stop() {
    local i
    must_exist
    # All are told before any is waited for: a leader that stops last would see its followers go first.
    for ((i = 1; i <= size; i++)); do
        signal_node "$i" TERM && signal_node "$i" CONT || true
    done
    for ((i = 1; i <= size; i++)); do stop_node "$i"; done
    echo "stopped"
}

# Signals a node that runs, and waits until the signal has taken effect.
command_signal() { # SIGNAL STATE NODE
    take_node "${@:3}"
    signal_node "$node" "$1" || die "n$node does not run"
    wait_for_state "$node" "$2" "$STOP_S" || die "n$node is $(node_state "$node"), not $2, after $STOP_S s"
    echo "n$node is $2"
}

command_restart() {
    local i running=0 read=linearizable
    take_node "$@"
    "$top/setup.sh"
    stop_node "$node"
    check_ports "$node"
    launch "$node"
    for ((i = 1; i <= size; i++)); do
        [[ $(node_state "$i") != running ]] || running=$((running + 1))
    done
    if ((2 * running <= size)); then
        read=serializable
        echo "$running of $size nodes run, which is no majority: waiting for serializable reads only"
    fi
    wait_until_serving "$read" "$node"
    echo "n$node serves at $(client_url "$node")"
}

command_logs() {
    take_node "$@"
    [[ -e $directory/n$node/log ]] || die "n$node was never started"
    exec tail -n 50 "${@:2}" "$directory/n$node/log"
}

command_wipe() {
    local i
    must_exist
    if [[ $# -gt 0 ]]; then
        take_node "$@"
        [[ $(node_state "$node") == stopped ]] || die "n$node runs: stop it first (kill $node)"
        must_be_unused "$node"
        rm -rf "${directory:?}/n$node"
        echo "the data of n$node is gone; the others know that and will not take it back under its old identity"
        return
    fi
    for ((i = 1; i <= size; i++)); do
        [[ $(node_state "$i") != stopped ]] || must_be_unused "$i"
    done
    for ((i = 1; i <= size; i++)); do
        signal_node "$i" KILL || true
    done
    for ((i = 1; i <= size; i++)); do
        wait_for_state "$i" stopped "$STOP_S" || die "n$i cannot be killed; it may hang in the disk"
        rm -rf "${directory:?}/n$i"
    done
    rm -f "$directory/cluster"
    rmdir "$directory" 2>/dev/null || true # not if it holds anything that is not ours
    echo "wiped"
}

command_ctl() {
    must_exist
    QUORUMLOG_ENDPOINTS=$(endpoints) exec "$top/.venv/bin/quorumlog" "$@"
}

main() {
    local command=${1:-help}
    [[ $# -eq 0 ]] || shift
    case $command in help | -h | --help) usage; return ;; esac
    load
    case $command in
        start) command_start "$@" ;;
        status) command_status ;;
        stop) must_exist; lock; command_stop ;;
        kill) must_exist; lock; command_signal KILL stopped "$@" ;;
        pause) must_exist; lock; command_signal STOP paused "$@" ;;
        resume) must_exist; lock; command_signal CONT running "$@" ;;
        restart) must_exist; lock; command_restart "$@" ;;
        logs) command_logs "$@" ;;
        wipe) must_exist; lock; command_wipe "$@" ;;
        ctl) command_ctl "$@" ;;
        *) misuse "unknown command '$command'" ;;
    esac
}

main "$@"
