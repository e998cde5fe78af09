#!/usr/bin/env bash
# setup/bootstrap.sh against stand-ins for apt-get, curl, rustup, cargo, sudo and systemctl, which write down how they were
# called: what it does, in which order, what it does not do again, and what it refuses.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=setup/tests/lib.sh
. setup/tests/lib.sh

least=$(sed -nE 's/^rust-version = "(.*)"$/\1/p' Cargo.toml)
scratch=$(mktemp -d)
trap 'chmod -R u+w "$scratch"; rm -rf "$scratch"' EXIT

stand_in() {
  cat >"$1"
  chmod 755 "$1"
}

# A bare machine: nothing is on PATH but what every system has, and the stand-ins.
bare_machine() {
  machine=$(mktemp -d "$scratch/machine.XXXX")
  calls=$machine/calls
  mkdir -p "$machine"/{bin,home,root/etc/ssl/certs,root/etc/default,root/etc/systemd/system,root/run/systemd/system,usr}
  local tool
  for tool in bash sh cat cmp cut date dirname env find flock getent head id install mkdir mktemp printf sed sort tee touch \
    chmod cp rm ls; do
    ln -s "$(command -v "$tool")" "$machine/bin/$tool"
  done
  # What a package brings appears when it is installed.
  stand_in "$machine/bin/apt-get" <<'STAND_IN'
#!/bin/bash
words=()
while [ $# -gt 0 ]; do
  case $1 in
    -o) shift ;;
    -*) ;;
    *) words+=("$1") ;;
  esac
  shift
done
set -- "${words[@]}"
echo "apt-get $*" >>"$CALLS"
[ ! -e "$MACHINE/mirror-is-busy" ] || { rm "$MACHINE/mirror-is-busy"; echo 'mirror is busy' >&2; exit 100; }
for package in "$@"; do
  case $package in
    build-essential) tools=cc ;;
    iproute2) tools='ip tc' ;;
    iputils-ping) tools=ping ;;
    openssh-client) tools=ssh ;;
    procps) tools=sysctl ;;
    curl) tools= && cp "$MACHINE/curl" "$MACHINE/bin/curl" ;;
    ca-certificates) tools= && touch "$MACHINE/root/etc/ssl/certs/ca-certificates.crt" ;;
    ethtool | git | iptables) tools=$package ;;
    *) tools= ;;
  esac
  for tool in $tools; do printf '#!/bin/sh\n' >"$MACHINE/bin/$tool"; chmod 755 "$MACHINE/bin/$tool"; done
done
STAND_IN
  stand_in "$machine/curl" <<'STAND_IN'
#!/bin/bash
echo "curl ${!#}" >>"$CALLS"
while [ "$1" != -o ]; do shift; done
echo 'echo "rustup-init $*" >>"$CALLS"; mkdir -p "$HOME/.cargo/bin"; cp "$MACHINE/cargo" "$MACHINE/rustup" "$HOME/.cargo/bin"; echo 1.95.0 >"$MACHINE/cargo-version"' >"$2"
STAND_IN
  stand_in "$machine/rustup" <<'STAND_IN'
#!/bin/bash
echo "rustup $*" >>"$CALLS"
echo "1.95.0" >"$MACHINE/cargo-version"
STAND_IN
  stand_in "$machine/cargo" <<'STAND_IN'
#!/bin/bash
[ "$1" != --version ] || { echo "cargo $(cat "$MACHINE/cargo-version") (0123abcd 2026-01-01)"; exit; }
echo "cargo $* (${RUSTUP_TOOLCHAIN:-default})" >>"$CALLS"
[ ! -e "$MACHINE/build-fails" ] || { echo 'error: could not compile'; exit 101; }
[ "$1" = build ] || exit 0
mkdir -p "$CARGO_TARGET_DIR/release"
for program in linerate-server linerate linerate-bench; do echo "$program of $(cat "$MACHINE/source")" >"$CARGO_TARGET_DIR/release/$program"; done
STAND_IN
  stand_in "$machine/bin/sudo" <<'STAND_IN'
#!/bin/bash
[ "$1" != -n ] || shift
echo "sudo $1" >>"$CALLS"
[ ! -e "$MACHINE/no-sudo-for-you" ] || { echo 'a password is required' >&2; exit 1; }
locked=$(find "$MACHINE/usr" -type d ! -perm -200)
[ -z "$locked" ] || chmod u+w $locked
"$@"
status=$?
[ -z "$locked" ] || chmod u-w $locked
exit $status
STAND_IN
  stand_in "$machine/bin/systemctl" <<'STAND_IN'
#!/bin/bash
echo "systemctl $*" >>"$CALLS"
STAND_IN
  stand_in "$machine/bin/sleep" <<'STAND_IN'
