# Builds Horovod's wheel from its released source, once; sourced by install.sh.

horovod_version=0.28.1

# Everything that a built Horovod depends on: its wheel is reused where this text is the same.
horovod_key() {
    local python_tag torch_version mpi_tag
    python_tag=$("$venv/bin/python" -c 'import sys; print(f"{sys.implementation.cache_tag}")')
    torch_version=$(installed_version torch)
    mpi_tag=${mpi%%:*}-$(printf '%s' "$mpi" | fingerprint)
    printf '%s\n' "horovod-$horovod_version/$python_tag-torch$torch_version-$mpi_tag-${gpu_operations:-cpu}-$(uname -m)"
}

# The sources ask for C++14, torch's headers for C++20, and CUDA 13's for C++17; Python 3.12 has no distutils. With the
# Open MPI wheel the library is looked up beside the environment that Horovod is installed in, so that the wheel serves
# other clones too.
cure_sources() {
    local source=$1 cures='s/(CMAKE_CXX_STANDARD) 14/\1 20/'
    local include="import sysconfig; print(sysconfig.get_path('include'))"
    if [[ $mpi == wheel:* ]]; then
        cures+='; s|^project\(.*|&\nset(CMAKE_BUILD_WITH_INSTALL_RPATH ON)\nset(CMAKE_INSTALL_RPATH "$ORIGIN/../../../..")|'
    fi
    sed -E -i "$cures" "$source/CMakeLists.txt"
    sed -E -i 's/(CMAKE_CXX_STANDARD) 14/\1 20/' "$source/horovod/torch/CMakeLists.txt"
    sed -i "s/from distutils.sysconfig import .*get_python_inc())/$include/" "$source/horovod/torch/CMakeLists.txt"
    sed -E -i 's/(CMAKE_CUDA_STANDARD) 11/\1 17/' "$source/horovod/common/ops/cuda/CMakeLists.txt"
}

# Where CUDA and NCCL lie, for Horovod's CMake; a line each, as NAME=VALUE. What the user has set stays.
gpu_settings() {
    local work=$1 home nccl
    home=${HOROVOD_CUDA_HOME:-${CUDA_HOME:-}}
    if [ -z "$home" ]; then
        home=$(cd "$(dirname "$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)")" 2>/dev/null && cd .. && pwd -P)
        # A wrapper on PATH is not in the toolkit's own folder.
        [ -e "$home/include/cuda_runtime.h" ] || home=$(ls -d /usr/local/cuda /usr/local/cuda-* 2>/dev/null | head -n 1)
    fi
    printf '%s\n' "HOROVOD_CUDA_HOME=$home" "CUDA_HOME=$home" "HOROVOD_WITHOUT_NVTX=1"
    local capability
    capability=$("$venv/bin/python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())' 2>/dev/null || true)
    # Without these nvcc builds for every chip that it knows, and CMake for one that it may no longer know.
    [ -z "$capability" ] || printf '%s\n' "CUDAARCHS=$capability" "HOROVOD_BUILD_CUDA_CC_LIST=$capability"
    [ -z "${HOROVOD_NCCL_HOME:-}" ] || return 0
    # torch's own NCCL, without the name that a linker looks for.
    nccl=$("$venv/bin/python" -c 'import nvidia.nccl; print(next(iter(nvidia.nccl.__path__)))' 2>/dev/null) || return 0
    mkdir -p "$work/nccl/lib"
    ln -sfn "$nccl/include" "$work/nccl/include"
    ln -sf "$nccl/lib/libnccl.so.2" "$work/nccl/lib/libnccl.so"
    printf '%s\n' "HOROVOD_NCCL_HOME=$work/nccl" HOROVOD_NCCL_LINK=SHARED
}

# One compiler process needs up to 2 GB.
build_jobs() {
    local by_memory
    by_memory=$(awk '/MemAvailable/ { print int($2 / 2000000) }' /proc/meminfo 2>/dev/null || echo 2)
    local jobs=$(($(nproc) < by_memory ? $(nproc) : by_memory))
    echo $((jobs > 0 ? jobs : 1))
}

compile_horovod() {
    local work=$1 run=
    local settings=(
        # Its headers use these without including them, which GCC 13 and later no longer does for them.
        "CXXFLAGS=-include string -include cstdint ${CXXFLAGS:-}"
        MAKEFLAGS=-j$(build_jobs) CMAKE_POLICY_VERSION_MINIMUM=3.5 "PATH=$venv/bin:$PATH"
        HOROVOD_WITH_PYTORCH=1 HOROVOD_WITH_MPI=1 HOROVOD_WITHOUT_GLOO=1
        HOROVOD_WITHOUT_TENSORFLOW=1 HOROVOD_WITHOUT_MXNET=1
    )
    if [ -n "$gpu_operations" ]; then
        settings+=("HOROVOD_GPU_OPERATIONS=$gpu_operations")
        mapfile -t -O "${#settings[@]}" settings < <(gpu_settings "$work")
    fi
    if [[ $mpi == wheel:* ]]; then run=with_wheel_mpi; fi
    "$pip" download --no-deps --no-build-isolation --no-binary=:all: "horovod==$horovod_version" -d "$work" &&
        tar -xzf "$work/horovod-$horovod_version.tar.gz" -C "$work" &&
        cure_sources "$work/horovod-$horovod_version" &&
        $run env "${settings[@]}" \
            "$pip" wheel --no-deps --no-build-isolation -w "$work/wheel" "$work/horovod-$horovod_version"
}

# Prints nothing but progress; leaves the wheel in $1.
build_horovod_wheel() {
    local folder=$1 work
    mkdir -p "$folder"
    exec 8>"$folder/lock"
    flock 8 2>/dev/null || true
    if ! compgen -G "$folder/horovod-*.whl" >/dev/null; then
        say "building Horovod $horovod_version, about $((9 / $(build_jobs) + 1)) minutes, once"
        work=$(mktemp -d "${TMPDIR:-/tmp}/horovod-build.XXXXXX")
        trap 'rm -rf "$work"' EXIT
        logged "building Horovod" compile_horovod "$work"
        # A rename within one folder: an interrupted copy is never taken for the wheel.
        cp "$work"/wheel/horovod-*.whl "$folder/partial"
        mv "$folder/partial" "$folder/$(basename "$work"/wheel/horovod-*.whl)"
        rm -rf "$work"
        trap - EXIT
    fi
    exec 8>&-
}
