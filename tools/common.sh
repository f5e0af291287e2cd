# Shared by the set-up scripts: messages, the log, and what counts as this machine's MPI.

say() { printf 'hpclbfl: %s\n' "$*"; }

die() {
    printf 'hpclbfl: error: %s\n' "$*" >&2
    exit 1
}

# logged WHAT COMMAND...: runs quietly; on failure shows the end of the log.
logged() {
    local what=$1
    shift
    if ! "$@" >>"$log" 2>&1; then
        tail -n 25 "$log" >&2
        die "$what failed (the lines above; all of it in $log)"
    fi
}

fingerprint() { sha256sum | cut -c1-12; }

# The mpicxx of the machine or of a loaded module; one that lies in a Python environment belongs to that environment.
machine_mpicxx() {
    local found
    found=$(command -v mpicxx) || return 1
    [ ! -e "$(dirname "$found")/../pyvenv.cfg" ] && printf '%s\n' "$found"
}

# Runs a command that is to see the Open MPI wheel's compiler wrapper and libraries.
with_wheel_mpi() {
    OPAL_PREFIX=$venv LD_LIBRARY_PATH="$venv/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" PATH="$venv/bin:$PATH" "$@"
}
