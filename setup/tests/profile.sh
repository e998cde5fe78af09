#!/usr/bin/env bash
# What profile.py asks CloudLab for, with each parameter changed, and what it refuses.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=setup/tests/lib.sh
. setup/tests/lib.sh

python_environment
exec "$venv/bin/python" setup/tests/profile.py
