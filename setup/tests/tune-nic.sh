#!/usr/bin/env bash
# What tune-nic.sh promises, on a machine of files: what apply changes, undo puts back to the byte, whatever happens
# between. Needs no root, no network and no card; with root and network namespaces, a veth and the real tools as well.
set -euo pipefail
cd "$(dirname "$0")"
export LC_ALL=C
unset SSH_CONNECTION TUNE_ROOT KILL_BEFORE KILL_AFTER

# A space and a quote in it: nothing may depend on what a directory is called.
work=$(mktemp -d)
trap 'rm -rf -- "$work"' EXIT
area="$work/it's a test"
mkdir -p "$area"
# Where somebody else finds them too, wherever the sources are.
here=$work tune=$work/tune-nic.sh
cp ../tune-nic.sh stand-in.sh "$work/"
needed=()
for tool in awk bash cat env find flock grep kill mkdir mktemp mv nproc readlink rm rmdir sed setsid sh sleep sort timeout tr true uname wc; do
  needed+=("$(type -P "$tool")")
done
checks=0 failures=0 code=0 output=''

check() { # WHAT EXPECTED FOUND
  checks=$((checks + 1))
  if [[ $2 == "$3" ]]; then return; fi
  failures=$((failures + 1))
  printf 'FAILED: %s\n  expected: %s\n  found:    %s\n' "$1" "$2" "$3"
}

check_has() { # WHAT TEXT PART
  checks=$((checks + 1))
  if [[ $2 == *"$3"* ]]; then return; fi
  failures=$((failures + 1))
  printf 'FAILED: %s\n  expected to have: %s\n  found: %s\n' "$1" "$3" "$2"
}

tune() { # Runs it; what it says is in $output, how it ended in $code
  code=0
  output=$(PATH="$bin" timeout -s KILL 60 "$tune" "$@" 2>&1) || code=$?
}

# --- A machine of files. ---

write() { # PATH LINE: below $TUNE_ROOT
  mkdir -p "$(dirname "$TUNE_ROOT$1")"
  printf '%s\n' "$2" >"$TUNE_ROOT$1"
}

stand_ins() { # TOOL…
  local tool
  for tool in "$@"; do ln -s "$here/stand-in.sh" "$bin/$tool"; done
}

machine() { # NAME mlx4|virtio: four CPUs and eno1d1, in $TUNE_ROOT, $FAKE and $bin
  local cpu state tool i net=/proc/sys/net
  export TUNE_ROOT="$area/$1/root" FAKE="$area/$1/fake"
  bin="$area/$1/bin"
  rm -rf -- "${area:?}/$1"
  mkdir -p "$TUNE_ROOT/run" "$TUNE_ROOT/etc/modprobe.d" "$FAKE/nic" "$bin"
  # PATH has this directory alone: no tool of the real machine can be reached by mistake.
  for tool in "${needed[@]}"; do ln -s "$tool" "$bin/${tool##*/}"; done
  stand_ins ethtool ip systemctl nft update-initramfs
  echo "$2" >"$FAKE/driver"
  printf 'default via 128.110.152.1 dev eno1 proto static\n10.10.1.0/24 dev eno1d1 proto kernel scope link src 10.10.1.1\n' >"$FAKE/routes"
  echo 'fe80::/64 dev eno1 proto kernel metric 256 pref medium' >"$FAKE/routes6"
  write /var/emulab/boot/controlif eno1
  for i in 0 1 2 3; do
    cpu=/sys/devices/system/cpu/cpu$i
    mkdir -p "$TUNE_ROOT$cpu"
    if [[ $2 == virtio ]]; then continue; fi
    write "$cpu/cpufreq/scaling_governor" powersave
    write "$cpu/cpufreq/energy_performance_preference" balance_performance
    for state in '0 0' '1 2' '2 10' '3 40' '4 133'; do
      write "$cpu/cpuidle/state${state% *}/disable" 0
      write "$cpu/cpuidle/state${state% *}/latency" "${state#* }"
    done
  done
  write /sys/kernel/mm/transparent_hugepage/enabled '[always] madvise never'
  write /proc/sys/kernel/numa_balancing 1
  if [[ $2 == mlx4 ]]; then write /proc/sys/kernel/nmi_watchdog 1; fi
  write /proc/sys/vm/nr_hugepages 0
  write $net/core/rmem_max 212992
  write $net/core/wmem_max 134217728
  write $net/core/rmem_default 212992
  write $net/core/netdev_max_backlog 1000
  write $net/core/netdev_budget 300
  write $net/core/netdev_budget_usecs 2000
  write $net/core/busy_poll 0
  write $net/core/busy_read 0
  write $net/core/rps_sock_flow_entries 32768
  write $net/ipv4/udp_mem $'21480\t28642\t42960'
  mkdir -p "$TUNE_ROOT"/sys/class/net/{lo,eno1,eno1d1/queues}
  write /sys/class/net/eno1d1/dev_port 1
  write /sys/class/net/eno1d1/statistics/rx_dropped 9
  write /proc/net/softnet_stat $'0000001f 00000002 0000000a\n000000ff 00000010 00000001'
  write /proc/net/snmp $'Ip: Forwarding DefaultTTL\nIp: 1 64\nUdp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors\nUdp: 100 1 44 90 43 0'
  for i in 0 1; do
    mkdir -p "$TUNE_ROOT/sys/class/net/eno1d1/queues/"{rx,tx}-$i
    write /sys/class/net/eno1d1/queues/rx-$i/rps_cpus 0000000f
    write /sys/class/net/eno1d1/queues/rx-$i/rps_flow_cnt 4096
    write /sys/class/net/eno1d1/queues/tx-$i/xps_cpus f
    echo 2 >"$FAKE/nic/queues.rx"
    echo 2 >"$FAKE/nic/queues.tx"
  done
  echo 1500 >"$FAKE/nic/mtu"
  echo active >"$FAKE/unit.irqbalance"
  echo inactive >"$FAKE/unit.thermald"
  "machine_$2"
}

