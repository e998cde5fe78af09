#!/usr/bin/env bash
# The playbooks and inventories, by ansible-core on this machine: three nodes that share it, with stand-ins for what would
# change it. Checked, run, run again, changed and undone: what is called, what is written, and that what is done stays done.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=setup/tests/lib.sh
. setup/tests/lib.sh

python_environment
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir -p "$scratch"/{bin,home,usr,repository,root/etc/systemd/system,root/etc/ssl/certs,root/run/systemd/system,b/etc}
touch "$scratch/root/etc/ssl/certs/ca-certificates.crt"
cp -r Cargo.toml setup "$scratch/repository/"
stand_in() {
  cat >"$1"
  chmod 755 "$1"
}
stand_in "$scratch/bin/cargo" <<'STAND_IN'
#!/bin/bash
[ "$1" != --version ] || { echo 'cargo 1.999.0 (0123abcd 2026-01-01)'; exit; }
echo "cargo $1" >>"$CALLS"
mkdir -p "$CARGO_TARGET_DIR/release"
for program in linerate-server linerate linerate-bench; do cp "$SCRATCH/source" "$CARGO_TARGET_DIR/release/$program"; done
STAND_IN
stand_in "$scratch/bin/systemctl" <<'STAND_IN'
#!/bin/bash
# The words of systemctl(1) that Ansible uses.
set -- "$@" ''
case $1 in
  show)
    [ -e "$SCRATCH/root/etc/systemd/system/linerate-server.service" ] && echo LoadState=loaded || echo LoadState=not-found
    [ -e "$SCRATCH/active" ] && echo ActiveState=active || echo ActiveState=inactive
    ;;
  is-enabled) [ -e "$SCRATCH/enabled" ] && echo enabled || { echo disabled; exit 1; } ;;
  is-active) [ -e "$SCRATCH/active" ] ;;
  start | restart) touch "$SCRATCH/active" ;;
  stop) rm "$SCRATCH/active" ;;
  enable) touch "$SCRATCH/enabled" ;;
  disable) rm "$SCRATCH/enabled" ;;
esac
case $1 in show | is-* | list-*) ;; *) echo "systemctl $1 $2" >>"$CALLS" ;; esac
STAND_IN
for tool in apt-get curl rustup sudo cc git ip tc ethtool ping sysctl iptables ssh; do
  stand_in "$scratch/bin/$tool" <<<"#!/bin/sh
echo $tool \"\$*\" >>\"\$CALLS\""
done
stand_in "$scratch/repository/setup/tune-nic.sh" <<'STAND_IN'
#!/bin/bash
echo "tune-nic.sh $*" >>"$CALLS"
case $* in
  status*) [ -e "$SCRATCH/tuned" ] && echo 'OK rings 8192' || { echo 'DIFF rings 1024, wanted 8192'; exit 1; } ;;
  'undo' | 'undo --dry-run') [ -e "$SCRATCH/tuned" ] || echo 'nothing to undo' ;;&
  'undo') rm -f "$SCRATCH/tuned" ;;
  'apply --profile throughput --udp-base 4100') touch "$SCRATCH/tuned" ;;
esac
STAND_IN
calls=$scratch/calls
echo 'the first commit' >"$scratch/source"
cat >"$scratch/inventory.yml" <<INVENTORY
all:
  vars:
    ansible_connection: local
    ansible_python_interpreter: $venv/bin/python
    ansible_become: false
    linerate_repository: $scratch/repository
    linerate_prefix: $scratch/usr
  children:
    servers:
      hosts:
        a: {linerate_addr: 10.10.1.1, linerate_etc: $scratch/root/etc}
        b: {linerate_addr: 10.10.1.2, linerate_etc: $scratch/b/etc, linerate_cores: 1, linerate_cpus: 0, linerate_memory: 64MiB}
    clients:
      hosts:
        c: {linerate_addr: 10.10.1.3}
INVENTORY

