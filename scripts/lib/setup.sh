# Owns what a machine needs before this crate builds and its tests run: a C compiler, Rust, PostgreSQL's server programs.
# Sourced by the other scripts, which call `ensure_machine`, and before format and lints `ensure_rust_components`, before the tests
# `ensure_browser`.
# shellcheck shell=bash

# Prints the folder that has both initdb and postgres: the same search as PrivatePostgres::find_binaries.
find_postgres() {
  local folder
  if [ -n "${RUVECTOR_PG_BIN:-}" ]; then
    has_server "$RUVECTOR_PG_BIN" && printf '%s\n' "$RUVECTOR_PG_BIN"
    return
  fi
  while IFS= read -r folder; do
    if has_server "$folder"; then
      printf '%s\n' "$folder"
      return
    fi
  done < <(
    pg_config --bindir 2>/dev/null || true
    if command -v postgres >/dev/null; then dirname "$(readlink -f "$(command -v postgres)")"; fi
    find /usr/lib/postgresql -mindepth 2 -maxdepth 2 -name bin 2>/dev/null | sort -t / -k 5,5nr
  )
  return 1
}

has_server() {
  [ -f "$1/initdb" ] && [ -f "$1/postgres" ]
}

# Runs a command as root: directly, or by sudo where that asks no password.
as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

can_install() {
  command -v apt-get >/dev/null || return 1
  [ "$(id -u)" = 0 ] || sudo -n true 2>/dev/null
}

# Installs packages, or says what to run and ends the script.
install_packages() {
  local line="sudo apt-get update && sudo apt-get install -y --no-install-recommends $*"
  if ! can_install; then
    printf 'Missing on this machine. Run\n  %s\nand start this script again.\n' "$line" >&2
    exit 2
  fi
  printf 'Installing %s (%s)\n' "$*" "$line" >&2
  local no_cluster=/etc/postgresql-common/createcluster.d/ruvector-setup.conf status=0
  # Debian's package makes and starts a cluster on port 5432 unless told otherwise; nobody asked for one here.
  as_root mkdir -p "${no_cluster%/*}"
  printf '%s\n' 'create_main_cluster = false' | as_root tee "$no_cluster" >/dev/null
  { as_root apt-get update -q &&
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@"; } \
    </dev/null >&2 || status=$?
  # The administrator's own installs later behave as usual.
  as_root rm -f "$no_cluster"
  if [ "$status" != 0 ]; then
    printf 'The installation failed. Repair it, for example by\n  %s\nand start this script again.\n' "$line" >&2
    exit 2
  fi
}

# Makes sure of everything; silent where nothing is missing.
ensure_machine() {
  local packages=()
  if ! command -v cargo >/dev/null && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
    export PATH
  fi
  if ! command -v cargo >/dev/null; then
    echo "No Rust toolchain. Get one at https://rustup.rs: curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh" >&2
    exit 2
  fi
  # Some dependencies compile C (aws-lc-sys, simsimd, psm), and Rust links by cc. cmake is not needed.
  command -v cc >/dev/null || packages+=(gcc libc6-dev)
  if ! find_postgres >/dev/null; then
    if [ -n "${RUVECTOR_PG_BIN:-}" ]; then
      echo "RUVECTOR_PG_BIN is $RUVECTOR_PG_BIN, where initdb and postgres are not both found." >&2
      exit 2
    fi
    packages+=(postgresql)
  fi
  if [ "${#packages[@]}" != 0 ]; then
    install_packages "${packages[@]}"
    find_postgres >/dev/null || { echo "PostgreSQL was installed, yet initdb is not found." >&2; exit 2; }
  fi
}

# A browser without a window and its driver, for tests/page: Debian's. Elsewhere chromedriver has to be in the PATH, or
# RUVECTOR_TEST_NO_BROWSER leaves these tests out.
ensure_browser() {
  [ -z "${RUVECTOR_TEST_NO_BROWSER:-}" ] || return 0
  command -v chromedriver >/dev/null || install_packages chromium chromium-driver fonts-liberation
}

# rustfmt and clippy: a minimal toolchain, such as that of container images, comes without.
ensure_rust_components() {
  cargo fmt --version >/dev/null 2>&1 && cargo clippy --version >/dev/null 2>&1 && return
  if command -v rustup >/dev/null; then
    rustup component add rustfmt clippy >&2 && return
  fi
  echo "rustfmt or clippy is missing. Run: rustup component add rustfmt clippy" >&2
  exit 2
}