machine_mlx4() { # Both ports are one PCI function: 9 interrupts, one for events, and four for each port
  local pci=/sys/devices/pci0000:00/0000:03:00.0 i
  mkdir -p "$TUNE_ROOT$pci/msi_irqs" "$TUNE_ROOT$pci/net/eno1" "$TUNE_ROOT$pci/net/eno1d1"
  ln -s ../../../devices/pci0000:00/0000:03:00.0 "$TUNE_ROOT/sys/class/net/eno1d1/device"
  : >"$TUNE_ROOT/proc/interrupts"
  for i in 0 1 2 3 4 5 6 7 8; do
    : >"$TUNE_ROOT$pci/msi_irqs/$((40 + i))"
    write /proc/irq/$((40 + i))/smp_affinity_list 0-3
    printf ' %s:   0   0   0   0  PCI-MSI 157286%s-edge      mlx4-%s\n' $((40 + i)) "$i" \
      "$(if ((i)); then echo "$i@0000:03:00.0"; else echo async@pci:0000:03:00.0; fi)" >>"$TUNE_ROOT/proc/interrupts"
  done
  : >"$FAKE/dmfs"
  local setting
  for setting in pause.rx=on pause.tx=on ring.rx=1024 ring.tx=512 coalesce.adaptive-rx=on coalesce.rx-usecs=16 \
    coalesce.rx-frames=44 coalesce.tx-usecs=16 coalesce.tx-frames=16 feature.gro=off feature.ntuple=off; do
    echo "${setting#*=}" >"$FAKE/nic/${setting%=*}"
  done
}

machine_virtio() {
  mkdir -p "$TUNE_ROOT/sys/devices/virtio1"
  ln -s ../../../devices/virtio1 "$TUNE_ROOT/sys/class/net/eno1d1/device"
  printf ' 30:  5  0  PCI-MSI 1-edge  virtio1-config\n 31:  5  0  PCI-MSI 1-edge  virtio1-input.0\n 32:  5  0  PCI-MSI 1-edge  virtio1-output.0\n 33:  5  0  PCI-MSI 1-edge  virtio1-input.1\n 34:  5  0  PCI-MSI 1-edge  virtio11-input.0\n' >"$TUNE_ROOT/proc/interrupts"
  local i
  for i in 30 31 32 33 34; do write /proc/irq/$i/smp_affinity_list 0-3; done
}

all_bytes() { # Each file's name and checksum, each directory and link, of machine and stand-ins
  (cd -- "$(dirname "$TUNE_ROOT")" && find root fake -type f -exec sha256sum {} + -o -printf '%y %p %l\n' | sort)
}

differences() { diff <(printf '%s\n' "$1") <(printf '%s\n' "$2") || :; }

contents() { cat -- "$TUNE_ROOT$1"; }
setting() { cat -- "$FAKE/nic/$1"; }

# --- The checks. ---

