#!/usr/bin/env bash
# llama.cpp's server, built once from the source that the npm package node-llama-cpp carries, and cached outside the
# repository: bash build_llama_server.sh. One job at the lowest priority: tens of minutes. A second call goes on.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
cache="${XDG_CACHE_HOME:-$HOME/.cache}/deepseek-v3/llama"
mkdir -p "$cache"
[ -d "$cache/llama.cpp" ] || git clone -q "$here/node_modules/node-llama-cpp/llama/gitRelease.bundle" "$cache/llama.cpp"
cd "$cache/llama.cpp"
[ -f build/build.ninja ] || nice -n 19 cmake -S . -B build -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DCMAKE_CXX_FLAGS_RELEASE=-O1 -DCMAKE_C_FLAGS_RELEASE=-O2 -DGGML_NATIVE=OFF -DGGML_OPENMP=OFF -DLLAMA_CURL=OFF \
    -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
nice -n 19 cmake --build build --target llama-server -j 1
