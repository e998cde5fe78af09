#!/usr/bin/env bash
# Stands for ethtool, ip, systemctl, nft, iptables, update-initramfs, tmcc, ssh and sudo, by the name that it is called
# by. Keeps what it is told under $FAKE, the way a ConnectX-3 (mlx4) or a virtio card would: one file for each setting.
# $FAKE.log has the calls that change something. Before call number $KILL_BEFORE and after number $KILL_AFTER of these,
# it kills its whole process group.
# What is wrapped by "changes" is called by name, which shellcheck does not see.
# shellcheck disable=SC2317
set -euo pipefail

name=${0##*/}
call=$*
driver=$(<"$FAKE/driver")
nic=$FAKE/nic

fail() {
  echo "$*" >&2
  exit 1
}

changes() { # Wraps what changes something
  local number=0
  if [[ -e $FAKE.count ]]; then number=$(<"$FAKE.count"); fi
  number=$((number + 1))
  echo "$number" >"$FAKE.count"
  if [[ ${KILL_BEFORE-} == "$number" ]]; then kill -KILL 0; fi
  echo "$name $call" >>"$FAKE.log"
  "$@"
  if [[ ${KILL_AFTER-} == "$number" ]]; then kill -KILL 0; fi
}

put() { echo "$2" >"$nic/$1"; }
of() {
  local value
  read -r value <"$nic/$1"
  echo "$value"
}

set_queues() { # RX TX: as many directories, with what the driver gives new and old ones
  local side count i dir
  for side in rx tx; do
    count=$1
    if [[ $side == tx ]]; then count=$2; fi
    for ((i = 0; i < 16; i++)); do
      dir=$TUNE_ROOT/sys/class/net/eno1d1/queues/$side-$i
      if ((i >= count)); then
        rm -rf -- "$dir"
        continue
      fi
      mkdir -p "$dir"
      if [[ $side == rx ]]; then
        [[ -e $dir/rps_cpus ]] || echo 0 >"$dir/rps_cpus"
        [[ -e $dir/rps_flow_cnt ]] || echo 0 >"$dir/rps_flow_cnt"
      else
        # mlx4 spreads anew at each start of the port.
        echo f >"$dir/xps_cpus"
      fi
    done
  done
  put queues.rx "$1"
  put queues.tx "$2"
}

detach_rules() { # They stay in the list and are gone
  local rule
  for rule in "$nic"/rule.*; do
    if [[ -e $rule ]] && ! grep -q detached "$rule"; then echo detached >>"$rule"; fi
  done
}

is_detached() { [[ -e $nic/rule.$1 ]] && grep -q detached "$nic/rule.$1"; }

round_up() {
  local power=1
  while ((power < $1)); do power=$((power * 2)); done
  echo "$power"
}

list_rules() {
  local rule address port queue
  printf '%s RX rings available\nTotal %s rules\n\n' "$(of queues.rx)" "$(find "$nic" -name 'rule.*' | wc -l)"
  for rule in "$nic"/rule.*; do
    if [[ ! -e $rule ]]; then continue; fi
    read -r address port queue <"$rule"
    printf 'Filter: %s\n\tRule Type: UDP over IPv4\n\tSrc IP addr: 0.0.0.0 mask: 255.255.255.255\n' "${rule##*.}"
    printf '\tDest IP addr: %s mask: 0.0.0.0\n\tTOS: 0x0 mask: 0xff\n\tSrc port: 0 mask: 0xffff\n' "$address"
    printf '\tDest port: %s mask: 0x0\n\tAction: Direct to queue %s\n\n' "$port" "$queue"
  done
}

change_rule() { # delete LOCATION, or a whole rule
  if [[ $1 == delete ]]; then
    if [[ ! -e $nic/rule.$2 ]] || is_detached "$2"; then fail 'rmgr: Cannot delete RX class rule: Invalid argument'; fi
    rm -- "$nic/rule.$2"
    return
  fi
  [[ "$1 $2 $3 $5 $7 $9" == 'flow-type udp4 dst-ip dst-port action loc' ]] || fail 'ethtool: bad command line argument(s)'
  if (($8 >= $(of queues.rx))) || is_detached "${10}"; then fail 'rmgr: Cannot insert RX class rule: Invalid argument'; fi
  echo "$4 $6 $8" >"$nic/rule.${10}"
}

ethtool_mlx4() {
  local option=$1
  if [[ ${2-} != eno1d1 ]]; then fail 'netlink error: no device matches name (offset 24)'; fi
  shift 2
  case $option in
  -i) printf 'driver: mlx4_en\nversion: 4.0-0\nfirmware-version: 2.42.5000\n' ;;
  -a) printf 'Pause parameters for eno1d1:\nAutonegotiate:\toff\nRX:\t\t%s\nTX:\t\t%s\n\n' "$(of pause.rx)" "$(of pause.tx)" ;;
  -A) put "pause.$1" "$2" ;;
  -l)
    printf 'Channel parameters for eno1d1:\nPre-set maximums:\nRX:\t\t16\nTX:\t\t16\nOther:\t\tn/a\nCombined:\tn/a\n'
    printf 'Current hardware settings:\nRX:\t\t%s\nTX:\t\t%s\nOther:\t\tn/a\nCombined:\tn/a\n\n' "$(of queues.rx)" "$(of queues.tx)"
    ;;
  -L)
    if [[ $1 == combined ]]; then fail 'netlink error: Invalid argument'; fi
    detach_rules
    set_queues "$2" "$4"
    ;;
  -g)
    printf 'Ring parameters for eno1d1:\nPre-set maximums:\nRX:\t\t8192\nRX Mini:\tn/a\nRX Jumbo:\tn/a\nTX:\t\t8192\n'
    printf 'Current hardware settings:\nRX:\t\t%s\nRX Mini:\tn/a\nRX Jumbo:\tn/a\nTX:\t\t%s\n\n' "$(of ring.rx)" "$(of ring.tx)"
    ;;
  -G)
    detach_rules
    put "ring.$1" "$(round_up "$2")"
    ;;
  -c)
    printf 'Coalesce parameters for eno1d1:\nAdaptive RX: %s  TX: n/a\nstats-block-usecs:\tn/a\n' "$(of coalesce.adaptive-rx)"
    printf 'rx-usecs:\t%s\nrx-frames:\t%s\nrx-usecs-irq:\tn/a\n\ntx-usecs:\t%s\ntx-frames:\t%s\nrx-usecs-low:\t0\n' \
      "$(of coalesce.rx-usecs)" "$(of coalesce.rx-frames)" "$(of coalesce.tx-usecs)" "$(of coalesce.tx-frames)"
    ;;
  -C) put "coalesce.$1" "$2" ;;
  -k)
    printf 'Features for eno1d1:\nrx-checksumming: on\ngeneric-receive-offload: %s\nlarge-receive-offload: off [fixed]\n' "$(of feature.gro)"
    printf 'ntuple-filters: %s%s\n' "$(of feature.ntuple)" "$(if [[ ! -e $FAKE/dmfs ]]; then echo ' [fixed]'; fi)"
    ;;
  -K)
    if [[ $1 == lro || ($1 == ntuple && ! -e $FAKE/dmfs) ]]; then fail 'Could not change any device features'; fi
    put "feature.$1" "$2"
    ;;
  -n)
    if [[ ! -e $FAKE/dmfs ]]; then fail 'rxclass: Cannot get RX class rule count: Operation not supported'; fi
    list_rules
    ;;
  -N) change_rule "$@" ;;
  -S) printf 'NIC statistics:\n     rx_packets: 12\n     rx_dropped: 7\n     rx0_dropped: 3\n     rx_fifo_errors: 0\n' ;;
  *) fail 'ethtool: bad command line argument(s)' ;;
  esac
}