test_apply_status_undo() {
  machine a mlx4
  local before
  before=$(all_bytes)
  tune apply
  check 'apply on an mlx4 with steering: exit code' 0 "$code"
  check_has 'apply reports a change' "$output" 'powersave → performance'
  check_has 'neighbours that say the same share a line' "$output" 'governor/cpu0 to cpu3 (4)'
  check 'governor' performance "$(contents /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor)"
  check 'huge pages' madvise "$(contents /sys/kernel/mm/transparent_hugepage/enabled)"
  check 'what is larger than the least stays' 134217728 "$(contents /proc/sys/net/core/wmem_max)"
  check 'what is less is raised' 67108864 "$(contents /proc/sys/net/core/rmem_max)"
  check 'irqbalance' inactive "$(<"$FAKE/unit.irqbalance")"
  check 'queues' '4 4' "$(setting queues.rx) $(setting queues.tx)"
  check 'rings' '8192 1024' "$(setting ring.rx) $(setting ring.tx)"
  check 'interrupt of queue 2 of the second port' 2 "$(contents /proc/irq/47/smp_affinity_list)"
  check 'interrupts of the first port stay' 0-3 "$(contents /proc/irq/42/smp_affinity_list)"
  check 'interrupt for events stays' 0-3 "$(contents /proc/irq/40/smp_affinity_list)"
  check 'queue 3 sends from CPU 3' 8 "$(contents /sys/class/net/eno1d1/queues/tx-3/xps_cpus)"
  check 'the kernel does not spread once more' 0 "$(contents /sys/class/net/eno1d1/queues/rx-0/rps_cpus)"
  check 'rule of core 3' '10.10.1.1 4103 3' "$(setting rule.3)"
  check 'connections are not tracked' $'table inet linerate_tune {\n\tudp dport 4100-4103 notrack\n}' "$(<"$FAKE/nft.linerate_tune")"
  check 'C-states stay in profile throughput' 0 "$(contents /sys/devices/system/cpu/cpu0/cpuidle/state4/disable)"
  tune status
  check 'status after apply: exit code' 0 "$code"
  check 'status after apply: nothing differs' '' "$(grep -E '^(DIFF|UNSUPPORTED)' <<<"$output" || :)"
  tune undo
  check 'undo: exit code' 0 "$code"
  check 'undo restores every byte' '' "$(differences "$before" "$(all_bytes)")"
  tune undo
  check 'undo without a state: exit code' 0 "$code"
  check_has 'undo without a state says so' "$output" 'nothing to undo'
}

test_order() {
  machine a mlx4
  tune apply --mtu 3000
  check 'order of what the card is told, by option' '-A -A link -L -G -G -C -C -C -K -K -N -N -N -N' \
    "$(awk '$1 == "ethtool" || $1 == "ip" {printf "%s%s", sep, $2; sep = " "}' "$FAKE.log")"
  check 'queues of mlx4 are told apart' 'ethtool -L eno1d1 rx 4 tx 4' "$(grep -e '-L' "$FAKE.log")"
  : >"$FAKE.log"
  tune apply --profile latency --mtu 3000
  check 'rules go before rings change, and come back after' \
    "-N delete,-N delete,-N delete,-N delete,-G rx,-N flow-type,-N flow-type,-N flow-type,-N flow-type" \
    "$(grep -E -e '-[NG] ' "$FAKE.log" | awk '{printf "%s%s %s", sep, $2, $4; sep = ","}')"
  check 'none of them is lost' '' "$(grep -l detached "$FAKE"/nic/rule.* || :)"
}

test_again_and_profiles() {
  machine a mlx4
  local before applied
  before=$(all_bytes)
  tune apply
  applied=$(all_bytes)
  tune apply
  check 'apply twice: exit code' 0 "$code"
  check 'apply twice changes nothing' '' "$(differences "$applied" "$(all_bytes)")"
  tune apply --profile latency --queues 2
  check 'profile latency: rings, moderation, polling' '1024 0 1 50' \
    "$(setting ring.rx) $(setting coalesce.rx-usecs) $(setting coalesce.rx-frames) $(contents /proc/sys/net/core/busy_read)"
  check 'profile latency: deep sleep is off, light sleep on' '1 0' \
    "$(contents /sys/devices/system/cpu/cpu2/cpuidle/state3/disable) $(contents /sys/devices/system/cpu/cpu2/cpuidle/state2/disable)"
  check 'rules of queues that are gone are gone' 'rule.0 rule.1' "$(cd "$FAKE/nic" && echo rule.*)"
  tune status
  check 'status takes what was applied' 0 "$code"
  tune status --profile throughput
  check 'status of another profile differs' 1 "$code"
  tune apply
  check 'back to throughput: deep sleep as it was' 0 "$(contents /sys/devices/system/cpu/cpu2/cpuidle/state3/disable)"
  tune apply --no-ntuple
  check 'without rules: no rule is left' 'rule.*' "$(cd "$FAKE/nic" && echo rule.*)"
  tune undo
  check 'undo after several profiles restores every byte' '' "$(differences "$before" "$(all_bytes)")"
}

test_fewer_queues() {
  machine a mlx4
  local before
  before=$(all_bytes)
  tune apply --queues 1 --mtu 9000 --hugepages 12
  check 'one queue' '1 9000 12' "$(setting queues.rx) $(setting mtu) $(contents /proc/sys/vm/nr_hugepages)"
  check_has 'a large MTU is commented' "$output" 'XDP'
  tune undo
  check 'undo after fewer queues restores every byte, of the queues that were away too' '' "$(differences "$before" "$(all_bytes)")"
}

test_rules_of_others() {
  machine a mlx4
  echo '10.10.1.1 11211 1' >"$FAKE/nic/rule.2"
  local before
  before=$(all_bytes)
  tune apply
  check 'a location that is taken: exit code' 1 "$code"
  check_has 'a location that is taken' "$output" 'location 2 holds a rule of somebody else'
  check 'the rule stays' '10.10.1.1 11211 1' "$(head -n 1 "$FAKE/nic/rule.2")"
}

