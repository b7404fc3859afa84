#!/usr/bin/env bash
# Makes .venv, or brings it up to date: `./setup.sh` for the program, `./setup.sh dev` for the tests' tools too.
#
# cluster.sh and tests/run call this themselves; nobody has to. It does nothing, within milliseconds, when
# pyproject.toml and constraints.txt are those of the last time. Where it may (root, apt-get) it installs the
# Debian packages that it needs; where it may not, it says in one line what is missing.
# PYTHON=python3.13 ./setup.sh picks the interpreter of a new .venv.
set -euo pipefail

top=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd -P)
venv=$top/.venv

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$@"; exit 1; }

# debian PACKAGE... : install them, or return 1 where that is not allowed.
debian() {
    [[ $EUID -eq 0 ]] && command -v apt-get >/dev/null || return 1
    say "installing Debian packages: $*"
    local out
    if ! out=$({ apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "$@"; } 2>&1); then
        printf '%s\n' "$out" | tail -n 20 >&2
        return 1
    fi
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
can_make_venv() { "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# Prints the interpreter for a new .venv. 3.11 and 3.12 come first: plyvel has wheels for them.
find_python() {
    local candidate found=""
    for candidate in ${PYTHON:-python3.12 python3.11 python3.13 python3.14 python3}; do
        command -v "$candidate" >/dev/null && is_new_enough "$candidate" || continue
        found=${found:-$candidate}
        if can_make_venv "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    [[ -n $found ]] || die "Python 3.11 or newer is needed; none of ${PYTHON:-python3.11 .. python3.14, python3} is."
    debian "$(basename "$found")-venv" || debian python3-venv || true
    can_make_venv "$found" || die "$found has no venv module: install the Debian package python3-venv."
    printf '%s\n' "$found"
}

# plyvel has wheels for Python 3.11 and 3.12 only. Elsewhere pip compiles it, which needs LevelDB and a compiler.
ensure_plyvel_builds() {
    "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info >= (3, 13))' && [[ $(uname -m) == x86_64 ]] && return
    local headers missing=()
    headers=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    [[ -e /usr/include/leveldb/db.h || -e /usr/local/include/leveldb/db.h ]] || missing+=(libleveldb-dev)
    command -v g++ >/dev/null || missing+=(g++)
    [[ -e $headers/Python.h ]] || missing+=(python3-dev)
    [[ ${#missing[@]} -eq 0 ]] || debian "${missing[@]}" ||
        die "plyvel has no wheel for this Python and must be compiled; install the Debian packages: ${missing[*]}"
}

# With strace the tests of power cuts record what the store asks of the disk; with nft those of partitions cut
# networks that are the tests' own; with libfaketime `python -m tests.lab` changes the clocks of members.
ensure_tools() {
    local missing=()
    command -v strace >/dev/null || missing+=(strace)
    command -v nft >/dev/null || missing+=(nftables)
    command -v ip >/dev/null || missing+=(iproute2)
    compgen -G '/usr/lib/*/faketime/libfaketime.so.1' >/dev/null || missing+=(libfaketime)
    [[ ${#missing[@]} -eq 0 ]] || debian "${missing[@]}" ||
        say "without the Debian packages ${missing[*]} the tests of power cuts and of partitions are skipped."
}

# What was installed must be what is asked for now: files, interpreter, and place.
fingerprint() {
    (cd "$top" && cat pyproject.toml constraints.txt && "$venv/bin/python" -VV && pwd) | sha256sum | cut -d ' ' -f 1
}

is_current() {
    local group now
    [[ -x $venv/bin/python ]] || return 1
    now=$(fingerprint 2>/dev/null) || return 1
    for group in "$@"; do
        [[ $(cat "$venv/installed-$group" 2>/dev/null) == "$now" ]] && return 0
    done
    return 1
}

ensure_venv() {
    # A virtual environment that was moved, or whose interpreter is gone, has scripts that start nothing.
    if "$venv/bin/python" -c '' 2>/dev/null && grep -qsF "$venv" "$venv/bin/activate"; then
        return
    fi
    # What is cleared would be another tree's, whose programs may run.
    [[ ! -L $venv ]] || die "$venv is a link to another environment, and not for this tree: remove the link."
    local python
    python=$(find_python)
    say "making .venv with $("$python" -V)"
    "$python" -m venv --clear "$venv" || die "'$python -m venv' failed; see above."
}

install() {
    local group=$1 target=$top out
    [[ $group == dev ]] && target="$top[dev]"
    ensure_venv
    ensure_plyvel_builds
    say "installing quorumlog ($group) into .venv; the first time takes up to a minute"
    rm -f "$venv"/installed-*
    if ! out=$("$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        -c "$top/constraints.txt" -e "$target" 2>&1); then
        printf '%s\n' "$out" >&2
        die "pip could not install what pyproject.toml and constraints.txt name; its message is above."
    fi
    fingerprint >"$venv/installed-$group"
}

main() {
    case ${1:-runtime} in
        runtime) set -- runtime dev ;; # either will do
        dev) set -- dev; ensure_tools ;;
        *) die "usage: ./setup.sh [dev]" ;;
    esac
    is_current "$@" && return
    exec 9<"$top"
    flock 9 # two callers at once: the second finds the work done
    is_current "$@" || install "$1"
}

main "$@"
