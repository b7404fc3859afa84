#!/usr/bin/env bash
# A local cluster of quorumlog nodes on loopback. `./cluster.sh help` lists what it does.
#
# State, all below one directory: `cluster` (what was made: size, first port, token; and which nodes there are
# by now) and, for node I, nI/data, nI/log and nI/pid. A pid file holds the process id and the time it was
# started at, in the kernel's ticks: both must agree before any signal is sent, so that a recycled pid is never
# hit. What a crash of this script leaves is read again by its next call: nodes that run are found by their pid
# files, and members by their peer URLs. Cuts, delays and losses are in the memory of the nodes alone.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
directory=$(realpath -ms "${QUORUMLOG_CLUSTER_DIR:-$top/.cluster}")
size_max=9 # nodes
command="" # what was asked for
size=0   # with how many it was made; 0: no cluster was made yet
nodes=() # the numbers of those that there are
joined=() # of these, the ones that were added since, or put in the place of another
gone=()  # numbers of which only the log is left
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
  stop [I]       end node I in good order (SIGTERM), or all of them
  kill I         end node I at once (SIGKILL)
  pause I        freeze node I (SIGSTOP)
  resume I       let it go on (SIGCONT)
  restart I      stop node I if it runs, start it, wait until it serves
  logs I [-f]    the end of node I's log; -f follows it (more options are given to tail)
  partition "1,2|3,4,5"
                 cut the links between the groups, and lift all other cuts. Nodes that are not named are one
                 more group
  isolate I      cut node I off from all others
  cut I J        lose what node I sends to node J, and nothing else
  slow I MS      delay all that passes between node I and the others, each way: 0 to 60000 (milliseconds),
                 100 or 100ms; 0 for no more
  flaky I PERCENT
                 lose so much of it, by chance: 0 to 100, 5 or 5%; 0 for no more
  heal           lift all of these
  faults         what of these is in force. It is in the memory of the nodes: one that starts has none
  add [--learner]
                 add a node and start it; it gets a vote when it has caught up, with --learner none
  remove I       remove node I from the cluster, and its data; its log stays
  replace I      put a new, empty member in the place of node I, at the same addresses: for a disk that is
                 lost. The others must be a majority
  wipe           end all nodes and remove the cluster with all its data
  wipe I         remove the data of node I, which must be stopped
  ctl ARGS...    the command `quorumlog ARGS...` with this cluster's endpoints
  demo NAME      show what clients are told while something breaks, with a cluster of its own that it ends
                 again: partition, failover, semisync. Less than a minute; leaves one HTML file
  help           this text