test_unsupported() {
  machine v virtio
  local before
  before=$(all_bytes)
  tune apply
  check 'apply on a virtio card: exit code' 1 "$code"
  check_has 'interrupts of a queue are found' "$output" 'irq/31'
  check_has 'what is unsupported is listed' "$output" 'not as wanted: governor/cpu0 nmi-watchdog pause/rx pause/tx ring/rx ring/tx coalesce/adaptive-rx'
  check_has "with the tool's words" "$output" 'netlink error: Operation not supported'
  check_has 'or the reason' "$output" '/proc/sys/kernel/nmi_watchdog: no such file'
  check 'the rest goes on: interrupts of both directions' '0 0 1 0-3 0-3' \
    "$(for i in 31 32 33 34 30; do contents /proc/irq/$i/smp_affinity_list; done | tr '\n' ' ' | sed 's/ $//')"
  tune undo
  check 'undo there: exit code' 0 "$code"
  check 'undo there restores every byte' '' "$(differences "$before" "$(all_bytes)")"
  tune apply --queues 4
  check 'more queues than there are: exit code' 2 "$code"
  check_has 'more queues than there are' "$output" 'eno1d1 has no more than 2; take a power of two from 1 to 2'
}

test_missing_tools() {
  local before
  machine a mlx4
  before=$(all_bytes)
  rm "$bin"/{ethtool,nft,systemctl}
  tune apply
  check 'without ethtool, nft and systemctl: exit code' 1 "$code"
  check_has 'a missing tool is named' "$output" 'ethtool is not on PATH'
  tune undo
  check 'undo without them restores every byte' 0 "$code$(differences "$before" "$(all_bytes)")"
  rm "$bin/ip"
  refused 'without ip' 'ip is not on PATH' apply
  machine a mlx4
  before=$(all_bytes)
  rm "$bin/nft"
  stand_ins iptables ip6tables
  tune apply
  check 'iptables does where nft is missing: rules' 8 "$(find "$FAKE" -name 'ip*tables.*' | wc -l)"
  tune undo
  check 'iptables: undo restores every byte' '' "$(differences "$before" "$(all_bytes)")"
}

dies() { # WHEN VERB: in a process group of its own, all of which is killed
  rm -f "$FAKE.count"
  code=0
  (
    env "$1" PATH="$bin" setsid --wait "$tune" "$2" >/dev/null 2>&1
    exit
  ) 2>/dev/null || code=$?
}

test_kills() { # A call that only asks changes nothing, so those that change something are all the places to die at
  local before number last when
  machine a mlx4
  # Sleep states are many, are set like everything else, and take time at each death.
  rm -r "$TUNE_ROOT"/sys/devices/system/cpu/cpu*/cpuidle
  before=$(all_bytes)
  tune apply
  last=$(<"$FAKE.count")
  tune undo
  for when in KILL_BEFORE=1 $(seq -f 'KILL_AFTER=%g' "$last"); do
    dies "$when" apply
    check "$when: apply was killed" 137 "$code"
    tune undo
    check "$when: undo restores every byte" 0 "$code$(differences "$before" "$(all_bytes)")"
  done
  for number in 1 5 9; do
    tune apply
    dies "KILL_AFTER=$number" undo
    check "undo killed after change $number" 137 "$code"
    tune undo
    check "undo again restores every byte" 0 "$code$(differences "$before" "$(all_bytes)")"
  done
}

# Only the script dies; the tool that it has just called goes on, as a driver does that is amid new rings, and undo waits.
test_random_kills() {
  local seed=${TUNE_TEST_SEED:-$RANDOM} before round pid
  echo "times of death: TUNE_TEST_SEED=$seed"
  RANDOM=$seed
  machine a mlx4
  before=$(all_bytes)
  for ((round = 0; round < 6; round++)); do
    PATH="$bin" "$tune" apply >/dev/null 2>&1 &
    pid=$!
    sleep "0.$((RANDOM % 9))$((RANDOM % 10))"
    kill -KILL "$pid" 2>/dev/null || :
    wait "$pid" 2>/dev/null || :
    tune undo
    check "round $round: undo restores every byte" 0 "$code$(differences "$before" "$(all_bytes)")"
  done
}

test_dry_run() {
  local before
  machine a mlx4
  before=$(all_bytes)
  tune apply --dry-run
  check 'apply --dry-run: exit code' 0 "$code"
  check_has 'apply --dry-run says what it would run' "$output" 'would run: ethtool -L eno1d1 rx 4 tx 4'
  check_has 'and write' "$output" 'would write: performance > /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor'
  check 'apply --dry-run changes nothing' '' "$(differences "$before" "$(all_bytes)")"
  tune apply
  before=$(all_bytes)
  tune undo --dry-run
  check_has 'undo --dry-run says what it would run' "$output" 'would run: ethtool -L eno1d1 rx 2 tx 2'
  check 'undo --dry-run changes nothing' '' "$(differences "$before" "$(all_bytes)")"
}

