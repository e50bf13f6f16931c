#!/usr/bin/env bash
# Starts Trilane in the foreground and, beside it, submits the original system's two sample jobs and shows their way.
#
#   deploy/demo.sh target/release/trilane
#
# Trilane takes this script's place, so Ctrl-C, SIGTERM and the exit code are its own.
set -euo pipefail

readonly READY_SECONDS_MAX=60 DONE_SECONDS_MAX=60
readonly JOBS='[
  {"type": "send_email", "payload": "{\"to\":\"user@example.com\",\"subject\":\"Welcome!\"}", "priority": "high", "max_retries": 3},
  {"type": "export_user_data", "payload": "{\"user_id\":42,\"format\":\"csv\"}", "priority": "low", "max_retries": 2}
]'

main() {
  local binary=$1 address host
  address=$(setting TRILANE_HTTP_ADDR)
  address=${address:-127.0.0.1:8080}
  address=${address/#0.0.0.0:/127.0.0.1:}
  host=${address%:*}
  # Where another program already answers, Trilane says so itself; the samples must not go to that other one.
  if ! (: <>"/dev/tcp/${host//[][]/}/${address##*:}") 2>/dev/null; then
    # Two forks: Trilane, which this process becomes, must not inherit a child that it does not know.
    (show "$$" "http://$address" "$(setting TRILANE_API_TOKENS)" &)
  fi
  exec "$binary"
}

# A setting as Trilane will read it: from the environment, else from .env.
setting() {
  if [ -n "${!1:-}" ]; then
    printf '%s' "${!1}"
  elif [ -r .env ]; then
    sed -n "s/^\(export \)\{0,1\}$1=//p" .env | tail -n 1 | tr -d "\"' \r"
  fi
}

# Runs beside Trilane; ends with it at the latest.
show() {
  local trilane=$1 url=$2 token=${3%%,*} answer id
  local -a ids
  wait_until_ready || return 0
  if ! answer=$(call /enqueue --header 'Content-Type: application/json' --data "$JOBS"); then
    say "the sample jobs were not taken: $answer"
    return
  fi
  say ''
  say 'Two sample jobs, submitted with POST /enqueue:'
  mapfile -t ids < <(fields id "$answer")
  for id in "${ids[@]}"; do
    follow "$id" "$(field status "$answer")" &
  done
  wait
  is_running || return 0
  say ''
  say "Trilane serves on $url until Ctrl-C. To look at:"
  say "  $url/getAllJobs"
  say "  $url/failed-jobs"
  say "  $url/jobs/$id"
  say "  $url/readyz"
  say ''
}

wait_until_ready() {
  local deadline=$((SECONDS + READY_SECONDS_MAX))
  until call /readyz >/dev/null 2>&1; do
    is_running || return 1
    [ $SECONDS -lt $deadline ] || { say "Trilane is not ready after $READY_SECONDS_MAX s"; return 1; }
    sleep 0.1
  done
}

# Prints one line with every status that the job is seen in, from its first one until it is final.
follow() {
  local id=$1 last=$2 way=$2 deadline=$((SECONDS + DONE_SECONDS_MAX)) job status
  while :; do
    is_running || return 1
    job=$(call "/jobs/$id" 2>/dev/null || true)
    status=$(field status "$job")
    if [ -n "$status" ] && [ "$status" != "$last" ]; then
      way="$way → $status"
      last=$status
    fi
    case $status in completed | failed | cancelled) break ;; esac
    [ $SECONDS -lt $deadline ] || { way="$way … still not done after $DONE_SECONDS_MAX s"; break; }
    sleep 0.02
  done
  say "$(printf '  %-6s  %-16s  %s  %s' "$(field priority "$job")" "$(field type "$job")" "$id" "$way")"
}

# The values of every text field of that name in a JSON document; `field`: of the first.
fields() { { grep -o "\"$1\": *\"[^\"]*\"" <<<"$2" || true; } | cut -d'"' -f4; }
field() { fields "$1" "$2" | sed -n 1p; }

call() {
  local path=$1
  shift
  # The token goes through a file descriptor: arguments can be read by every user of the machine.
  curl -sS --fail-with-body --max-time 10 --config <(printf '%s' "${token:+header = \"Authorization: Bearer $token\"}") "$@" "$url$path"
}

is_running() { kill -0 "$trilane" 2>/dev/null; }

say() { printf '%s\n' "$*"; }

main "$@"
