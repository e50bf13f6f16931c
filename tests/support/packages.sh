#!/usr/bin/env bash
# Installs what this machine lacks to build, run or test Trilane, and says what it installs.
#
#   tests/support/packages.sh build|run|test
#
# On Debian and its kin through apt, with sudo when not root. Elsewhere it says which packages are wanted and goes on
# when what they bring is there already. Services that come with a package (PostgreSQL, Redis) are neither started nor
# left enabled: the tests start their own (services.sh).
set -euo pipefail

readonly BUILD=(gcc libc6-dev unixodbc-dev)
readonly RUN=(unixodbc odbcinst libsqliteodbc curl ca-certificates)
readonly TEST=(postgresql odbc-postgresql redis-server openssl procps faketime)

say() { printf '%s\n' "$*" >&2; }
die() { say "packages: $*"; exit 1; }

main() {
  local purpose=${1:-}
  local -a wanted
  case $purpose in
    build) wanted=("${BUILD[@]}") ;;
    run) wanted=("${BUILD[@]}" "${RUN[@]}") ;;
    test) wanted=("${BUILD[@]}" "${RUN[@]}" "${TEST[@]}") ;;
    *) die "usage: packages.sh build|run|test" ;;
  esac
  command -v cargo >/dev/null || die "cargo is not on the PATH; Trilane is built with Rust $(rust_wanted) or newer"
  if command -v apt-get >/dev/null && command -v dpkg-query >/dev/null; then
    install_missing "${wanted[@]}"
  else
    check_without_apt "$purpose" "${wanted[@]}"
  fi
}

rust_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "$0")/../../Cargo.toml"; }

install_missing() {
  local package
  local -a missing=()
  for package in "$@"; do
    # Installed, or provided by what is installed (curl and gcc also come from elsewhere than their Debian package).
    is_installed "$package" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0

  local -a root=()
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null || die "missing packages, and no sudo to install them; as root: apt-get install ${missing[*]}"
    root=(sudo)
  fi
  say "packages: installing ${missing[*]}"
  # An old package list may name versions that are gone from the mirror. A mirror out of reach is no reason to stop yet.
  "${root[@]}" apt-get update -qq || say "packages: apt-get update failed; trying with the package list as it is"
  with_services_held_back "${missing[@]}" || die "apt-get could not install: ${missing[*]}"
}

is_installed() {
  case "$(dpkg-query -W -f='${Status}\n' "$1" 2>/dev/null)" in
    *'install ok installed'*) return 0 ;;
  esac
  case $1 in
    curl | gcc) command -v "$1" >/dev/null ;;
    *) return 1 ;;
  esac
}

# Installs packages without starting the services in them. Debian asks /usr/sbin/policy-rc.d before it starts one; where
# there is none, one that says no (101) stands there meanwhile. What came new is taken out of the boot as well.
with_services_held_back() {
  # shellcheck disable=SC2016 # The inner shell expands it.
  "${root[@]}" env DEBIAN_FRONTEND=noninteractive bash -ec '
    policy=/usr/sbin/policy-rc.d own_policy="" log=$(mktemp)
    trap "rm -f \$own_policy $log" EXIT
    trap "exit 130" INT TERM HUP
    if [ ! -e "$policy" ]; then
      own_policy=$policy
      printf "#!/bin/sh\nexit 101\n" > "$policy"
      chmod 755 "$policy"
    fi
    apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=300 "$@" >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
    if command -v systemctl >/dev/null && [ -d /run/systemd/system ]; then
      for package in "$@"; do
        case $package in postgresql|redis-server) systemctl disable --quiet "$package" || true ;; esac
      done
    fi
  ' packages "$@"
}

check_without_apt() {
  local purpose=$1 lacking=0
  shift
  say "packages: no apt here; wanted, by their Debian names: $*"
  command -v cc >/dev/null || { say "packages: no C compiler (cc)"; lacking=1; }
  command -v odbc_config >/dev/null || [ -e /usr/include/sql.h ] || { say "packages: no unixODBC headers (sql.h)"; lacking=1; }
  if [ "$purpose" != build ]; then
    odbcinst -q -d 2>/dev/null | grep -q SQLite || { say "packages: no SQLite ODBC driver in odbcinst.ini"; lacking=1; }
    command -v curl >/dev/null || { say "packages: no curl"; lacking=1; }
  fi
  if [ "$purpose" = test ]; then
    odbcinst -q -d 2>/dev/null | grep -q PostgreSQL || { say "packages: no PostgreSQL ODBC driver in odbcinst.ini"; lacking=1; }
    command -v redis-server >/dev/null || { say "packages: no redis-server"; lacking=1; }
    command -v initdb >/dev/null || command -v pg_config >/dev/null || { say "packages: no PostgreSQL server (initdb)"; lacking=1; }
  fi
  [ "$lacking" = 0 ] || die "install the above and try again"
}

main "$@"