refused() { # WHAT SENTENCE ARG…: exit code 2, the sentence, nothing touched
  local before what=$1 sentence=$2
  shift 2
  before=$(all_bytes)
  tune "$@"
  check "$what: exit code" 2 "$code"
  check_has "$what: sentence" "$output" "$sentence"
  check "$what: lines" 1 "$(wc -l <<<"$output")"
  check "$what: nothing is touched" '' "$(differences "$before" "$(all_bytes)")"
}

# Code that must not be run is in single quotes for just that.
# shellcheck disable=SC2016
test_refusals() {
  machine a mlx4
  refused 'the control interface' 'eno1 carries the control network' apply --iface eno1
  echo eno1d1 >"$TUNE_ROOT/var/emulab/boot/controlif"
  refused 'auto on the control interface' 'eno1d1 carries the control network' apply
  rm "$TUNE_ROOT/var/emulab/boot/controlif"
  refused 'the default route' 'eno1 carries the default route' apply --iface eno1
  echo 'default via fe80::1 dev eno1d1 proto ra metric 1024' >"$FAKE/routes6"
  refused 'the default route of IPv6' 'eno1d1 carries the default route' apply
  : >"$FAKE/routes6"
  printf 'default proto static\n\tnexthop via 10.1.1.1 dev eno1 weight 1\n\tnexthop via 10.2.1.1 dev eno1d1 weight 1\n10.10.1.0/24 dev eno1d1\n' >"$FAKE/routes"
  refused 'one of two default routes' 'eno1d1 carries the default route' apply
  printf 'default via 10.1.1.1 dev br0\n10.10.1.0/24 dev eno1d1\n' >"$FAKE/routes"
  mkdir -p "$TUNE_ROOT/sys/class/net/br0/lower_eno1d1"
  refused 'below a bridge with the default route' 'eno1d1 carries the default route (by br0)' apply
  rm -r "$TUNE_ROOT/sys/class/net/br0"
  printf '10.10.1.0/24 dev eno1d1\n' >"$FAKE/routes"
  SSH_CONNECTION='10.10.1.9 50000 10.10.1.1 22' refused 'the ssh session' 'eno1d1 carries your ssh session (from 10.10.1.9)' apply
  SSH_CONNECTION='fe80::9%eno1d1 50000 fe80::1%eno1d1 22' refused 'the ssh session on a link' 'eno1d1 carries your ssh session' apply
  refused 'the loopback' 'lo is the loopback' apply --iface lo
  refused 'an unknown interface' "there is no interface 'eth7': take one of eno1 eno1d1 lo, or auto" apply --iface eth7
  refused 'a path as interface' 'this is no interface' apply --iface ../eno1d1
  printf '192.168.1.0/24 dev eno1d1\n' >"$FAKE/routes"
  refused 'several candidates' 'several interfaces could be meant (eno1 eno1d1)' apply
  refused 'a wrong verb' "'frobnicate' is unknown" frobnicate
  refused 'no verb' 'say what to do' --dry-run
  refused 'two verbs' "'undo' after 'apply'" apply undo
  refused 'a wrong profile' "--profile 'fast': it is throughput or latency" apply --profile fast
  refused 'queues in words' "--queues 'x': it takes a number from 1 to 128" apply --queues x
  refused 'no power of two' 'powers of two' apply --queues 6
  refused 'too many queues' "--queues '256': it takes a number from 1 to 128" apply --queues=256
  refused 'more queues than the card has' 'eno1d1 has no more than 16; take a power of two from 1 to 16' apply --iface eno1d1 --queues 32
  refused 'port 0' "--udp-base '0': it takes a number from 1 to 65535" apply --udp-base 0
  refused 'ports beyond the last' 'go beyond 65535; take 1 to 65532' apply --iface eno1d1 --udp-base 65533
  refused 'a small MTU' "--mtu '20': it takes a number from 68 to 9600" apply --mtu 20
  refused 'a value left out' '--mtu needs a value' apply --mtu
  refused 'code as a value' "--queues 'a[\$(touch pwned)]'" apply --queues 'a[$(touch pwned)]'
  refused '--json without status' '--json: only status has it' apply --json
  machine v virtio
  refused 'DMFS elsewhere' "eno1d1 has the driver 'virtio_net', and only mlx4_en" apply --enable-dmfs
  mkdir -p "$TUNE_ROOT/run/linerate"
  printf 'linerate tune state 1\nknob\tearly\tx\tfile\t/etc/shadow\nend\n' >"$TUNE_ROOT/run/linerate/tune-state"
  refused 'a state that names other files' 'line 2 is none of ours' undo
  printf 'linerate tune state 1\nknob\tearly\tx\trule\teno1d1\ta[$(touch pwned)]\nend\n' >"$TUNE_ROOT/run/linerate/tune-state"
  refused 'a state with code in it' 'line 2 is none of ours' undo
  printf 'linerate tune state 1\n' >"$TUNE_ROOT/run/linerate/tune-state"
  refused 'a state cut short' 'ends too early' undo
  TUNE_ROOT="$area/nowhere" tune apply
  check_has 'a root that is not there' "$code $output" "2 tune-nic: TUNE_ROOT '$area/nowhere' is no directory"
  check 'no code was run' '' "$(find "$work" -name pwned)"
  if ((EUID)); then
    code=0
    output=$(unset TUNE_ROOT && "$tune" apply --iface lo 2>&1) || code=$?
    check_has 'without root' "$code $output" '2 tune-nic: apply changes the system: run it as root'
  fi
}

