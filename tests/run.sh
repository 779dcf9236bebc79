#!/usr/bin/env bash
# Install what the tests need and run them, in two processes with a thread each. Further arguments go to pytest, for
# example: bash tests/run.sh -k trie
set -euo pipefail
cd "$(dirname "$0")/.."
source utils/venv.sh requirements-dev.txt
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
python -m pytest -n 2 --dist loadfile "$@"
