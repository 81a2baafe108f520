#!/usr/bin/env bash
# Puts the clients and the peers into environments of their own: install.sh FOLDER
#
# perf-analyzer's wheel needs glibc 2.38. Where the system's is older, that of Debian 13 is unpacked beside it and
# used for this one program.
set -eu
folder=${1:-/tmp/serving-venv}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3.11}
mkdir -p "$folder"
for name in client fastapi mlserver pytriton; do
    [ -e "$folder/$name/bin/python" ] || "$python" -m venv "$folder/$name"
    # Each environment gets the packages of its section.
    awk -v name="$name" '/^# /{on = ($2 == name)} on && !/^#/' "$here/requirements.txt" > "$folder/$name.txt"
    "$folder/$name/bin/python" -m pip install -q -r "$folder/$name.txt"
done

analyzer=$folder/perf_analyzer
if [ ! -e "$analyzer/perf_analyzer/bin/perf_analyzer" ]; then
    "$folder/client/bin/python" -m pip download -q --no-deps --only-binary :all: --python-version 3.12 \
        --platform manylinux_2_38_x86_64 -d "$analyzer" perf-analyzer==2.60.0
    (cd "$analyzer" && "$python" -m zipfile -e perf_analyzer-*.whl .)
    chmod +x "$analyzer/perf_analyzer/bin/perf_analyzer"
fi
# It asks for CUDA's library as soon as it is to use shared memory of any kind.
mkdir -p "$analyzer/cuda"
cudart=$(find "$folder/client" -name 'libcudart.so.*' | head -n 1)
ln -sf "$cudart" "$analyzer/cuda/libcudart.so"
glibc=$(getconf GNU_LIBC_VERSION | cut -d' ' -f2)
if [ "$(printf '%s\n2.38\n' "$glibc" | sort -V | head -n 1)" = 2.38 ]; then
    start="exec"
    libraries=$analyzer/cuda
else
    system=$analyzer/system
    libraries=$system/root/usr/lib/x86_64-linux-gnu
    if [ ! -e "$libraries/libc.so.6" ]; then
        mkdir -p "$system"/{parts,state/lists/partial,cache/archives/partial,debs,root}
        touch "$system/state/status"
        printf '%s\n' 'Types: deb' 'URIs: http://deb.debian.org/debian' 'Suites: trixie' 'Components: main' \
            'Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg' > "$system/parts/trixie.sources"
        apt=(apt-get -qq -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$system/parts"
            -o "Dir::State=$system/state" -o "Dir::State::status=$system/state/status"
            -o "Dir::Cache=$system/cache")
        "${apt[@]}" update
        (cd "$system/debs" && "${apt[@]}" download libc6 libstdc++6 libgcc-s1 libssl3t64 zlib1g libzstd1)
        for package in "$system"/debs/*.deb; do dpkg-deb -x "$package" "$system/root"; done
    fi
    start="exec $libraries/ld-linux-x86-64.so.2 --library-path $libraries:$analyzer/cuda"
fi
{
    echo '#!/bin/sh'
    echo "export LD_LIBRARY_PATH=$analyzer/cuda"
    echo "$start $analyzer/perf_analyzer/bin/perf_analyzer \"\$@\""
} > "$folder/perf_analyzer.sh"
chmod +x "$folder/perf_analyzer.sh"
"$folder/perf_analyzer.sh" --version