test_not_restorable() {
  machine a mlx4
  tune apply
  rm "$TUNE_ROOT/proc/sys/kernel/nmi_watchdog"
  tune undo
  check 'a knob that is gone: exit code' 1 "$code"
  check_has 'a knob that is gone is reported' "$output" '/proc/sys/kernel/nmi_watchdog: no such file'
  check 'and kept, alone' $'knob\tearly\t1\\n\tfile\t/proc/sys/kernel/nmi_watchdog' "$(grep ^knob "$TUNE_ROOT/run/linerate/tune-state")"
  write /proc/sys/kernel/nmi_watchdog 0
  tune undo
  check 'once it is back, undo ends' '0 1' "$code $(contents /proc/sys/kernel/nmi_watchdog)"
}

test_read_only() {
  if ((EUID == 0)) && ! command -v setpriv >/dev/null; then
    echo 'not run: read-only files (root writes them anyway, and there is no setpriv)'
    return
  fi
  machine a mlx4
  local before
  before=$(all_bytes)
  chmod 444 "$TUNE_ROOT/proc/sys/net/core/rmem_max"
  code=0
  if ((EUID)); then tune apply; else
    chmod 755 "$work"
    chown -R 65534 "$area/a"
    output=$(PATH="$bin" "$(type -P setpriv)" --reuid 65534 --clear-groups "$tune" apply 2>&1) || code=$?
  fi
  check 'a file that takes no value: exit code' 1 "$code"
  check_has 'a file that takes no value' "$output" 'not as wanted: sysctl/net.core.rmem_max'
  check_has 'and why' "$output" 'rmem_max: Permission denied'
  chmod 644 "$TUNE_ROOT/proc/sys/net/core/rmem_max"
  if ((!EUID)); then
    # Whoever may write the state can have root write anything.
    refused 'a state of somebody else' 'belongs to somebody else' undo
    chown -R 0 "$area/a"
  fi
  tune undo
  check 'undo restores every byte' '' "$(differences "$before" "$(all_bytes)")"
  if ((EUID)); then
    chmod 555 "$TUNE_ROOT/run"
    refused 'no place for the state' 'without a place for what was before, nothing is changed' apply
    chmod 755 "$TUNE_ROOT/run"
  fi
}

test_full_disk() {
  machine a mlx4
  mkdir -p "$TUNE_ROOT/run/linerate"
  ln -s /dev/full "$TUNE_ROOT/run/linerate/tune-state.new"
  refused 'no room for the state' 'tune-state can not be written: nothing more is changed' apply
}

# For the shells that it writes and starts, not for this one.
# shellcheck disable=SC2016
test_interrupted() {
  local before
  machine a mlx4
  mkdir "$bin/real"
  mv "$bin/systemctl" "$bin/real"
  printf '#!/bin/sh\nif [ "$1" = stop ]; then kill -TERM "$(cat "$FAKE.pid")"; fi\nexec "${0%%/*}/real/systemctl" "$@"\n' >"$bin/systemctl"
  chmod +x "$bin/systemctl"
  before=$(all_bytes)
  code=0
  output=$(PATH="$bin" bash -c 'echo $$ >"$FAKE.pid"; exec "$0" apply' "$tune" 2>&1) || code=$?
  check_has 'a signal while a tool runs' "$code $output" '2 eno1d1'
  check_has 'a signal while a tool runs: what helps' "$output" 'tune-nic: interrupted: tune-nic.sh undo puts back what was'
  check 'a signal while a tool runs: nothing after it' 1 "$(wc -l <"$FAKE.log")"
  tune undo
  check 'undo after an interruption restores every byte' 0 "$code$(differences "$before" "$(all_bytes)")"
}

test_dmfs() {
  machine a mlx4
  rm "$FAKE/dmfs"
  local before
  before=$(all_bytes)
  tune apply
  check 'mlx4 without steering: exit code' 1 "$code"
  check_has 'mlx4 without steering: what helps' "$output" 'apply --enable-dmfs, reboot, apply'
  tune apply --enable-dmfs
  check_has 'DMFS: a reboot is needed' "$output" 'at the next reboot'
  check 'DMFS: the option' 'options mlx4_core log_num_mgm_entry_size=-1' "$(contents /etc/modprobe.d/linerate-mlx4.conf)"
  check 'DMFS: the initramfs is made, no module is touched' 'update-initramfs -u' "$(grep -E 'initramfs|modprobe|rmmod' "$FAKE.log")"
  tune undo
  check 'DMFS: undo restores every byte' '' "$(differences "$before" "$(all_bytes)")"
  echo 'options mlx4_core log_num_mgm_entry_size=-7' >"$TUNE_ROOT/etc/modprobe.d/mine.conf"
  tune apply --enable-dmfs
  check_has "DMFS: somebody's own option stays" "$output" '/etc/modprobe.d/mine.conf sets log_num_mgm_entry_size already'
  check 'DMFS: and ours is not written' 'mine.conf' "$(ls "$TUNE_ROOT/etc/modprobe.d")"
}