ethtool_virtio() { # Pairs of queues, and hardly anything else
  case $1 in
  -i) printf 'driver: virtio_net\n' ;;
  -l)
    printf 'Channel parameters for eno1d1:\nPre-set maximums:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\tn/a\nCombined:\t2\n'
    printf 'Current hardware settings:\nRX:\t\tn/a\nTX:\t\tn/a\nOther:\t\tn/a\nCombined:\t%s\n' "$(of queues.rx)"
    ;;
  -L)
    if [[ $3 != combined ]]; then fail 'netlink error: Invalid argument'; fi
    set_queues "$4" "$4"
    ;;
  -k) printf 'Features for eno1d1:\ngeneric-receive-offload: on\nlarge-receive-offload: on [fixed]\nntuple-filters: off [fixed]\n' ;;
  -K) fail 'Could not change any device features' ;;
  -S) printf 'NIC statistics:\n     rx0_drops: 5\n' ;;
  *) fail 'netlink error: Operation not supported' ;;
  esac
}

ip_tool() {
  case $* in
  'route show') cat -- "$FAKE/routes" ;;
  '-6 route show') cat -- "$FAKE/routes6" ;;
  'route get 10.10.1.'*) echo "$3 dev eno1d1 src 10.10.1.1 uid 0" ;;
  'route get '*) echo "$3 via 128.110.152.1 dev eno1 src 128.110.152.7 uid 0" ;;
  '-o -4 addr show dev '*) echo "3: $6    inet 10.10.1.1/24 scope global $6\\       valid_lft forever" ;;
  '-o link show dev '*) printf '3: %s: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu %s qdisc mq state UP\n' "$5" "$(of mtu)" ;;
  'link set dev eno1d1 mtu '*)
    detach_rules
    put mtu "$6"
    ;;
  *) fail "Error: stand-in ip does not know: $*" ;;
  esac
}