# Runs a playbook; what it said is in `out`, what was called in `calls`.
play() {
  : >"$calls"
  status=0
  # One after the other, because the three nodes are one.
  out=$(env HOME="$scratch/home" PATH="$scratch/bin:$venv/bin:$PATH" SCRATCH="$scratch" CALLS="$calls" \
    BOOTSTRAP_ROOT="$scratch/root" XDG_STATE_HOME="$scratch/home" CARGO_TARGET_DIR="$scratch/target" \
    ANSIBLE_FORKS=1 ANSIBLE_HOME="$scratch/home" ANSIBLE_NOCOLOR=1 ANSIBLE_PIPELINING=1 ANSIBLE_DEPRECATION_WARNINGS=0 \
    timeout -s KILL 120 ansible-playbook "$@" </dev/null 2>&1) || status=$?
}
site() { play -i "$scratch/inventory.yml" setup/ansible/site.yml "$@"; }
undo() { play -i "$scratch/inventory.yml" setup/ansible/undo.yml; }
succeeded() { [ "$status" = 0 ] || wrong "it ended with status $status: $out"; }
# How many tasks of each node changed something, such as `a=9 b=4 c=0`.
changed() {
  local counts
  counts=$(sed -nE 's/^([abc]) .* changed=([0-9]+) .*/\1=\2/p' <<<"$out" | tr '\n' ' ')
  [ "${counts% }" = "$1" ] || wrong "changes are ${counts% } instead of $1: $out"
}
called() {
  local expected
  expected=$(cat)
  [ "$(cat "$calls")" = "$expected" ] || wrong "expected the calls
$expected
but there were
$(cat "$calls")
and it said
$out"
}
everything() { (cd "$scratch" && find root b usr active enabled tuned -type f -exec cksum {} + 2>/dev/null | sort) || true; }

for playbook in setup/ansible/*.yml; do
  case $playbook in *inventory*) continue ;; esac
  play -i setup/ansible/inventory.example.yml --syntax-check "$playbook"
  succeeded
done

# With --check: everything is looked at, and nothing is other than it was.
before=$(everything)
site --check -e linerate_start=true
succeeded
called <<'CALLS'
tune-nic.sh status --profile throughput --udp-base 4100
tune-nic.sh status --profile throughput --udp-base 4100
tune-nic.sh status --profile throughput --udp-base 4100
tune-nic.sh apply --profile throughput --udp-base 4100 --dry-run
tune-nic.sh apply --profile throughput --udp-base 4100 --dry-run
tune-nic.sh apply --profile throughput --udp-base 4100 --dry-run
CALLS
[ "$(everything)" = "$before" ] || wrong "a check changed something: $out"

# A run: programs and NIC everywhere, the rest on servers, and nothing is started that nobody asked for.
site
succeeded
grep -v '^cargo fetch\|^git' "$calls" >"$calls.most" && mv "$calls.most" "$calls"
called <<'CALLS'
cargo build
systemctl daemon-reload 
cargo build
cargo build
tune-nic.sh status --profile throughput --udp-base 4100
tune-nic.sh status --profile throughput --udp-base 4100
tune-nic.sh status --profile throughput --udp-base 4100
tune-nic.sh apply --profile throughput --udp-base 4100
tune-nic.sh apply --profile throughput --udp-base 4100
tune-nic.sh apply --profile throughput --udp-base 4100
CALLS
[ "$(cat "$scratch/usr/bin/linerate-server")" = 'the first commit' ] || wrong 'the programs are not installed'
for etc in root/etc b/etc; do
  cmp "$scratch/root/etc/linerate/cluster.toml" "$scratch/$etc/linerate/cluster.toml"
done
"$venv/bin/python" - "$scratch/root/etc/linerate/cluster.toml" <<'PYTHON'
import sys, tomllib

with open(sys.argv[1], "rb") as file:
    cluster = tomllib.load(file)
expected = {
    "epoch": 1,
    "placement": "rendezvous",
    "node": [{"id": 1, "addr": "10.10.1.1:4100", "cores": 8}, {"id": 2, "addr": "10.10.1.2:4100", "cores": 1}],
}
assert cluster == expected, cluster
PYTHON
grep -q -- '--node-id 2 --cluster .*/b/etc/linerate/cluster.toml .*--cores 0 --transport udp,tcp' \
  "$scratch/b/etc/default/linerate" || wrong "$(cat "$scratch/b/etc/default/linerate")"
grep -qx 'CPUAffinity=0' "$scratch/b/etc/systemd/system/linerate-server.service.d/cores.conf"
[ ! -e "$scratch/root/etc/systemd/system/linerate-server.service.d/rings.conf" ] || wrong 'rings nobody asked for'
# The server itself understands its options and the map, of which only the addresses are this machine's.
cargo build --quiet --locked -p linerate-server
sed 's/10\.10\.1\./127.77.1./' -i.kept "$scratch/b/etc/linerate/cluster.toml"
LINERATE_OPTIONS=
# shellcheck disable=SC1091
. "$scratch/b/etc/default/linerate"
# shellcheck disable=SC2086
timeout -s KILL 60 "${CARGO_TARGET_DIR:-target}/debug/linerate-server" $LINERATE_OPTIONS >"$scratch/served" 2>&1 &
for _ in $(seq 300); do
  if grep -q 'node 2 of 2' "$scratch/served" || ! kill -0 %% 2>/dev/null; then break; fi
  sleep 0.1
