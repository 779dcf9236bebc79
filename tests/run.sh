#!/usr/bin/env bash
# Install what the tests need and run them. Further arguments go to pytest, for example: bash tests/run.sh -k trie
set -euo pipefail
cd "$(dirname "$0")/.."
source utils/venv.sh requirements-dev.txt
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python -m pytest "$@"