systemctl_tool() {
  local unit=$FAKE/unit.$2
  case $1 in
  is-active)
    if [[ ! -e $unit ]]; then
      echo inactive
      exit 4
    fi
    cat -- "$unit"
    if [[ $(<"$unit") != active ]]; then exit 3; fi
    ;;
  start | stop)
    if [[ ! -e $unit ]]; then fail "Failed to $1 $2.service: Unit $2.service not loaded."; fi
    if [[ $1 == start ]]; then echo active >"$unit"; else echo inactive >"$unit"; fi
    ;;
  esac
}

nft_tool() {
  if [[ $1 == list ]]; then
    if [[ ! -e $FAKE/nft.$4 ]]; then fail $'Error: No such file or directory\nlist table inet '"$4"; fi
    cat -- "$FAKE/nft.$4"
  elif [[ $1 =~ dport\ ([0-9-]+)\ notrack ]]; then
    printf 'table inet linerate_tune {\n\tudp dport %s notrack\n}\n' "${BASH_REMATCH[1]}" >"$FAKE/nft.linerate_tune"
  else
    rm -f -- "$FAKE/nft.linerate_tune"
  fi
}

iptables_tool() {
  local rule=$FAKE/$name.$5.$8
  case $4 in
  -C) if [[ ! -e $rule ]]; then fail 'iptables: Bad rule (does a matching rule exist in that chain?).'; fi ;;
  -I) : >"$rule" ;;
  -D) rm -- "$rule" ;;
  esac
}

ssh_tool() { # No network: the far side is a shell here
  while [[ $1 != -- ]]; do shift; done
  echo "ssh $2 $3" >>"$FAKE.ssh"
  if [[ $2 == unreachable* ]]; then
    echo "ssh: connect to host $2 port 22: No route to host" >&2
    exit 255
  fi
  sh -c "$3"
}

case $name in
ethtool) if [[ $1 == -[ALGCKN] ]]; then changes "ethtool_$driver" "$@"; else "ethtool_$driver" "$@"; fi ;;
ip) if [[ $* == 'link set'* ]]; then changes ip_tool "$@"; else ip_tool "$@"; fi ;;
systemctl) if [[ $1 == is-active ]]; then systemctl_tool "$@"; else changes systemctl_tool "$@"; fi ;;
nft) if [[ $1 == list ]]; then nft_tool "$@"; else changes nft_tool "$@"; fi ;;
iptables | ip6tables) if [[ $4 == -C ]]; then iptables_tool "$@"; else changes iptables_tool "$@"; fi ;;
update-initramfs) changes true ;;
tmcc) cat -- "$FAKE/hostnames" ;;
ssh) ssh_tool "$@" ;;
sudo)
  shift
  exec "$@"
  ;;
esac
