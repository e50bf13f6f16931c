#!/usr/bin/env bash
# Runs a command with a PostgreSQL and a Redis of its own, and takes both away again.
#
#   tests/support/services.sh cargo test
#
# Both listen on free ports of 127.0.0.1 and keep their data in a temporary folder. The command finds them in
#   TRILANE_TEST_POSTGRES  an ODBC connection string; the user may create schemas and databases
#   TRILANE_TEST_REDIS     a URL
# TRILANE_TEST_MSSQL is passed on when set. The exit code is the command's. Both servers are stopped when the command
# ends, however it ends; if this script itself is killed, the kernel stops them. TRILANE_TEST_KEEP=1 keeps the folder, and
# with it the servers' logs, when the command fails.
# shellcheck disable=SC2317 # Called by a trap, or as an argument of `answers`.
set -euo pipefail

readonly START_SECONDS_MAX=60 STOP_SECONDS_MAX=20 PORT_TRIES_MAX=8
readonly USER_NAME=trilane DATABASE=trilane_test
# A session of its own: Ctrl-C at the terminal ends the tests first and the servers afterwards. Followed by --pdeathsig.
readonly SERVER=(setsid setpriv)

folder='' postgres_pid='' redis_pid='' command_pid=''

say() { printf 'services: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }

main() {
  [ $# -gt 0 ] || die "usage: services.sh COMMAND [ARGUMENT…]"
  trap stop_all EXIT
  trap 'interrupted INT 130' INT
  trap 'interrupted TERM 143' TERM
  trap 'interrupted HUP 129' HUP

  folder=$(mktemp -d "${TMPDIR:-/tmp}/trilane-test.XXXXXX")
  chmod 711 "$folder" # PostgreSQL may run as another user, and needs to reach its folder inside.
  start_postgres
  start_redis
  if [ -n "${TRILANE_TEST_MSSQL:-}" ]; then
    say "SQL Server is tested: TRILANE_TEST_MSSQL is set"
  else
    say "SQL Server is NOT tested: TRILANE_TEST_MSSQL holds no ODBC connection string"
  fi
  run "$@"
}

# Runs the command in a process group of its own, so that a signal reaches all of it and leaves the servers alone.
run() {
  local code=0
  set -m
  "$@" </dev/null &
  command_pid=$!
  set +m
  wait "$command_pid" || code=$?
  command_pid=''
  exit "$code"
}

interrupted() {
  trap '' INT TERM HUP
  [ -z "$command_pid" ] || stop "$1" "-$command_pid"
  exit "$2"
}

stop_all() {
  local code=$?
  trap '' INT TERM HUP
  trap - EXIT
  # SIGINT is PostgreSQL's fast shutdown: it does not wait for connections that a killed test left open.
  [ -z "$postgres_pid" ] || stop INT "$postgres_pid"
  [ -z "$redis_pid" ] || stop TERM "$redis_pid"
  if [ -n "$folder" ]; then
    if [ "$code" != 0 ] && [ -n "${TRILANE_TEST_KEEP:-}" ]; then
      say "kept $folder, with the logs of both servers"
    else
      rm -rf "$folder"
    fi
  fi
  exit "$code"
}

# --- PostgreSQL ---

start_postgres() {
  local bin password port='' try
  bin=$(postgres_bin) || die "no PostgreSQL server found (initdb); tests/support/packages.sh test installs it"
  password=$(od -An -N12 -tx1 /dev/urandom | tr -d ' \n')
  mkdir "$folder/postgres"
  printf '%s' "$password" >"$folder/postgres/password"
  as_postgres_own "$folder/postgres"

  # Only the making of the cluster skips fsync: a crash here is a new cluster. The server itself keeps it on, as the
  # tests pull plugs.
  (become_postgres "$bin/initdb" --pgdata=data --username="$USER_NAME" --pwfile=password --auth=scram-sha-256 \
    --encoding=UTF8 --locale=C.UTF-8 --no-sync >"$folder/initdb.log" 2>&1) ||
    { cat "$folder/initdb.log" >&2; die "initdb failed"; }

  for ((try = 1; try <= PORT_TRIES_MAX; try++)); do
    port=$(free_port)
    # 300 connections: tests run in parallel, some with several replicas, each with a pool of its own. pg_stat_statements
    # counts what an idle replica sends, and forgets none of it: each of their databases makes some 60 entries. Debian has it
    # in the package of the server.
    (become_postgres "${SERVER[@]}" --pdeathsig=INT "$bin/postgres" -D data -p "$port" -c listen_addresses=127.0.0.1 \
      -c unix_socket_directories='' -c max_connections=300 -c fsync=on -c shared_preload_libraries=pg_stat_statements \
      -c pg_stat_statements.max=20000 \
      >"$folder/postgres.log" 2>&1 </dev/null) &
    postgres_pid=$!
    if answers "$postgres_pid" postgres_answers "$bin" "$port" "$password"; then break; fi
    stop INT "$postgres_pid"
    postgres_pid=''
  done
  [ -n "$postgres_pid" ] || { cat "$folder/postgres.log" >&2; die "PostgreSQL did not start"; }

  PGPASSWORD=$password "$bin/createdb" -h 127.0.0.1 -p "$port" -U "$USER_NAME" "$DATABASE"
  PGPASSWORD=$password "$bin/psql" -h 127.0.0.1 -p "$port" -U "$USER_NAME" -d "$DATABASE" -qc 'create extension pg_stat_statements'
  local driver
  driver=$(postgres_driver) || exit 1
  export TRILANE_TEST_POSTGRES="Driver={$driver};Server=127.0.0.1;Port=$port;Database=$DATABASE;UID=$USER_NAME;PWD=$password;"
  say "$("$bin/postgres" --version | sed 's/^postgres (PostgreSQL)/PostgreSQL/') on 127.0.0.1:$port"
}

# The newest server on this machine. Debian keeps initdb and postgres off the PATH, one folder for each version.
postgres_bin() {
  local bin
  # shellcheck disable=SC2046 # Folders of Debian's package: no spaces in them.
  for bin in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -t/ -k5 -rn) "$(pg_config --bindir 2>/dev/null || true)" \
    "$(dirname "$(command -v initdb || echo /none/initdb)")"; do
    if [ -x "$bin/initdb" ] && [ -x "$bin/postgres" ]; then
      echo "$bin"
      return
    fi
  done
  return 1
}

postgres_driver() {
  local name
  for name in 'PostgreSQL Unicode' 'PostgreSQL ANSI' PostgreSQL; do
    if odbcinst -q -d -n "$name" >/dev/null 2>&1; then
      echo "$name"
      return
    fi
  done
  die "no PostgreSQL ODBC driver is registered in odbcinst.ini"
}

# Becomes the program named, as a user that PostgreSQL accepts: not root. Debian's package brings one. To be called in a
# subshell, which is then the program itself: its pid is the one to stop.
become_postgres() {
  # The folder of the project may be closed to that user, and both programs look at where they stand.
  cd "$folder/postgres"
  [ "$(id -u)" = 0 ] || exec "$@"
  local user
  user=$(postgres_user)
  exec setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups -- "$@"
}

as_postgres_own() {
  [ "$(id -u)" != 0 ] || chown -R "$(postgres_user)" "$1"
}

postgres_user() {
  if id -u postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi
}

postgres_answers() {
  PGPASSWORD=$3 PGCONNECT_TIMEOUT=2 "$1/psql" -h 127.0.0.1 -p "$2" -U "$USER_NAME" -d postgres -qtAc 'select 1' >/dev/null 2>&1
}

# --- Redis ---

start_redis() {
  local port='' try
  command -v redis-server >/dev/null || die "no redis-server found; tests/support/packages.sh test installs it"
  mkdir "$folder/redis"
  for ((try = 1; try <= PORT_TRIES_MAX; try++)); do
    port=$(free_port)
    "${SERVER[@]}" --pdeathsig=TERM redis-server --bind 127.0.0.1 --port "$port" --dir "$folder/redis" --save '' --appendonly no \
      --daemonize no >"$folder/redis.log" 2>&1 </dev/null &
    redis_pid=$!
    if answers "$redis_pid" redis_answers "$port"; then break; fi
    stop TERM "$redis_pid"
    redis_pid=''
  done
  [ -n "$redis_pid" ] || { cat "$folder/redis.log" >&2; die "Redis did not start"; }
  export TRILANE_TEST_REDIS="redis://127.0.0.1:$port/"
  say "Redis $(redis-server --version | sed 's/.* v=\([^ ]*\).*/\1/') on 127.0.0.1:$port"
}

redis_answers() {
  [ "$(redis-cli -h 127.0.0.1 -p "$1" ping 2>/dev/null)" = PONG ]
}

# --- Processes and ports ---

# Whether the server of that pid comes to answer; no, as soon as it is gone (its port was taken meanwhile, say).
answers() {
  local pid=$1 deadline=$((SECONDS + START_SECONDS_MAX))
  shift
  until "$@"; do
    is_alive "$pid" || return 1
    [ $SECONDS -lt $deadline ] || return 1
    sleep 0.05
  done
  # What answered is this server, not another one that was quicker to take the port.
  is_alive "$pid"
}

stop() {
  kill -s "$1" -- "$2" 2>/dev/null || return 0
  local deadline=$((SECONDS + STOP_SECONDS_MAX))
  while is_alive "$2"; do
    [ $SECONDS -lt $deadline ] || { kill -KILL -- "$2" 2>/dev/null || true; return 0; }
    sleep 0.05
  done
}

# Of a process, or with a minus in front of a process group.
is_alive() { kill -0 -- "$1" 2>/dev/null; }

# Below the range that Linux gives to outgoing connections, so that none of those takes it.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 10000))
    (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || { echo "$port"; return; }
  done
}

main "$@"