Node I has the client URL http://127.0.0.1:P with P = 2379 + 10(I-1), and its peer URL on port P + 1.
QUORUMLOG_CLUSTER_LABELS
                        labels of the nodes for `start`, a word for each: "zone=a zone=a zone=dr,rack=2"
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
            nodes) read -ra nodes <<<"$value" ;;
            joined) read -ra joined <<<"$value" ;;
            gone) read -ra gone <<<"$value" ;;
        esac
    done <"$directory/cluster"
    [[ -z ${QUORUMLOG_CLUSTER_PORT:-} || -z $made_port || $port == "$made_port" ]] ||
        die "the cluster in $directory was made for first port $made_port, not $port; wipe it or choose another directory"
    port=$made_port
    [[ $size =~ ^[1-9]$ && -n $port && -n $token ]] || die "$directory/cluster is damaged: size, port or token is missing"
    # shellcheck disable=SC2207 # numbers
    ((${#nodes[@]})) || nodes=($(seq "$size"))
    [[ "${nodes[*]} ${joined[*]} ${gone[*]}" =~ ^[1-9\ ]*$ ]] ||
        die "$directory/cluster is damaged: a node is no number"
}

save() {
    printf '%s\n' "size=$size" "port=$port" "token=$token" \
        "nodes=${nodes[*]}" "joined=${joined[*]}" "gone=${gone[*]}" >"$directory/cluster.new"
    mv "$directory/cluster.new" "$directory/cluster"
}

is_in() { [[ " ${*:2} " == *" $1 "* ]]; } # NUMBER NUMBER...

without() { # NUMBER NUMBER... : the others of them, sorted
    local i
    for i in "${@:2}"; do [[ $i == "$1" ]] || echo "$i"; done | sort -n
}

# shellcheck disable=SC2207 # numbers
joins() { # NODE: it is there, as one that was added
    nodes=($(without "$1" "${nodes[@]}" && echo "$1"))
    nodes=($(printf '%s\n' "${nodes[@]}" | sort -n))
    joined=($(without "$1" "${joined[@]}") "$1")
    gone=($(without "$1" "${gone[@]}"))
    save
}

# shellcheck disable=SC2207 # numbers
leaves() { # NODE
    nodes=($(without "$1" "${nodes[@]}"))
    joined=($(without "$1" "${joined[@]}"))
    gone=($(without "$1" "${gone[@]}") "$1")
    save
}

must_exist() { ((size > 0)) || die "no cluster in $directory; make one with: ./cluster.sh start"; }

# Of the command that was called.
take_at_most() { # COUNT WHAT ARGUMENT...
    (($# - 2 <= $1)) || misuse "$command takes $2"
}

# Sets `node` to the number given, or ends with an error.
node=0
take_node() {
    must_exist
    take_at_most 1 "the number of one node" "$@"
    local those="${nodes[*]}"
    [[ $those != "$(seq -s ' ' "${#nodes[@]}")" ]] || those="1 to ${#nodes[@]}"
    [[ $# -ge 1 ]] || misuse "which node? Give its number, $those"
    [[ ${1#n} =~ ^[1-9]$ ]] && is_in "${1#n}" "${nodes[@]}" || misuse "no node '$1': this cluster has $those"
    node=${1#n}
}

client_port() { echo $((port + 10 * ($1 - 1))); }
client_url() { echo "http://127.0.0.1:$(client_port "$1")"; }
peer_url() { echo "http://127.0.0.1:$(($(client_port "$1") + 1))"; }

endpoints() {
    local i urls=()
    for i in "${nodes[@]}"; do urls+=("$(client_url "$i")"); done
    (IFS=,; echo "${urls[*]}")
}

initial_cluster() { # NODE...
    local i members=()
    for i; do members+=("n$i=$(peer_url "$i")"); done
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
    local home=$directory/n$1 pid state started kind=new members labels
    read -ra labels <<<"${QUORUMLOG_CLUSTER_LABELS:-}"
    labels=("${labels[@]:$1 - 1:1}") # this node's, if it is given any
    # What the cluster was made of stays the same for those with which it was made.
    # shellcheck disable=SC2046 # numbers
    members=$(initial_cluster $(seq "$size"))
    if is_in "$1" "${joined[@]}"; then
        kind=existing members=$(initial_cluster "${nodes[@]}")
    fi
    mkdir -p "$home"
    # A session of its own: neither the terminal's Ctrl-C nor its end reaches the node. It must not inherit
    # this script's lock.
    setsid "$top/.venv/bin/quorumlog" serve --name "n$1" --data-dir "$home/data" \
        --listen-client-urls "$(client_url "$1")" --advertise-client-urls "$(client_url "$1")" \
        --listen-peer-urls "$(peer_url "$1")" --initial-advertise-peer-urls "$(peer_url "$1")" \
        --initial-cluster "$members" --initial-cluster-token "$token" --initial-cluster-state "$kind" \
        ${labels:+--labels "$labels"} \
        --enable-fault-injection \
        </dev/null >>"$home/log" 2>&1 9>&- &
    pid=$!
    read -r state started < <(process_state "$pid") || started=0 # gone already: probe will say so
    echo "$pid $started" >"$home/pid"
}

tell_to_stop() { # NODE: fails if it does not run
    signal_node "$1" TERM && { signal_node "$1" CONT || true; }
}

stop_node() { # NODE: in good order if it lets us
    tell_to_stop "$1" || return 0
    await_end "$1"
}

# Of a node that was told to stop. Not told again: to a node a second SIGTERM means "leave at once".
await_end() { # NODE
    wait_for_state "$1" stopped "$STOP_S" && return
    signal_node "$1" KILL || true
    echo "n$1 did not stop within $STOP_S s: killed"
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

# cluster_faults COMMAND ARGUMENT... : see quorumlog/cluster_faults.py
cluster_faults() {
    local i arguments=()
    for i in "${nodes[@]}"; do
        arguments+=("$i" "$(node_state "$i")" "$(peer_url "$i")" "$directory/n$i/data")
    done
    "$top/.venv/bin/python" -m quorumlog.cluster_faults "$@" -- "${arguments[@]}"
}

# Says so, and succeeds, if a node that runs has faults: then reads may be served nowhere, or not at once.
has_faults() {
    local said
    said=$(cluster_faults words)
    grep -qE ' (cut|slow|flaky)' <<<"$said" || return 1
    echo "faults are in force (./cluster.sh faults), and a node that starts has none of its own:" \
        "waiting for serializable reads only"
}

table() {
    local i verdict rest running=() state=() answer=() faults=()
    for i in "${nodes[@]}"; do
        state[i]=$(node_state "$i")
        [[ ${state[i]} != running ]] || running+=("$i")
    done
    if ((${#running[@]})); then
        while read -r i verdict rest; do
            [[ $verdict == ok ]] && answer[i]=$rest || answer[i]="unanswering - -"
        done < <(probe 1 serializable "${running[@]}")
        while read -r i rest; do faults[i]=$rest; done < <(cluster_faults words)
    fi
    printf '%-5s %-8s %-8s %-23s %-23s %-11s %5s %9s %s\n' \
        NODE STATE PID CLIENT PEER ROLE TERM APPLIED FAULTS
    for i in "${nodes[@]}"; do
        # shellcheck disable=SC2086 # three words
        printf '%-5s %-8s %-8s %-23s %-23s %-11s %5s %9s %s\n' \
            "n$i" "${state[i]}" "$(node_pid "$i" || echo -)" \
            "$(client_url "$i")" "$(peer_url "$i")" ${answer[i]:-- - -} "${faults[i]:--}"
    done
    ((${#running[@]} == ${#nodes[@]}))
}

# --- the members, as the cluster has them -------------------------------------------------------------------

ctl() { QUORUMLOG_ENDPOINTS=$(endpoints) "$top/.venv/bin/quorumlog" "$@"; }

# Prints the id of the member that has node I's peer URL, and nothing if none has.
member_of() { # NODE
    local lines id _ peer
    lines=$(ctl members -o simple) || die "the members of the cluster cannot be had; is there a majority?"
    while IFS=, read -r id _ _ peer _; do
        [[ ${peer# } != "$(peer_url "$1")" ]] || echo "$id"
    done <<<"$lines"
}

# Prints the numbers of those that vote; of all nodes, if nobody can say which these are.
voters() {
    local i lines line
    lines=$(ctl --timeout 1 members --consistency s -o simple 2>/dev/null) || lines=""
    for i in "${nodes[@]}"; do
        line=$(grep -F " $(peer_url "$i"), " <<<"$lines") || true
        [[ -n $lines && $line != *", voter" ]] || echo "$i"
    done
}

promote() { # NODE: give it its vote as soon as it has caught up
    local id deadline=$((SECONDS + START_S)) said
    id=$(member_of "$1")
    until said=$(ctl member promote "$id" 2>&1); do
        [[ $said == *"in sync with leader"* || $said == *": unavailable, nothing was applied"* ]] &&
            ((SECONDS < deadline)) || die "n$1 runs, but has no vote: $said"
        sleep 0.2
    done
}

# --- commands -----------------------------------------------------------------------------------------------

lock() { # one command that changes something at a time
    mkdir -p "$directory"
    exec 9<"$directory"
    flock -w 120 9 || die "another cluster.sh has been at work in $directory for two minutes"
    load
}

command_start() {
    local i read=linearizable
    take_at_most 1 "one number" "$@"
    [[ $# -eq 0 || $1 =~ ^[1-9]$ ]] || misuse "a cluster has 1 to $size_max nodes, not '$1'"
    "$top/setup.sh"
    lock
    if ((size == 0)); then
        size=${1:-3} token=$(od -An -N8 -tx8 /dev/urandom | tr -d ' ')
        # shellcheck disable=SC2207 # numbers
        nodes=($(seq "$size"))
        for i in "${nodes[@]}"; do check_ports "$i"; done
        save
    elif [[ $# -eq 1 && $1 != "${#nodes[@]}" ]]; then
        die "there is a cluster of ${#nodes[@]} in $directory; see add and remove, or wipe it first"
    fi
    ! has_faults || read=serializable
    for i in "${nodes[@]}"; do
        case $(node_state "$i") in
            stopped) check_ports "$i"; launch "$i" ;;
            paused) signal_node "$i" CONT; echo "resuming n$i" ;;
        esac
    done
    wait_until_serving "$read" "${nodes[@]}"
    table
}

command_status() {
    must_exist
    table
}

command_stop() {
    local i
    take_at_most 1 "the number of one node, or nothing" "$@"
    if [[ $# -gt 0 ]]; then
        take_node "$@"
        stop_node "$node"
        echo "n$node is stopped"
        return
    fi
    # All are told before any is waited for: a leader that stops last would see its followers go first.
    for i in "${nodes[@]}"; do tell_to_stop "$i" || true; done
    for i in "${nodes[@]}"; do await_end "$i"; done
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
    local i voting=() running=0 read=linearizable
    take_node "$@"
    "$top/setup.sh"
    mapfile -t voting < <(voters)
    stop_node "$node"
    check_ports "$node"
    launch "$node"
    for i in "${voting[@]}"; do
        [[ $(node_state "$i") != running ]] || running=$((running + 1))
    done
    if ((2 * running <= ${#voting[@]})); then
        read=serializable
        echo "$running of ${#voting[@]} nodes run, which is no majority: waiting for serializable reads only"
    elif has_faults; then
        read=serializable
    fi
    wait_until_serving "$read" "$node"
    echo "n$node serves at $(client_url "$node")"
}

command_logs() {
    take_node "${@:1:1}"
    [[ $# -le 1 || $2 == -* ]] || misuse "logs takes the number of one node, and options of tail"
    [[ -e $directory/n$node/log ]] || die "n$node was never started"
    exec tail -n 50 "${@:2}" "$directory/n$node/log"
}

command_add() {
    local new id
    [[ $# -eq 0 || $# -eq 1 && $1 == --learner ]] || misuse "add takes nothing but --learner"
    "$top/setup.sh"
    for ((new = 1; new <= size_max; new++)); do is_in "$new" "${nodes[@]}" || break; done
    ((new <= size_max)) || die "there are $size_max nodes, which is as many as there may be"
    check_ports "$new"
    must_be_unused "$new"
    id=$(member_of "$new")
    # There is one if a call of this script was ended right behind it. Without a vote at first, for it has
    # everything to catch up with.
    if [[ -z $id ]]; then
        ctl member add "n$new" --peer-urls "$(peer_url "$new")" --learner >/dev/null ||
            die "n$new was not added (if there is a learner already, promote or remove that one first)"
    fi
    rm -rf "${directory:?}/n$new/data"
    joins "$new"
    launch "$new"
    wait_until_serving serializable "$new"
    if [[ $# -eq 0 ]]; then
        promote "$new"
        wait_until_serving linearizable "$new"
    fi
    table
}

command_remove() {
    local id
    take_node "$@"
    ((${#nodes[@]} > 1)) || die "n$node is the only one: ./cluster.sh wipe"
    id=$(member_of "$node")
    # There is none if a call of this script was ended right behind it.
    [[ -z $id ]] || ctl member remove "$id" >/dev/null || die "n$node was not removed"
    stop_node "$node" # most end by themselves, as soon as they learn of it
    must_be_unused "$node"
    leaves "$node"
    rm -rf "${directory:?}/n$node/data" "$directory/n$node/pid"
    echo "n$node is removed; what it said is in $directory/n$node/log"
}

command_replace() {
    local id was
    take_node "$@"
    "$top/setup.sh"
    id=$(member_of "$node")
    [[ -n $id ]] || die "no member is at $(peer_url "$node"): ./cluster.sh remove $node, then add"
    was=$(node_state "$node")
    stop_node "$node"
    must_be_unused "$node"
    check_ports "$node"
    if ! ctl member replace "$id" "n$node" --peer-urls "$(peer_url "$node")" >/dev/null; then
        [[ $was == stopped ]] || launch "$node"
        die "n$node was not replaced"
    fi
    joins "$node"
    rm -rf "${directory:?}/n$node/data"
    launch "$node"
    wait_until_serving linearizable "$node"
    table
}

command_wipe() {
    local i
    must_exist
    take_at_most 1 "the number of one node, or nothing" "$@"
    if [[ $# -gt 0 ]]; then
        take_node "$@"
        [[ $(node_state "$node") == stopped ]] || die "n$node runs: end it first (./cluster.sh stop $node)"
        must_be_unused "$node"
        rm -rf "${directory:?}/n$node"
        echo "the data of n$node is gone; the others know that and will not take it back under its old identity"
        echo "(to have a new member in its place: ./cluster.sh replace $node)"
        return
    fi
    for i in "${nodes[@]}"; do
        [[ $(node_state "$i") != stopped ]] || must_be_unused "$i"
    done
    for i in "${nodes[@]}"; do
        signal_node "$i" KILL || true
    done
    for i in "${nodes[@]}" "${gone[@]}"; do
        wait_for_state "$i" stopped "$STOP_S" || die "n$i cannot be killed; it may hang in the disk"
        rm -rf "${directory:?}/n$i"
    done
    rm -f "$directory/cluster"
    rmdir "$directory" 2>/dev/null || true # not if it holds anything that is not ours
    echo "wiped"
}

command_demo() {
    "$top/setup.sh"
    exec "$top/.venv/bin/python" "$top/bench/demo/__main__.py" "$@"
}

command_ctl() {
    must_exist
    ctl "$@"
}

main() {
    command=${1:-help}
    [[ $# -eq 0 ]] || shift
    case $command in
        help | -h | --help) take_at_most 0 nothing "$@"; usage; return ;;
        demo) command_demo "$@" ;; # it has nothing to do with the cluster that may be here
    esac
    load
    case $command in
        start) command_start "$@" ;;
        status) take_at_most 0 nothing "$@"; command_status ;;
        stop) must_exist; lock; command_stop "$@" ;;
        kill) must_exist; lock; command_signal KILL stopped "$@" ;;
        pause) must_exist; lock; command_signal STOP paused "$@" ;;
        resume) must_exist; lock; command_signal CONT running "$@" ;;
        restart) must_exist; lock; command_restart "$@" ;;
        logs) command_logs "$@" ;;
        partition | isolate | cut | slow | flaky | heal) must_exist; lock; cluster_faults "$command" "$@" ;;
        faults) must_exist; cluster_faults "$command" "$@" ;;
        add) must_exist; lock; command_add "$@" ;;
        remove) must_exist; lock; command_remove "$@" ;;
        replace) must_exist; lock; command_replace "$@" ;;
        wipe) must_exist; lock; command_wipe "$@" ;;
        ctl) command_ctl "$@" ;;
        *) misuse "unknown command '$command'" ;;
    esac
}

main "$@"
