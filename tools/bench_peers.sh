#!/usr/bin/env bash
# Other frameworks for `hpclbfl bench step` and `bench federated`, each in an environment of its own below .venv/peers,
# on the project's torch: bench_peers.sh [NAME]...
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/common.sh
venv=$PWD/.venv
[ -x "$venv/bin/python" ] || die "there is no .venv yet: make install"

declare -A packages=(
    [lightning]="lightning==2.6.6"
    [accelerate]="accelerate==1.15.0"
    [flower]="flwr[simulation]==1.42.0"
    [pfl]="pfl==0.6.0"
    [appfl]="appfl==1.12.0 mpi4py"
)
project=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
"$venv/bin/python" -m pip list --format=freeze | grep -E '^(torch|torchvision|mpi4py|numpy)==' >"$constraints"

for name in "${@:-lightning accelerate flower pfl appfl}"; do
    for one in $name; do
        [ -n "${packages[$one]:-}" ] || { echo "bench_peers.sh: no framework '$one'; there are ${!packages[*]}" >&2; exit 2; }
        peer=$venv/peers/$one
        "$venv/bin/python" -m venv --without-pip "$peer"
        own=$("$peer/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
        echo "import site; site.addsitedir('$project')" >"$own/project.pth"
        # shellcheck disable=SC2086
        "$venv/bin/python" -m pip --python "$peer/bin/python" install --quiet --constraint "$constraints" ${packages[$one]}
        echo "$one: $peer"
    done
done