test_concurrent() {
  local before i pids=()
  machine a mlx4
  before=$(all_bytes)
  for i in 1 2 3 4; do
    PATH="$bin" timeout -s KILL 60 "$tune" apply >"$work/out.$i" 2>&1 &
    pids+=($!)
  done
  for i in "${!pids[@]}"; do
    code=0
    wait "${pids[i]}" || code=$?
    check "apply $i of four at once: exit code" 0 "$code"
  done
  check 'none is half written' end "$(tail -n 1 "$TUNE_ROOT/run/linerate/tune-state")"
  for i in 1 2 3; do
    PATH="$bin" timeout -s KILL 60 "$tune" undo >"$work/out.$i" 2>&1 &
    PATH="$bin" timeout -s KILL 60 "$tune" apply --profile latency >"$work/out.a$i" 2>&1 &
  done
  wait
  tune undo
  check 'undo after applies and undos at once restores every byte' '' "$(differences "$before" "$(all_bytes)")"
}

json_tool() { # Prints what JavaScript-like path PATH of the JSON on standard input is
  if command -v python3 >/dev/null; then
    python3 -c 'import json, sys
d = json.load(sys.stdin)
print(eval(sys.argv[1], {"d": d}))' "$1"
  else
    return 1
  fi
}

test_json() {
  local json
  machine v virtio
  # Words that need escaping, and a byte that is no UTF-8. What is there is a link to the stand-in.
  rm "$bin/nft"
  printf '#!/bin/sh\nprintf "a \\"quoted\\" back\\\\\\\\slash\\ttab \\351\\n" >&2\nexit 1\n' >"$bin/nft"
  chmod +x "$bin/nft"
  tune status --json
  json=$output
  check 'status --json: one line' 1 "$(wc -l <<<"$json")"
  if ! command -v python3 >/dev/null; then
    echo 'not run: JSON is read back (python3 is missing)'
    return
  fi
  check 'status --json is JSON' 0 "$(python3 -m json.tool <<<"$json" >/dev/null && echo 0)"
  check 'status --json: fields' "['applied', 'driver', 'drops', 'host', 'interface', 'knobs', 'profile']" "$(json_tool 'sorted(d)' <<<"$json")"
  check 'status --json: a knob' "{'name': 'huge-pages', 'current': 'always', 'wanted': 'madvise', 'state': 'DIFF'}" \
    "$(json_tool '[k for k in d["knobs"] if k["name"] == "huge-pages"][0]' <<<"$json")"
  check 'status --json: drops' "{'nic': {'rx0_drops': 5}, 'interface': {'rx_dropped': 9}, 'softnet': {'dropped': 18, 'time_squeeze': 11}, 'udp': {'InErrors': 44, 'RcvbufErrors': 43, 'SndbufErrors': 0}}" \
    "$(json_tool 'd["drops"]' <<<"$json")"
  check 'status --json: words are escaped' $'a "quoted" back\\slash\ttab ?' "$(json_tool '[k["words"] for k in d["knobs"] if k["name"] == "notrack"][0]' <<<"$json")"
  check 'status --json: not applied' 'False virtio_net throughput' "$(json_tool 'str(d["applied"]) + " " + d["driver"] + " " + d["profile"]' <<<"$json")"
  machine a mlx4
  tune apply --profile latency
  tune status --json
  check 'status --json after apply' 'True latency {'"'OK'"'}' "$(json_tool 'str(d["applied"]) + " " + d["profile"] + " " + str({k["state"] for k in d["knobs"]})' <<<"$output")"
}