#!/bin/bash
echo "sleep $1" >>"$CALLS"
STAND_IN
  echo 'the first commit' >"$machine/source"
  : >"$calls"
  # As root, the tests are somebody else, so that being refused can be seen.
  [ "$(id -u)" != 0 ] || chown -R 65534:65534 "$machine"
}

# Runs it as somebody without root; its end is in `status`, its words in `out` and `err`.
bootstrap() {
  local somebody=()
  [ "$(id -u)" != 0 ] || somebody=("$(command -v setpriv)" --reuid=65534 --regid=65534 --clear-groups)
  : >"$calls"
  status=0
  timeout -s KILL 60 "${somebody[@]}" env -i "PATH=$machine/bin" "HOME=$machine/home" "MACHINE=$machine" "CALLS=$calls" \
    "BOOTSTRAP_ROOT=$machine/root" "${environment[@]}" "$(command -v bash)" "$script" --prefix "$machine/usr" "$@" \
    </dev/null >"$machine/out" 2>"$machine/err" || status=$?
  out=$(cat "$machine/out")
  err=$(cat "$machine/err")
}
environment=()
# A working copy that anybody can read.
chmod 755 "$scratch"
mkdir -p "$scratch/repository"
cp -r Cargo.toml setup "$scratch/repository/"
script=$scratch/repository/setup/bootstrap.sh

called() {
  local expected
  expected=$(cat)
  [ "$(cat "$calls")" = "$expected" ] || wrong "expected the calls
$expected
but there were
$(cat "$calls")
and it said
$out$err"
}
succeeded() { [ "$status" = 0 ] || wrong "it ended with status $status and said $out$err"; }
# One sentence on standard error that has these words.
refused() {
  local words
  [ "$status" = "$1" ] || wrong "status $status instead of $1: $out$err"
  shift
  [ "$(wc -l <"$machine/err")" = 1 ] || wrong "not one sentence: $err"
  for words in "$@"; do [[ $err == *"$words"* ]] || wrong "nothing of \`$words\` in: $err"; done
}
says() { [[ $out == *"$1"* ]] || wrong "nothing of \`$1\` in: $out"; }
state() { echo "$machine/home/.local/state/linerate-setup"; }

# Everything is missing: everything is done, in order. What is someone else's folder is written to with sudo.
bare_machine
mkdir "$machine/usr/bin"
chmod 555 "$machine/usr" "$machine/usr/bin"
[ "$(id -u)" != 0 ] || chown -R 65534:65534 "$machine/usr"
bootstrap --service
succeeded
called <<'CALLS'
sudo apt-get
apt-get update
sudo env
apt-get install build-essential ca-certificates curl ethtool git iproute2 iptables iputils-ping openssh-client procps
curl https://sh.rustup.rs
rustup-init -y --profile minimal --default-toolchain stable --no-modify-path
cargo fetch --locked (stable)
cargo build --release --locked --bin=linerate-server --bin=linerate --bin=linerate-bench (stable)
sudo install
sudo install
sudo install
sudo systemctl
systemctl daemon-reload
CALLS
for program in linerate-server linerate linerate-bench; do
  [ "$(cat "$machine/usr/bin/$program")" = "$program of the first commit" ] || wrong "$program is not installed"
  [ -x "$machine/usr/bin/$program" ] || wrong "$program cannot be run"
done
unit=$machine/root/etc/systemd/system/linerate-server.service
grep -q "^ExecStart=$machine/usr/bin/linerate-server " "$unit" || wrong "the service runs something else: $(cat "$unit")"
cmp setup/linerate.default "$machine/root/etc/default/linerate"
says 'done, 7 changes'
for step in 1 2 3 4; do says "[$step/4]"; done
diff <(grep '^bootstrap.sh:' <<<"$out") <(grep '^bootstrap.sh:' "$(state)/bootstrap.log") || wrong 'the log is not what it said'

# Again: nothing is fetched, installed or told to anybody; options that were changed stay.
echo 'LINERATE_OPTIONS="--cores 0-3"' >"$machine/root/etc/default/linerate"
bootstrap --service
succeeded
called <<'CALLS'
cargo fetch --locked (default)
cargo build --release --locked --bin=linerate-server --bin=linerate --bin=linerate-bench (default)
CALLS
says "$machine/usr/bin/linerate is up to date"
says 'done, 0 changes'
grep -q -- '--cores 0-3' "$machine/root/etc/default/linerate" || wrong 'options were overwritten'

# Another commit: the programs are replaced, and nothing else.
echo 'the second commit' >"$machine/source"
chmod 755 "$machine/usr" "$machine/usr/bin"
bootstrap
succeeded
[ "$(cat "$machine/usr/bin/linerate")" = 'linerate of the second commit' ] || wrong 'it is not installed anew'
if grep -q 'apt-get\|rustup\|systemctl\|sudo' "$calls"; then wrong "too much was done: $(cat "$calls")"; fi

