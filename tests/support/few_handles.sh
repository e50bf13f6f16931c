#!/usr/bin/env bash
# Runs $FEW_HANDLES_PROGRAM with no more file handles than $FEW_HANDLES.
set -euo pipefail

ulimit -n "$FEW_HANDLES"
exec "$FEW_HANDLES_PROGRAM" "$@"