test_many_hosts() {
  machine a mlx4
  stand_ins ssh sudo tmcc
  mkdir -p "$TUNE_ROOT/usr/local/etc/emulab"
  ln -s "$bin/tmcc" "$TUNE_ROOT/usr/local/etc/emulab/tmcc"
  printf "NAME=node%s-lan0 IP=10.10.1.%s ALIASES='node%s-lan0 node%s-0 node%s'\n" 1 2 1 1 1 0 1 0 0 0 >"$FAKE/hostnames"
  echo "NAME=node1-other IP=10.20.1.2 ALIASES='node1-other node1-1'" >>"$FAKE/hostnames"
  local domain
  domain=$(uname -n)
  if [[ $domain == *.* ]]; then domain=.${domain#*.}; else domain=; fi
  local before
  before=$(all_bytes)
  tune apply --all-hosts --dry-run --profile latency
  check 'on all nodes: exit code' 0 "$code"
  check 'on all nodes: each once, on the control network, with the same options' \
    "$(printf 'ssh node%s%s sudo -n bash -s -- apply --dry-run --profile latency\n' 0 "$domain" 1 "$domain")" "$(sort "$FAKE.ssh")"
  check_has 'on all nodes: lines name the node' "$output" "node1$domain:   would run: ethtool -L eno1d1 rx 4 tx 4"
  check 'on all nodes, dry: nothing changes' '' "$(differences "$before" "$(all_bytes)")"
  tune status --hosts good,unreachable9
  check 'a node that is not there: exit code is the worst' 2 "$code"
  check_has 'a node that is not there is named' "$output" 'unreachable9: tune-nic: ssh can not reach this node'
  check_has 'the others go on' "$output" 'good: '
  tune status --json --hosts h1,h2
  if command -v python3 >/dev/null; then
    check 'status --json of many: one object a line' 'eno1d1 eno1d1' \
      "$(while IFS= read -r line; do json_tool 'd["interface"]' <<<"$line"; done <<<"$output" | tr '\n' ' ' | sed 's/ $//')"
  fi
  refused 'a host that is an option' "'-oProxyCommand=x' is no host" status --hosts=-oProxyCommand=x
  refused 'a host with code' 'is no host' status --hosts 'a;b'
  code=0
  output=$(PATH="$bin" bash -s -- status --all-hosts <"$tune" 2>&1) || code=$?
  check_has 'many nodes from standard input' "$code $output" '2 tune-nic: on many nodes it must run from a file'
  echo "NAME=node0 IP=10.20.1.1 ALIASES='node0'" >"$FAKE/hostnames"
  refused 'an experiment without the LAN' 'names no node on 10.10.1.0/24' status --all-hosts
  rm "$TUNE_ROOT/usr/local/etc/emulab/tmcc" "$bin/tmcc"
  refused 'no CloudLab' 'this is no CloudLab node' status --all-hosts
}

test_closed_pipe() { # Whoever looks at the first line only must not get half an apply
  machine a mlx4
  local applied
  tune apply
  applied=$(all_bytes | grep -v tune-state)
  machine a mlx4
  PATH="$bin" "$tune" apply 2>/dev/null | :
  check 'apply into a closed pipe does all' '' "$(differences "$applied" "$(all_bytes | grep -v tune-state)")"
}

test_veth() { # The real ethtool, ip and nft on a real interface; files stay those of the test
  if ((EUID)) || ! unshare --net true 2>/dev/null; then
    echo 'not run: a real interface (no root, or no network namespaces may be made here)'
    return
  fi
  if ! command -v ethtool >/dev/null || ! command -v ip >/dev/null; then
    echo 'not run: a real interface (ethtool or ip is missing)'
    return
  fi
  local tool
  machine w virtio
  rm -r "${TUNE_ROOT:?}/sys/class/net/"eno1* "${TUNE_ROOT:?}/var"
  mkdir -p "$TUNE_ROOT/sys/class/net/tune0"
  # The real tools for what is in the namespace; services are not.
  for tool in ethtool ip nft unshare diff; do
    rm -f "$bin/$tool"
    if [[ $(type -P "$tool") ]]; then ln -s "$(type -P "$tool")" "$bin/$tool"; fi
  done
  code=0
  # The script in quotes is for the shell in the namespace.
  # shellcheck disable=SC2016
  output=$(PATH="$bin" timeout -s KILL 60 unshare --net bash -euc '
    ip link add tune0 numrxqueues 4 numtxqueues 4 type veth peer name tune1
    ip addr add 10.10.1.1/24 dev tune0
    ip link set tune0 up
    ip link set tune1 up
    ethtool -L tune0 rx 2 tx 2
    all() { ethtool -l tune0; ethtool -k tune0; ip -o link show dev tune0 | sed "s/state .*//"; if command -v nft >/dev/null; then nft list ruleset; fi; }
    before=$(all)
    code=0
    "$0" apply --mtu 2000 || code=$?
    echo "apply ended with $code"
    after=$(all)
    "$0" status --json >"$1" || :
    "$0" undo
    [[ $after != "$before" ]] && echo "apply changed something"
    diff <(printf "%s\n" "$before") <(all) && echo "as before"
  ' "$tune" "$work/veth.json" 2>&1) || code=$?
  check 'veth: exit code' 0 "$code"
  check_has 'veth: partly unsupported' "$output" 'apply ended with 1'
  check_has 'veth: queues' "$output" '2 → 4'
  check_has 'veth: MTU' "$output" '1500 → 2000'
  check_has 'veth: changed' "$output" 'apply changed something'
  check_has 'veth: undo puts all back' "$output" 'as before'
  if command -v python3 >/dev/null; then check 'veth: JSON' tune0 "$(json_tool 'd["interface"]' <"$work/veth.json")"; fi
}

for name in $(compgen -A function test_ | if (($#)); then grep -xF "$(printf 'test_%s\n' "$@")"; else cat; fi); do
  "$name"
done
echo "$checks checks, $failures failed"
((failures == 0))