done
kill %% 2>/dev/null || true
wait %% || true
for words in 'serving at 127.77.1.2:4100, ' 'node 2 of 2, epoch 1 '; do
  grep -q "$words" "$scratch/served" || wrong "a server does not take $LINERATE_OPTIONS: $(cat "$scratch/served")"
done
mv "$scratch/b/etc/linerate/cluster.toml.kept" "$scratch/b/etc/linerate/cluster.toml"

# Started when asked for; then again, when nothing is left to do; and started anew when something of the server's changes.
systemctl_calls() { grep '^systemctl' "$calls" | sort -u | tr '\n' ';'; }
site -e linerate_start=true --limit a
succeeded
[ "$(systemctl_calls)" = 'systemctl daemon-reload ;systemctl enable linerate-server;systemctl start linerate-server;' ] ||
  wrong "$(systemctl_calls)"
before=$(everything)
site -e linerate_start=true
succeeded
changed 'a=0 b=0 c=0'
[ "$(everything)" = "$before" ] || wrong 'a run with nothing to do changed something'
if [[ $(systemctl_calls) == *start* ]]; then wrong "it is started again: $(systemctl_calls)"; fi
site -e linerate_start=true -e linerate_transport=xdp --limit a
succeeded
[[ $(systemctl_calls) == *'restart linerate-server'* ]] || wrong "it goes on with what it had: $(systemctl_calls)"
cmp setup/drop-ins/rings.conf "$scratch/root/etc/systemd/system/linerate-server.service.d/rings.conf"
echo 'the second commit' >"$scratch/source"
site -e linerate_start=true --limit a
succeeded
[[ $(systemctl_calls) == *'restart linerate-server'* ]] || wrong "it goes on with the old program: $(systemctl_calls)"
[ ! -e "$scratch/root/etc/systemd/system/linerate-server.service.d/rings.conf" ] || wrong 'it keeps what rings need'

# Undone: nothing is left, and undone again, nothing is to be done.
undo
succeeded
left=$(cd "$scratch" && find root b usr active enabled tuned -type f 2>/dev/null) || true
[ "$left" = root/etc/ssl/certs/ca-certificates.crt ] || wrong "this is left: $left"
undo
succeeded
changed 'a=0 b=0 c=0'

# What is missing is named.
site -e linerate_repository=/nowhere
[[ $status != 0 && $out == *'/nowhere is no working copy of linerate: set linerate_repository'* ]] || wrong "$out"
sed '/ a: /s/linerate_addr: 10.10.1.1, //' -i "$scratch/inventory.yml"
site
[[ $status != 0 && $out == *'a has no linerate_addr: give the address'* ]] || wrong "$out"

# The testbed's own list.
stand_in "$scratch/bin/tmcc" <<'STAND_IN'
#!/bin/sh
cat "$TMCC_SAYS"
STAND_IN
listed() {
  env PATH="$scratch/bin:$PATH" TMCC_SAYS="$scratch/hostnames" "$@" "$venv/bin/python" setup/ansible/inventory.py --list 2>&1
}
for node in 2 0 1 10; do
  echo "NAME=node$node-lan IP=10.10.1.$((node + 1)) ALIASES='node$node-0 node$node'"
done >"$scratch/hostnames"
"$venv/bin/python" - <<PYTHON
import json

found = json.loads('''$(listed env)''')
assert found["servers"]["hosts"] == ["node0", "node1"], found
assert found["clients"]["hosts"] == ["node2", "node10"], found
assert found["_meta"]["hostvars"]["node10"] == {"linerate_addr": "10.10.1.11"}, found
PYTHON
[[ $(listed env LINERATE_SERVERS=3 | tr -d ' \n') == *'"servers":{"hosts":["node0","node1","node2"]}'* ]] || wrong 'not 3 servers'
for number in 0 5 many; do
  [[ $(listed env LINERATE_SERVERS=$number || true) == "inventory.py: LINERATE_SERVERS is \`$number\`: give 1 to 4"* ]] ||
    wrong "$number servers are not refused"
done
out=$(env PATH="$scratch/bin:$venv/bin:$PATH" TMCC_SAYS="$scratch/hostnames" ansible-inventory -i setup/ansible/inventory.py --list)
[[ $out == *'"linerate_addr": "10.10.1.11"'* ]] || wrong "$out"
echo "NAME=node0 IP=here ALIASES=''" >"$scratch/hostnames"
[[ $(listed env || true) == *'has no IPv4 address'* ]] || wrong 'no address is no error'
: >"$scratch/hostnames"
[[ $(listed env || true) == *'tmcc lists no nodes'* ]] || wrong 'no nodes are no error'
rm "$scratch/bin/tmcc"
[[ $(listed env || true) == *'there is no tmcc here'* ]] || wrong 'no tmcc is no error'
echo "$0: well"
