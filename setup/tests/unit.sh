#!/usr/bin/env bash
# linerate-server.service and its drop-ins: that systemd understands them, how little they leave the server, and that it can
# work with that: they run under a systemd of their own, in namespaces, where a system call that is not allowed ends the
# server instead of failing.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=setup/tests/lib.sh
. setup/tests/lib.sh

# What `systemd-analyze security` may say at most, in tenths: of sockets, and of rings with their capabilities.
EXPOSURE_MAX=16
EXPOSURE_MAX_RINGS=27

command -v systemd-analyze >/dev/null || skip 'systemd-analyze is not installed'
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# systemd understands it, with each drop-in, without a word; and what is left out of it shows.
for drop_ins in '' cores rings 'cores rings'; do
  folder=$scratch/${drop_ins// /-}-unit
  mkdir -p "$folder/linerate-server.service.d"
  # The program need not be installed for that.
  sed 's|/usr/local/bin/linerate-server|/bin/true|' setup/linerate-server.service >"$folder/linerate-server.service"
  for drop_in in $drop_ins; do cp "setup/drop-ins/$drop_in.conf" "$folder/linerate-server.service.d/"; done
  said=$(SYSTEMD_LOG_LEVEL=warning systemd-analyze verify "$folder/linerate-server.service" 2>&1) ||
    wrong "with drop-ins '$drop_ins', systemd does not take it: $said"
  [ -z "$said" ] || wrong "with drop-ins '$drop_ins', systemd says: $said"
  most=$EXPOSURE_MAX
  [[ $drop_ins != *rings* ]] || most=$EXPOSURE_MAX_RINGS
  cat "$folder"/linerate-server.service.d/*.conf >>"$folder/linerate-server.service" 2>/dev/null || true
  said=$(systemd-analyze security --no-pager --offline=yes --threshold="$most" "$folder/linerate-server.service" 2>&1) ||
    wrong "with drop-ins '$drop_ins', the server is more exposed than $most tenths: $(tail -n 1 <<<"$said")"
  echo "drop-ins '$drop_ins': $(tail -n 1 <<<"$said")"
done
echo 'NoSuchThing=yes' >>"$scratch/-unit/linerate-server.service"
said=$(systemd-analyze verify "$scratch/-unit/linerate-server.service" 2>&1 || true)
[[ $said == *NoSuchThing* ]] || wrong "systemd does not say what it does not know: $said"

# And the server works in it.
systemd=/lib/systemd/systemd
# Where namespaces cannot be made, nothing that needs them is demanded.
without_namespaces() {
  [ "${LINERATE_RINGS:-}" != required ] || skip "$1"
  echo "not run: the rest of $0 ($1)"
  exit 0
}
[ "$(id -u)" = 0 ] || without_namespaces 'only root can run a systemd of its own'
unshare --mount --pid --net --uts --ipc --cgroup --fork true 2>/dev/null ||
  without_namespaces 'namespaces cannot be made here'
grep -qw cgroup2 /proc/filesystems || without_namespaces 'the kernel has no cgroup2'
[ -x "$systemd" ] || skip "$systemd is not there"
for tool in nsenter ip; do command -v "$tool" >/dev/null || skip "$tool is not installed"; done

cargo build --quiet --locked -p linerate-server -p linerate-client
mkdir -p "$scratch"/{bin,units/linerate-server.service.d,etc,cgroup}
chmod 755 "$scratch"/{bin,units,etc}
cp "${CARGO_TARGET_DIR:-target}"/debug/{linerate,linerate-server} "$scratch/bin/"
cp setup/linerate-server.service "$scratch/units/"
echo '[Unit]' >"$scratch/units/test.target"
# Nothing of the machine's own is started; what the server may not call kills it; and its words can be read.
cat >"$scratch/units/linerate-server.service.d/test.conf" <<'DROP_IN'
[Unit]
DefaultDependencies=no
StartLimitIntervalSec=0
[Service]
SystemCallErrorNumber=kill
TimeoutStartSec=20s
StandardOutput=append:/run/said
StandardError=append:/run/said
DROP_IN

# A group of its own in the machine's tree of control groups, to be removed with all that systemd makes in it.
group=linerate-setup-$$
first=
end() {
  # With the first process of a namespace all others end, and then those that wait for it.
  [ -z "$first" ] || kill -KILL "$first" 2>/dev/null || true
  [ -z "${unshared:-}" ] || { kill "$unshared" && wait "$unshared"; } 2>/dev/null || true
  # shellcheck disable=SC2016
  unshare --mount sh -c '
    mount -t cgroup2 cgroup2 "$1/cgroup"
    for try in $(seq 100); do
      find "$1/cgroup/$2" -depth -type d -exec rmdir {} + 2>/dev/null
      [ -d "$1/cgroup/$2" ] || exit 0
      sleep 0.1
    done
    echo "the control group $2 is left behind" >&2
  ' sh "$scratch" "$group"
  rm -rf "$scratch"
}
trap end EXIT
cat >"$scratch/boot" <<'BOOT'
#!/bin/sh
set -e
cd "$1"
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t tmpfs tmpfs /run
mkdir /run/lock
mount --bind bin /usr/local/bin
mount --bind etc /etc/default
mount --bind /dev/null /dev/console
# So that a server at one end of a cable has a client at the other.
ip link set lo up
ip netns add there
ip link add here type veth peer name eth0 netns there
ip addr add 10.9.0.1/24 dev here
ip link set here up
ip -n there addr add 10.9.0.2/24 dev eth0
ip -n there link set eth0 up
export container=other SYSTEMD_UNIT_PATH="$1/units" SYSTEMD_GENERATOR_PATH=/run/none
exec /lib/systemd/systemd --system --unit=test.target --log-target=null --show-status=no
BOOT
# shellcheck disable=SC2016
unshare --mount --propagation private timeout -s KILL 300 sh -c '
  mount -t cgroup2 cgroup2 "$1/cgroup" && mkdir "$1/cgroup/$2" && echo $$ >"$1/cgroup/$2/cgroup.procs" &&
  exec unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child sh "$1/boot" "$1"
' sh "$scratch" "$group" >"$scratch/boot.log" 2>&1 &
unshared=$!

# Asks until the answer is right, for half a minute at most.
comes_true() {
  for _ in $(seq 300); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  return 1
}
until_true() {
  local what=$1
  shift
  comes_true "$@" ||
    wrong "$what: $(cat "$scratch/boot.log"; inside systemctl --no-pager status linerate-server; inside cat /run/said)"
}
# The first process of the namespace: the only one whose number there is 1.
find_first() {
  local status
  for status in /proc/[0-9]*/status; do
    if grep -qs "^NSpid:.*[^0-9]1$" "$status" &&
      [ "$(cat "${status%status}comm" 2>/dev/null)" = systemd ] && grep -qs "$group" "${status%status}cgroup"; then
      first=$(basename "${status%/status}")
      return
    fi
  done
  return 1
}
inside() { [ -n "$first" ] && timeout -s KILL 60 nsenter --mount --pid --net --ipc --uts --target "$first" "$@" </dev/null; }
# A client at the other end of the cable.
there() { inside nsenter --net=/run/netns/there linerate "$@"; }
if ! comes_true find_first || ! comes_true inside systemctl show linerate-server; then
  # Up to here nothing of linerate's has run: it is the machine that does not let a second systemd start.
  echo "not run: the rest of $0 (a systemd of its own does not start here: $(tail -n 1 "$scratch/boot.log"))"
  exit 0
