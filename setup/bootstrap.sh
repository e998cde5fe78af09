#!/usr/bin/env bash
# Makes a bare Ubuntu or Debian machine a node: build tools, a Rust toolchain, linerate built and installed.
set -euo pipefail

usage() {
  cat <<'USAGE'
Usage: setup/bootstrap.sh [--prefix DIR] [--state DIR] [--service] [--dry-run]

Installs what building and tuning take, and a Rust toolchain if there is none that is new enough; builds linerate-server,
linerate and linerate-bench from the repository that this script is in, and installs them. Whatever is there already is
left as it is, so it can be run again at any time, also at each boot; a second one waits for the first.

  --prefix DIR  install to DIR/bin                                         [default: /usr/local]
  --state DIR   keep the log, the lock and what is built in DIR
                [default: /var/lib/linerate-setup as root, otherwise ~/.local/state/linerate-setup]
  --service     install linerate-server.service for systemd as well; it is neither enabled nor started
  --dry-run     say what would be done, and do nothing
  --help        this text

Packages, the service, and a DIR that is not one's own are installed with sudo, unless it is run as root; nothing else
needs root. CARGO_HOME and RUSTUP_HOME say where toolchains are, CARGO_TARGET_DIR where to build.
USAGE
}

say() { printf '%s\n' "bootstrap.sh: $*" | tee -a "$log"; }
# One sentence that names the thing, the reason, and the remedy.
fail() {
  printf '%s\n' "bootstrap.sh: $*" | tee -a "$log" >&2
  exit 1
}
refuse() {
  printf '%s\n' "bootstrap.sh: $*" >&2
  exit 2
}

# Runs a command that changes something, shown and logged.
run() {
  if $dry_run; then
    echo "would run: $*"
    return
  fi
  local status=0
  # What it leaves running must not hold the lock.
  "$@" 2>&1 9>&- | tee -a "$log" || status=$?
  [ "$status" = 0 ] || fail "\`$*\` ended with status $status: what it said is in $log"
}
# Something will be other than it was.
change() { changes=$((changes + 1)); }
as_root() {
  if [ "$(id -u)" = 0 ]; then
    run "$@"
  elif ! command -v sudo >/dev/null; then
    fail "\`$*\` needs root and there is no sudo: run it as root"
  elif [ -t 0 ]; then
    run sudo "$@"
  else
    # Nobody is there to type a password.
    run sudo -n "$@"
  fi
}
# Again when it fails, by `run` or `as_root`: nodes that boot all at once find mirrors busy.
patiently() {
  local try
  for try in 1 2 3; do
    # Either ends the shell that it is in.
    if ("$@"); then return; fi
    [ "$try" = 3 ] || { say "waiting 10 s before trying again"; sleep 10; }
  done
  exit 1
}

# Installs a file if it is not there in this form.
install_file() {
  local mode=$1 from=$2 to=$3 how=run
  if cmp -s "$from" "$to"; then
    say "$to is up to date"
    return
  fi
  nearest_is_writable "$(dirname "$to")" || how=as_root
  "$how" install -D -m "$mode" "$from" "$to"
  change
}
nearest_is_writable() {
  local folder=$1
  while [ ! -e "$folder" ]; do folder=$(dirname "$folder"); done
  [ -w "$folder" ]
}

