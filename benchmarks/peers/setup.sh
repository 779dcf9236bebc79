#!/usr/bin/env bash
# Make .venv-peers, the environment of benchmarks/peers/run.py. Takes a minute and 1.3 GB.
set -euo pipefail
cd "$(dirname "$0")/../.."
"${PYTHON:-python3.11}" -m venv .venv-peers
.venv-peers/bin/pip install --quiet --disable-pip-version-check -r benchmarks/peers/requirements.txt