# Toolchains: one that is exactly new enough is taken, an older one is not, and rustup is asked for if it is there.
for version in "$least.0" 1.200.0 2.0.0; do
  echo "$version" >"$machine/cargo-version"
  bootstrap
  succeeded
  if grep -q rustup "$calls"; then wrong "cargo $version is not new enough?"; fi
done
echo "1.$((${least#1.} - 1)).9" >"$machine/cargo-version"
bootstrap
succeeded
[ "$(head -n 1 "$calls")" = 'rustup toolchain install stable --profile minimal --no-self-update' ] || wrong "$(cat "$calls")"
grep -q 'cargo build .*(stable)' "$calls" || wrong 'what was installed is not used'
stand_in "$machine/home/.cargo/bin/rustup" <<<'#!/bin/sh'
echo 1.9.0 >"$machine/cargo-version"
bootstrap
refused 1 "$machine/home/.cargo/bin/cargo is not of at least $least" 'run it again'

# Without anything done: a bare machine is as it was.
bare_machine
before=$(cd "$machine" && ls -lR bin home root usr)
bootstrap --dry-run --service
succeeded
called </dev/null
says 'would run: '
says "would run: curl --proto =https --tlsv1.2 -fsSL -o $(state)/rustup-init.sh https://sh.rustup.rs"
says "would run: install -D -m 755 $(state)/target/release/linerate-bench $machine/usr/bin/linerate-bench"
[ "$(cd "$machine" && ls -lR bin home root usr)" = "$before" ] || wrong 'a dry run changed something'

# A mirror that is busy is asked again; one that stays so is named, with the log.
touch "$machine/mirror-is-busy"
bootstrap
succeeded
[ "$(grep -c 'apt-get update' "$calls")" = 2 ] || wrong "$(cat "$calls")"
grep -q 'sleep 10' "$calls" || wrong 'it does not wait before it tries again'

# What fails is named, with where to read why; nothing is installed.
bare_machine
touch "$machine/build-fails"
bootstrap
[ "$status" = 1 ] || wrong "status $status"
[[ $(tail -n 1 "$machine/err") == *"\`cargo fetch --locked\` ended with status 101: "*"$(state)/bootstrap.log" ]] || wrong "$err"
grep -q 'could not compile' "$(state)/bootstrap.log" || wrong 'the log does not say why'
[ ! -e "$machine/usr/bin/linerate" ] || wrong 'something was installed'
bare_machine
touch "$machine/no-sudo-for-you"
bootstrap
[ "$status" = 1 ] || wrong "status $status"
grep -q 'a password is required' "$(state)/bootstrap.log" || wrong 'the log does not say why'
bare_machine
rm "$machine/bin/sudo"
bootstrap
[[ $status == 1 && $(tail -n 1 "$machine/err") == *'needs root and there is no sudo'* ]] || wrong "$err"
bare_machine
rm "$machine/bin/apt-get"
bootstrap
refused 1 'this system has no apt-get' 'build-essential' 'by its own means'

# What is not understood is refused before anything is done.
bare_machine
for wrong_option in --force bootstrap ''; do
  bootstrap "$wrong_option"
  refused 2 "\`$wrong_option\` is no option" --help
done
bootstrap --state
refused 2 '--state lacks its DIR'
bootstrap --state relative
refused 2 '--state relative is relative' 'starts with /'
bootstrap --prefix '/a b'
refused 2 'give a plain path'
bootstrap --state /proc/nowhere
refused 2 '/proc/nowhere cannot be written to' 'another --state'
called </dev/null
bootstrap --help
succeeded
says 'Usage: setup/bootstrap.sh'
script=$machine/setup/bootstrap.sh
mkdir "$machine/setup"
cp setup/bootstrap.sh "$script"
bootstrap
refused 2 "$machine is no working copy of linerate"
script=$scratch/repository/setup/bootstrap.sh

# While one is at work, another waits for it, and then finds everything done.
mkdir -p "$(state)"
exec 8>"$(state)/bootstrap.lock"
flock 8
[ "$(id -u)" != 0 ] || chown -R 65534:65534 "$machine"
bootstrap 8>&- &
for _ in $(seq 600); do
  if grep -q 'waiting for it' "$machine/out" 2>/dev/null; then break; fi
  sleep 0.1
done
grep -q 'another one is at work, see .*bootstrap.log: waiting for it' "$machine/out" || wrong 'it does not wait'
[ ! -s "$calls" ] || wrong 'it does something while another is at work'
exec 8>&-
wait %%
[ -x "$machine/usr/bin/linerate" ] || wrong 'it does not go on'
echo "$0: well"