packages() {
  local missing=() need
  # What it takes to fetch and build, then what tuning and network namespaces use.
  for need in cc:build-essential curl:curl git:git install:coreutils \
    ip:iproute2 tc:iproute2 ethtool:ethtool ping:iputils-ping sysctl:procps iptables:iptables ssh:openssh-client; do
    (PATH="$PATH:$root/usr/sbin:$root/sbin" command -v "${need%:*}" >/dev/null) || missing+=("${need#*:}")
  done
  [ -e "$root/etc/ssl/certs/ca-certificates.crt" ] || missing+=(ca-certificates)
  if [ ${#missing[@]} = 0 ]; then
    say '[1/4] packages: all are there'
    return
  fi
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
  say "[1/4] packages: installing ${missing[*]}"
  change
  command -v apt-get >/dev/null ||
    fail "this system has no apt-get: install ${missing[*]} by its own means, and run it again"
  # A machine that has just booted may be busy with updates of its own.
  local lock_timeout=DPkg::Lock::Timeout=600
  patiently as_root apt-get -qq -o "$lock_timeout" update
  patiently as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o "$lock_timeout" install "${missing[@]}"
}

# Whether there is a cargo, and at least the one that the workspace names.
has_cargo() {
  local version
  # In the repository, because a toolchain may be chosen by folder.
  version=$(cd "$repository" && cargo --version 2>/dev/null | sed -nE 's/^cargo ([0-9]+\.[0-9]+).*/\1/p') || return 1
  [ -n "$version" ] && [ "$(printf '%s\n' "$least_rust" "$version" | sort -V | head -n 1)" = "$least_rust" ] || return 1
  say "[2/4] toolchain: cargo $version is there, $least_rust or newer is needed"
}

toolchain() {
  # Where rustup puts them; a shell that has not been started anew does not look there.
  PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  if has_cargo; then return; fi
  change
  if command -v rustup >/dev/null; then
    say "[2/4] toolchain: no cargo of at least $least_rust, installing stable with rustup"
    patiently run rustup toolchain install stable --profile minimal --no-self-update
  else
    say "[2/4] toolchain: no cargo of at least $least_rust and no rustup, installing both"
    patiently run curl --proto '=https' --tlsv1.2 -fsSL -o "$state/rustup-init.sh" https://sh.rustup.rs
    patiently run sh "$state/rustup-init.sh" -y --profile minimal --default-toolchain stable --no-modify-path
  fi
  # Before whatever the machine's default is.
  PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
  export RUSTUP_TOOLCHAIN=stable
  $dry_run || has_cargo ||
    fail "stable is installed, but $(command -v cargo || echo cargo) is not of at least $least_rust: remove it, and run it again"
}

build() {
  say "[3/4] building, which takes some minutes the first time"
  export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$state/target}"
  # Dependencies are fetched apart, because that may be tried again.
  cd "$repository"
  patiently run cargo fetch --locked
  run cargo build --release --locked "${programs[@]/#/--bin=}"
}

programs() {
  local program
  say "[4/4] installing to $prefix/bin"
  for program in "${programs[@]}"; do
    install_file 755 "$CARGO_TARGET_DIR/release/$program" "$prefix/bin/$program"
  done
}

service() {
  local unit=$state/linerate-server.service before=$changes
  say 'installing linerate-server.service'
  if $dry_run; then unit=$repository/setup/linerate-server.service; fi
  $dry_run || sed "s|/usr/local/bin/|$prefix/bin/|" "$repository/setup/linerate-server.service" >"$unit"
  install_file 644 "$unit" "$root/etc/systemd/system/linerate-server.service"
  # Its options are the machine's own once they are there.
  [ -e "$root/etc/default/linerate" ] ||
    install_file 644 "$repository/setup/linerate.default" "$root/etc/default/linerate"
  if [ ! -d "$root/run/systemd/system" ]; then
    say 'systemd does not run here: the service is installed, but nobody has been told'
  elif [ "$changes" != "$before" ]; then
    as_root systemctl daemon-reload
  fi
  say "options are in $root/etc/default/linerate; \`sudo systemctl enable --now linerate-server\` starts it"
}

# The root of what it looks at and installs outside of --prefix and --state: for its test.
root=${BOOTSTRAP_ROOT:-}
prefix=/usr/local
state=
with_service=false
dry_run=false
changes=0
log=/dev/null
while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --state)
      case ${2:-} in
        '') refuse "$1 lacks its DIR: see --help" ;;
        *[[:space:]\|\&\\]*) refuse "$1 '$2' has characters that neither make nor systemd take: give a plain path" ;;
        /*) ;;
        *) refuse "$1 $2 is relative: give a path that starts with /" ;;
      esac
      printf -v "${1#--}" %s "${2%/}"
      shift
      ;;
    --service) with_service=true ;;
    --dry-run) dry_run=true ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) refuse "\`$1\` is no option: see --help" ;;
  esac
  shift
done

repository=$(cd "$(dirname "$0")/.." && pwd)
least_rust=$(sed -nE 's/^rust-version = "(.*)"$/\1/p' "$repository/Cargo.toml" 2>/dev/null || true)
[ -n "$least_rust" ] || refuse "$repository is no working copy of linerate: run it from one, as setup/bootstrap.sh"
programs=(linerate-server linerate linerate-bench)
# Services at boot may have no home.
export HOME="${HOME:-$(getent passwd "$(id -u)" | cut -d: -f6)}"
if [ -z "$state" ]; then
  state=${XDG_STATE_HOME:-$HOME/.local/state}/linerate-setup
  [ "$(id -u)" != 0 ] || state=/var/lib/linerate-setup
fi

if ! $dry_run; then
  { mkdir -p "$state" && touch "$state/bootstrap.lock"; } 2>/dev/null ||
    refuse "$state cannot be written to: give another --state, or run it as who owns that"
  exec 9>"$state/bootstrap.lock"
  if ! flock --nonblock 9; then
    echo "bootstrap.sh: another one is at work, see $state/bootstrap.log: waiting for it"
    flock --timeout 3600 9 || refuse "another one has been at work for an hour, see $state/bootstrap.log: end it first"
  fi
  log=$state/bootstrap.log
  say "$(date --utc +%FT%TZ) starts at $(git -C "$repository" rev-parse --short HEAD 2>/dev/null || echo 'no commit')"
fi
packages
toolchain
build
programs
if $with_service; then service; fi
say "done, $changes changes"
