#!/usr/bin/env bash
# The chaos suite in its long form, called by `make chaos` within services.sh: the storms, the other tests of the suite, the faults of the
# stores with pauses as long as the leases and time limits, and the simulation. Goes on after a failure, and tells all of them at the end.
#
#   MINUTES=10   of each storm, and of the simulation
#   SEED=42      of the storms; else one of the moment
#   OLD=1a2b3c   a commit: the program that is upgraded in the rolling upgrade, built in a work tree of its own
set -euo pipefail

minutes=${MINUTES:-10}
folder=$(mktemp -d "${TMPDIR:-/tmp}/trilane-chaos.XXXXXX")
failed=()

main() {
  trap clean_up EXIT
  export TRILANE_CHAOS_TABLES=$folder/tables
  : >"$TRILANE_CHAOS_TABLES"
  if [ -n "${OLD:-}" ]; then
    build_old "$OLD"
  fi
  [ -z "${SEED:-}" ] || export TRILANE_CHAOS_SEED=$SEED
  part 'storms' env TRILANE_CHAOS_MINUTES="$minutes" "$@" --test chaos -- storm:: --nocapture --test-threads 1
  part 'other faults' "$@" --test chaos -- --skip storm::
  # As long as a lease by default, a statement on PostgreSQL, and a connection that is not acknowledged.
  part 'pauses of 30 s' env TRILANE_TEST_PAUSE_SECONDS=30 "$@" --test process -- database_faults:: sqlite_faults:: redis_faults::
  part 'simulation' env TRILANE_SIMULATE_SECONDS="$(awk "BEGIN { print int($minutes * 60) }")" "$@" --test simulate -- no_job --nocapture
  cat "$TRILANE_CHAOS_TABLES"
  if [ ${#failed[@]} -gt 0 ]; then
    printf 'chaos: FAILED: %s\n' "${failed[@]}" >&2
    exit 1
  fi
  echo 'chaos: all parts passed'
}

part() {
  local name=$1
  shift
  printf '\nchaos: %s\n' "$name"
  "$@" || failed+=("$name")
}

build_old() {
  git worktree add --detach "$folder/old" "$1"
  (cd "$folder/old" && CARGO_TARGET_DIR=$folder/target cargo build)
  export TRILANE_TEST_OLD_BINARY=$folder/target/debug/trilane
}

clean_up() {
  if [ -d "$folder/old" ]; then
    git worktree remove --force "$folder/old"
  fi
  rm -rf "$folder"
}

main "$@"