fi

property() { inside systemctl show linerate-server --property "$1" --value; }
is() { [ "$(property "$1")" = "$2" ] || { echo "$1 is $(property "$1") instead of $2"; return 1; }; }
# Starts it with these options and drop-ins: that takes until it says that it serves.
start() {
  local options=$1 drop_in
  shift
  find "$scratch/units/linerate-server.service.d" -name '*.conf' ! -name test.conf -delete
  for drop_in in "$@"; do cp "$drop_in" "$scratch/units/linerate-server.service.d/"; done
  echo "LINERATE_OPTIONS=\"$options\"" >"$scratch/etc/linerate"
  inside systemctl daemon-reload
  inside sh -c ': >/run/said'
  inside systemctl start linerate-server || wrong "it does not start with $options: $(inside cat /run/said)"
}
stop() {
  inside systemctl stop linerate-server
  is Result success || wrong "it does not stop well: $(inside cat /run/said)"
  inside grep -q '^total: ' /run/said || wrong "it says no totals: $(inside cat /run/said)"
}
status_of_main() { inside grep "^$1" "/proc/$(property MainPID)/status"; }

# As it comes: it serves over sockets when systemd says that it has started, and has no rights.
rm -f "$scratch/etc/linerate"
inside systemctl start linerate-server || wrong "it does not start without options: $(inside cat /run/said)"
inside linerate put colour green >/dev/null
stop
start '--memory 64MiB --prefault --cores 0,1 --stats-interval 1'
is StatusText 'serving at 127.0.0.1:4100' || property StatusText | grep -q 'ops/s' || wrong 'its status is not shown'
for transport in udp tcp; do
  inside linerate --transport "$transport" put colour "$transport" >/dev/null
  [ "$(inside linerate --transport "$transport" get colour)" = "$transport" ] || wrong "no $transport"
done
[[ $(status_of_main CapEff) == *0000000000000000 ]] || wrong "it has capabilities: $(status_of_main CapEff)"
[[ $(status_of_main Seccomp:) == *2 ]] || wrong 'its system calls are not filtered'
[[ $(status_of_main Uid) != *[[:space:]]0[[:space:]]* ]] || wrong 'it is root'
stop

# A server that hangs is ended and started again; one that does not is left alone.
cat >"$scratch/patience.conf" <<'DROP_IN'
[Service]
WatchdogSec=2s
TimeoutAbortSec=1s
DROP_IN
start '--memory 32MiB' "$scratch/patience.conf"
before=$(property NRestarts)
inside kill -STOP "$(property MainPID)"
until_true 'a server that hangs is not started again' is NRestarts "$((before + 1))"
until_true 'it does not serve again' is SubState running
stop

# Rings, with their drop-in and nothing else, pinned to what cores.conf leaves.
for transport in packet xdp; do
  start "--memory 64MiB --transport $transport --listen 10.9.0.1 --insecure-no-auth" setup/drop-ins/{cores,rings}.conf
  there --servers 10.9.0.1:4100 put colour "$transport" >/dev/null
  [ "$(there --servers 10.9.0.1:4100 get colour)" = "$transport" ] || wrong "no answer from $transport"
  inside grep -q "serving at .*AF_${transport^^}" /run/said || wrong "no rings: $(inside cat /run/said)"
  [[ $(status_of_main CapEff) == *0000000000000000 ]] || wrong "$transport keeps capabilities: $(status_of_main CapEff)"
  stop
done

# Without the drop-in there are none, and the sentence says why; options that are refused are no service that runs.
for options in '--transport xdp --listen 10.9.0.1 --insecure-no-auth' '--listen 0.0.0.0' '--cores x'; do
  if (start "--memory 64MiB $options") >/dev/null 2>&1; then wrong "it starts with $options"; fi
  inside systemctl stop linerate-server
done
echo "$0: well"
