#!/usr/bin/env bash
# llama.cpp's library, built once from the source that the npm package node-llama-cpp carries, and our small program on it
# (llama_mtp.cpp), cached outside the repository. One job at the lowest priority: some 20 minutes. A second call goes on.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/deepseek-v3/llama"
mkdir -p "$cache"
[ -d "$cache/llama.cpp" ] || git clone -q "$here/node_modules/node-llama-cpp/llama/gitRelease.bundle" "$cache/llama.cpp"
cd "$cache/llama.cpp"
# What times it (benchmarks/llama.py) takes the libraries that the package brings: they hold kernels for every processor.
bins="$here/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64"
for name in rate eight_bits; do
    [ -d "$bins" ] && g++ -std=c++17 -O2 -I include -I ggml/include "$here/llama_$name.cpp" "$bins"/libllama.v*.so \
        "$bins"/libggml.v*.so "$bins"/libggml-base.so "-Wl,-rpath,$bins" -o "$cache/llama_$name"
done
[ -f build/build.ninja ] || nice -n 19 cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
    -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCMAKE_C_FLAGS_RELEASE=-O2 -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAMA_CURL=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
nice -n 19 cmake --build build --target llama -j 1
g++ -std=c++17 -O1 -I include -I ggml/include -I src "$here/llama_mtp.cpp" -L build/bin -lllama -lggml -lggml-base \
    "-Wl,-rpath,$PWD/build/bin" -o "$cache/llama_mtp"
