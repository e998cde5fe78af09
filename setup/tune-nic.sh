#!/usr/bin/env bash
# Prepares a machine and one network interface for linerate, says what differs, and puts everything back.
# docs/tuning.md says what each knob is for.
# Verbs, tables and kinds are called by names put together, which shellcheck does not see.
# shellcheck disable=SC2317
set -euo pipefail
export LC_ALL=C # What the tools say is parsed.
umask 022
shopt -s nullglob

usage() {
  cat <<'END'
usage: tune-nic.sh apply|status|undo [option…]

  apply    saves what is, then sets what is wanted; again and again if you like
  status   what is and what is wanted, and what was dropped where
  undo     puts back what was before the first apply

  --profile throughput|latency   throughput, or what was applied
  --iface IF|auto                auto: the one on 10.10.1.0/24, else the only one that carries neither the control network
                                 nor a default route
  --queues N                     a power of two from 1 to 128; min(CPUs, 8) and what the interface has
  --udp-base PORT                port of the server's core 0; 4100
  --mtu N                        68 to 9600; left as it is
  --hugepages N                  0 to 1048576 pages kept for hugetlbfs; left as they are (linerate uses transparent ones)
  --no-ntuple                    no rules that send each core's port to its queue
  --enable-dmfs                  ConnectX-3: have the driver allow such rules after the next reboot
  --dry-run                      apply and undo say what they would run, and change nothing
  --json                         status as one JSON object
  --all-hosts                    on every node of the CloudLab experiment, by ssh and sudo (do not sudo this yourself)
  --hosts A,B,…                  on these

Ends with 0 when all is as wanted, 1 when something is not (it is listed), 2 when refused or wrong.
TUNE_ROOT=DIR takes /sys, /proc, /etc, /run and /var from DIR, for tests.
END
}

say() { printf '%s\n' "$*" 2>/dev/null || :; } # Whoever closes the pipe must not stop an apply half way.
complain() { printf 'tune-nic: %s\n' "$*" >&2 || :; }
die() {
  complain "$*"
  exit 2
}

# --- Tools and files. Each function leaves its result in $value or $answer, and a failure's reason in $words. ---

value='' answer='' words=''
declare -A answers=() # What was asked, until something is changed.

tidy_words() { # What a tool or the shell complained, in one line and without the script's own name
  words=${words//$'\n'/; }
  if [[ $words =~ line\ [0-9]+:\ (.*) ]]; then words=${BASH_REMATCH[1]}; fi
  words=${words#"$root"}
  words=${words:-"$1 failed without a word"}
}

call() {
  if ! command -v "$1" >/dev/null; then
    words="$1 is not on PATH"
    return 1
  fi
  # The script itself may come from standard input.
  answer=$("$@" 2>&1 </dev/null) && return
  words=$answer
  tidy_words "$1"
  return 1
}

ask() {
  local key="$*"
  if [[ ! ${answers[$key]+known} ]]; then
    if call "$@"; then answers[$key]="0$answer"; else answers[$key]="1$words"; fi
  fi
  answer=${answers[$key]:1} words=$answer
  [[ ${answers[$key]:0:1} == 0 ]]
}

run() {
  if [[ $dry_run ]]; then
    say "  would run: $(printf '%q ' "$@")"
    return
  fi
  answers=()
  call "$@"
}

field() { # SECTION LABEL: first word of "LABEL: …" in $answer, below the line SECTION
  local line below=''
  while IFS= read -r line; do
    line=${line#"${line%%[![:space:]]*}"}
    if [[ $line == "$1"* ]]; then below=1; fi
    if [[ $below && $line == "$2:"* ]]; then
      read -r value _ <<<"${line#*:}" || :
      if [[ $value && $value != n/a ]]; then return; fi
      break
    fi
  done <<<"$answer"
  words="the driver has no $2"
  return 1
}

read_file() {
  value=''
  if [[ ! -e $root$1 ]]; then
    words="$1: no such file"
    return 1
  fi
  { IFS= read -r -d '' value <"$root$1"; } 2>/dev/null || :
  if [[ $value ]]; then return; fi
  words=$(cat -- "$root$1" 2>&1) && return
  tidy_words cat
  return 1
}

write_bytes() { # PATH BYTES
  if [[ $dry_run ]]; then
    say "  would write: $(printf '%q' "${2%$'\n'}") > $1"
    return
  fi
  answers=()
  if [[ ! -e $root$1 ]]; then
    words="$1: no such file"
    return 1
  fi
  words=$({ printf '%s' "$2" >"$root$1"; } 2>&1) && return
  tidy_words write
  return 1
}

write_file() { write_bytes "$2" "$1"$'\n'; }

# A choice like "always [madvise] never" takes one word; anything else takes its own bytes.
put_back_file() { # BYTES PATH
  if [[ $1 =~ \[([^]]+)\] ]]; then
    write_file "${BASH_REMATCH[1]}" "$2" || return 1
    if [[ $dry_run ]] || { read_file "$2" && [[ $value == "$1" ]]; }; then return; fi
  fi
  write_bytes "$2" "$1"
}

# --- Kinds of knobs: read_KIND ARG… and write_KIND VALUE ARG…. ---

read_no_irq() { # IF
  words="no interrupt in /proc/interrupts has the name of $1 or its device"
  return 1
}

read_mask() { read_file "$1"; }
write_mask() { write_file "$1" "$2"; }
put_back_mask() { write_bytes "$2" "$1"; }

read_service() { # UNIT
  ask systemctl is-active "$1" || :
  case $answer in
  active | activating | reloading) value=active ;;
  inactive | failed | deactivating | unknown) value=inactive ;;
  *) return 1 ;;
  esac
}
write_service() { # VALUE UNIT
  if [[ $1 == active ]]; then run systemctl start "$2"; else run systemctl stop "$2"; fi
}

read_pause() { # IF rx|tx
  ask ethtool -a "$1" && field '' "${2^^}"
}
write_pause() { run ethtool -A "$2" "$3" "$1"; }

read_mtu() { # IF
  if ask ip -o link show dev "$1" && [[ $answer =~ \ mtu\ ([0-9]+) ]]; then
    value=${BASH_REMATCH[1]}
  else
    read_file "/sys/class/net/$1/mtu" && value=${value%$'\n'}
  fi
}
write_mtu() { run ip link set dev "$2" mtu "$1"; }

queue_field() { # SECTION LABEL: a number, 0 where the driver has none
  field "$1" "$2" || value=0
  if [[ ! $value =~ ^[0-9]+$ ]]; then value=0; fi
}
queue_words() { # RX TX COMBINED, as ethtool -L takes them
  value=''
  if (($1)); then value+=" rx $1"; fi
  if (($2)); then value+=" tx $2"; fi
  if (($3)); then value+=" combined $3"; fi
  value=${value# }
}
read_queues() { # IF
  local rx tx
  ask ethtool -l "$1" || return 1
  queue_field Current RX && rx=$value
  queue_field Current TX && tx=$value
  queue_field Current Combined
  queue_words "$rx" "$tx" "$value"
  if [[ ! $value ]]; then
    words='the driver says no number of queues'
    return 1
  fi
}
write_queues() { # VALUE IF: some drivers (mlx4) take rx and tx, most combined, and not all say which
  local form
  read -ra form <<<"$1"
  run ethtool -L "$2" "${form[@]}" && return
  if [[ $1 =~ ^combined\ ([0-9]+)$ ]]; then
    run ethtool -L "$2" rx "${BASH_REMATCH[1]}" tx "${BASH_REMATCH[1]}"
  elif [[ $1 =~ ^rx\ ([0-9]+)\ tx\ ([0-9]+)$ && ${BASH_REMATCH[1]} == "${BASH_REMATCH[2]}" ]]; then
    run ethtool -L "$2" combined "${BASH_REMATCH[1]}"
  else
    return 1
  fi
}

read_ring() { # IF rx|tx
  ask ethtool -g "$1" && field Current "${2^^}"
}
write_ring() { run ethtool -G "$2" "$3" "$1"; }

read_coalesce() { # IF NAME
  local label=$2
  if [[ $2 == adaptive-rx ]]; then label='Adaptive RX'; fi
  ask ethtool -c "$1" && field '' "$label"
}
write_coalesce() { run ethtool -C "$2" "$3" "$1"; }

read_feature() { # IF NAME
  local label=$2
  case $2 in
  gro) label='generic-receive-offload' ;;
  lro) label='large-receive-offload' ;;
  ntuple) label='ntuple-filters' ;;
  esac
  ask ethtool -k "$1" && field '' "$label"
}
write_feature() { run ethtool -K "$2" "$3" "$1"; }

# A table of its own, replaced and removed whole, so that nobody else's rules are touched.
read_nft() { # NAME
  value=off
  if ask nft list table inet "$1"; then
    if [[ $answer =~ dport\ ([0-9]+(-[0-9]+)?)\ notrack ]]; then value=${BASH_REMATCH[1]}; fi
    return
  fi
  [[ $words == *'No such file'* ]]
}
write_nft() { # off|PORTS NAME
  local script="add table inet $2; delete table inet $2" chain
  if [[ $1 != off ]]; then
    script+="; add table inet $2"
    for chain in prerouting output; do
      script+="; add chain inet $2 $chain { type filter hook $chain priority raw; }"
      script+="; add rule inet $2 $chain udp dport $1 notrack; add rule inet $2 $chain udp sport $1 notrack"
    done
  fi
  run nft "$script"
}

read_iptables() { # TOOL CHAIN dport|sport A:B
  value=on
  ask "$1" -w -t raw -C "$2" -p udp "--$3" "$4" -j CT --notrack && return
  value=off
  [[ $words == *'Bad rule'* || $words == *'No chain'* ]]
}
write_iptables() { # on|off TOOL CHAIN dport|sport A:B
  local how=-I
  if [[ $1 == off ]]; then how=-D; fi
  run "$2" -w -t raw "$how" "$3" -p udp "--$4" "$5" -j CT --notrack
}

# A rule is "ADDRESS PORT QUEUE", "-" when there is none, "other" when it is one that we could not put back.
read_rule() { # IF LOCATION
  local line here='' type='' address='' port='' queue='' more=''
  ask ethtool -n "$1" || return 1
  value='-'
  while IFS= read -r line; do
    if [[ $line == Filter:* ]]; then here=''; fi
    if [[ $line =~ ^Filter:\ *$2$ ]]; then here=1 value=other; fi
    if [[ ! $here ]]; then continue; fi
    case $line in
    *'Rule Type:'*) type=${line#*: } ;;
    *'Dest IP addr:'*'mask: 0.0.0.0') read -r address _ <<<"${line#*: }" ;;
    *'Dest port:'*'mask: 0x0') read -r port _ <<<"${line#*: }" ;;
    *'Action: Direct to queue'*) queue=${line##* } ;;
    *'Src IP addr:'*'mask: 255.255.255.255' | *'Src port:'*'mask: 0xffff' | *'TOS:'*'mask: 0xff') ;;
    *addr:* | *port:* | *TOS:* | *VLAN* | *User* | *Action:* | *MAC*) more=1 ;;
    esac
  done <<<"$answer"
  if [[ $value == other && $type == 'UDP over IPv4' && $address && $port && $queue && ! $more ]]; then
    value="$address $port $queue"
  fi
}
write_rule() { # VALUE IF LOCATION
  local address port queue
  read_rule "$2" "$3" || return 1
  if [[ $value != - ]]; then
    if [[ $value != "$1" && ${saved["rule"$'\t'"$2"$'\t'"$3"]--} != - ]]; then
      words="location $3 holds a rule of somebody else; 'ethtool -N $2 delete $3' removes it"
      return 1
    fi
    run ethtool -N "$2" delete "$3" || [[ $1 != - ]] || return 1
  fi
  if [[ $1 == - ]]; then return; fi
  read -r address port queue <<<"$1"
  if [[ ! $queue ]]; then
    words="$2 has no IPv4 address"
    return 1
  fi
  run ethtool -N "$2" flow-type udp4 dst-ip "$address" dst-port "$port" action "$queue" loc "$3"
}

dmfs_option='options mlx4_core log_num_mgm_entry_size=-1'
read_dmfs() { # PATH
  if [[ -e $root$1 ]]; then read_file "$1"; else value=absent; fi
}
write_dmfs() { # VALUE PATH
  local path=$root$2 other
  if [[ $1 == absent ]]; then
    run rm -f -- "$path" || return 1
  else
    for other in "$root"/etc/modprobe.d/*; do
      if [[ $other == "$path" || ! -f $other ]] || ! grep -qs '^[^#]*log_num_mgm_entry_size' "$other"; then continue; fi
      words="${other#"$root"} sets log_num_mgm_entry_size already"
      return 1
    done
    if [[ ! -e $path && ! $dry_run ]] && ! words=$({ : >"$path"; } 2>&1); then
      tidy_words write
      return 1
    fi
    write_bytes "$2" "${1%$'\n'}"$'\n' || return 1
  fi
  if command -v update-initramfs >/dev/null; then
    run update-initramfs -u
  elif command -v dracut >/dev/null; then
    run dracut -f
  else
    words='neither update-initramfs nor dracut is on PATH: the driver may be loaded without its option'
    return 1
  fi
}

canonical() { # KIND RAW: what two values are compared by, in $canon
  canon=${2%$'\n'}
  case $1 in
  file | dmfs)
    if [[ $canon =~ \[([^]]+)\] ]]; then canon=${BASH_REMATCH[1]}; fi
    canon=${canon//$'\t'/ }
    ;;
  mask)
    canon=${canon//,/}
    canon=${canon#"${canon%%[!0]*}"}
    canon=${canon:-0}
    ;;
  queues)
    if [[ $canon =~ ^(combined\ ([0-9]+)|rx\ ([0-9]+)\ tx\ ([0-9]+))$ && ${BASH_REMATCH[3]} == "${BASH_REMATCH[4]}" ]]; then
      canon=${BASH_REMATCH[2]}${BASH_REMATCH[3]}
    fi
    ;;
  esac
}

# --- The table of knobs: knob NAME KIND WANTED ARG…, in the order in which they are set. WANTED "=" is what was
# --- before the first apply. Each is gone through to save, to set and to show.

table_driver() {
  if [[ $enable_dmfs ]]; then knob dmfs dmfs "$dmfs_option" /etc/modprobe.d/linerate-mlx4.conf; fi
}

table_services() {
  local unit
  for unit in irqbalance ondemand thermald; do knob "service/$unit" service inactive "$unit"; done
}

table_cpu() {
  local cpu=/sys/devices/system/cpu path name state
  # A CPU without frequencies to choose from has no governor; one line says so.
  each "$cpu/cpu[0-9]*/cpufreq/scaling_governor" || paths=("$cpu/cpu0/cpufreq/scaling_governor")
  for path in "${paths[@]}"; do
    name=${path#"$cpu/"}
    knob "governor/${name%%/*}" file performance "$path"
  done
  if each "$cpu/cpu[0-9]*/cpufreq/energy_performance_preference"; then
    for path in "${paths[@]}"; do
      name=${path#"$cpu/"}
      knob "energy-preference/${name%%/*}" file performance "$path"
    done
  fi
  if each "$cpu/cpu[0-9]*/cpuidle/state[0-9]*/disable"; then
    for path in "${paths[@]}"; do
      name=${path#"$cpu/"} state=${path%/disable}
      knob "sleep/${name%%/*}.${state##*/}" file "$(sleep_wanted "$state")" "$path"
    done
  fi
  knob huge-pages file madvise /sys/kernel/mm/transparent_hugepage/enabled
  knob numa-balancing file 0 /proc/sys/kernel/numa_balancing
  knob nmi-watchdog file 0 /proc/sys/kernel/nmi_watchdog
  knob hugetlb-pages file "${hugepages:-=}" /proc/sys/vm/nr_hugepages
}

table_sysctl() {
  local net=/proc/sys/net
  at_least sysctl/net.core.rmem_max "$net/core/rmem_max" 67108864
  at_least sysctl/net.core.wmem_max "$net/core/wmem_max" 67108864
  at_least sysctl/net.core.rmem_default "$net/core/rmem_default" 4194304
  at_least sysctl/net.core.netdev_max_backlog "$net/core/netdev_max_backlog" 250000
  knob sysctl/net.core.netdev_budget file 600 "$net/core/netdev_budget"
  knob sysctl/net.core.netdev_budget_usecs file 8000 "$net/core/netdev_budget_usecs"
  knob sysctl/net.core.busy_poll file "$(by_profile 0 50)" "$net/core/busy_poll"
  knob sysctl/net.core.busy_read file "$(by_profile 0 50)" "$net/core/busy_read"
  # 16 receive buffers of rmem_max, in pages of 4 KiB.
  at_least sysctl/net.ipv4.udp_mem "$net/ipv4/udp_mem" 65536 131072 262144
}

table_nic() {
  knob pause/rx pause off "$iface" rx
  knob pause/tx pause off "$iface" tx
  knob mtu mtu "${mtu:-=}" "$iface"
  knob queues queues "$queues_wanted" "$iface"
  knob ring/rx ring "$(ring_wanted RX "$(by_profile 8192 1024)")" "$iface" rx
  knob ring/tx ring "$(ring_wanted TX 1024)" "$iface" tx
  knob coalesce/adaptive-rx coalesce off "$iface" adaptive-rx
  knob coalesce/rx-usecs coalesce "$(by_profile 16 0)" "$iface" rx-usecs
  knob coalesce/rx-frames coalesce "$(by_profile 64 1)" "$iface" rx-frames
  knob coalesce/tx-usecs coalesce "$(by_profile 16 5)" "$iface" tx-usecs
  knob coalesce/tx-frames coalesce "$(by_profile 64 16)" "$iface" tx-frames
  knob feature/gro feature on "$iface" gro
  knob feature/lro feature off "$iface" lro
}

table_spread() {
  local queues i irq path dir=/sys/class/net/$iface/queues
  queues=$(queue_count)
  find_irqs
  if ((${#irq_queue[@]} == 0)); then knob irq no_irq 'one a queue' "$iface"; fi
  for irq in "${irqs[@]}"; do
    if ((irq_queue[irq] < queues)); then
      knob "irq/$irq" file "$((irq_queue[irq] % cpus))" "/proc/irq/$irq/smp_affinity_list"
    fi
  done
  if each "$dir/tx-[0-9]*/xps_cpus"; then
    for path in "${paths[@]}"; do
      i=${path#"$dir/tx-"} i=${i%%/*}
      # With one queue there is nothing to choose, and the kernel refuses to be told.
      if ((i < queues && ${#paths[@]} > 1)); then
        knob "xps/$i" mask "$(mask_of $((i % cpus)))" "$path"
      else
        knob "xps/$i" mask = "$path"
      fi
    done
  fi
  if each "$dir/rx-[0-9]*/rps_cpus"; then
    for path in "${paths[@]}"; do
      i=${path#"$dir/rx-"}
      knob "rps/${i%%/*}" mask 0 "$path"
    done
  fi
  if each "$dir/rx-[0-9]*/rps_flow_cnt"; then
    for path in "${paths[@]}"; do
      i=${path#"$dir/rx-"}
      knob "rfs/${i%%/*}" file 0 "$path"
    done
  fi
  knob sysctl/net.core.rps_sock_flow_entries file 0 /proc/sys/net/core/rps_sock_flow_entries
}

table_notrack() {
  local last=$((udp_base + queues_asked - 1)) tool chain side
  if command -v nft >/dev/null || ! command -v iptables >/dev/null; then
    knob notrack nft "$udp_base$( ((last == udp_base)) || echo "-$last")" linerate_tune
    return
  fi
  for tool in iptables ip6tables; do
    if ! command -v "$tool" >/dev/null; then continue; fi
    for chain in PREROUTING OUTPUT; do
      for side in dport sport; do
        knob "notrack/$tool.$chain.$side" iptables on "$tool" "$chain" "$side" "$udp_base:$last"
      done
    done
  done
}

# Last, because a ConnectX-3 detaches rules whenever MTU, queues or rings change.
table_rules() {
  local i key queues address
  queues=$(queue_count)
  address=$(address_of "$iface")
  if [[ ! $ntuple ]]; then queues=0; fi
  knob feature/ntuple feature "$(if [[ $ntuple ]]; then echo on; else echo '='; fi)" "$iface" ntuple
  for ((i = 0; i < queues; i++)); do knob "rule/$i" rule "$address $((udp_base + i)) $i" "$iface" "$i"; done
  # What an earlier apply with more queues has added.
  for key in "${saved_keys[@]}"; do
    if [[ $key == "rule"$'\t'"$iface"$'\t'* ]] && ((${key##*$'\t'} >= queues)); then
      knob "rule/${key##*$'\t'}" rule = "$iface" "${key##*$'\t'}"
    fi
  done
}

tables=(driver services cpu sysctl nic spread notrack rules)

each() { # PATTERN: the files of that pattern, without TUNE_ROOT and in the order of their numbers, in $paths
  # The pattern is ours and is to be expanded; the root may hold anything and is not.
  # shellcheck disable=SC2206
  paths=("$root"$1)
  paths=("${paths[@]#"$root"}")
  if ((${#paths[@]} > 10)); then mapfile -t paths < <(printf '%s\n' "${paths[@]}" | sort -V); fi
  ((${#paths[@]}))
}

by_profile() { if [[ $profile == latency ]]; then echo "$2"; else echo "$1"; fi; }

# 10 µs: C1 and C1E of the m510's Xeon D stay, C3 and C6, which take 40 µs and more to wake from, do not.
sleep_wanted() { # STATE
  if [[ $profile == latency ]] && read_file "$1/latency" && ((${value%$'\n'} > 10)); then echo 1; else echo '='; fi
}

at_least() { # NAME PATH FLOOR…
  local name=$1 path=$2 i has=()
  local floors=("${@:3}")
  if read_file "$path"; then read -ra has <<<"$value" || :; fi
  for i in "${!floors[@]}"; do
    if [[ ${has[i]-} =~ ^[0-9]+$ ]] && ((has[i] > floors[i])); then floors[i]=${has[i]}; fi
  done
  knob "$name" file "${floors[*]}" "$path"
}

ring_wanted() { # RX|TX LENGTH: no more than the interface has
  if ask ethtool -g "$iface" && field Pre-set "$1" && [[ $value =~ ^[0-9]+$ ]] && ((value < $2)); then
    echo "$value"
  else
    echo "$2"
  fi
}

mask_of() { # CPU: as the kernel writes it, a comma before every 32 bits
  local mask i
  mask=$(printf '%x' $((1 << ($1 % 32))))
  for ((i = $1 / 32; i > 0; i--)); do mask+=,00000000; done
  echo "$mask"
}

address_of() { # IF
  if ask ip -o -4 addr show dev "$1" && [[ $answer =~ inet\ ([0-9.]+) ]]; then echo "${BASH_REMATCH[1]}"; fi
}

queue_count() { # Queues that the interface has, of those asked for
  local have
  if [[ $dry_run || $pass != apply ]] || ! read_queues "$iface"; then
    echo "$queues_asked"
    return
  fi
  if [[ $value =~ (rx|combined)\ ([0-9]+) ]]; then have=${BASH_REMATCH[2]}; else have=1; fi
  echo $((have < queues_asked ? have : queues_asked))
}

# Which interrupt serves which queue, by the names that drivers give them: eth0-TxRx-3, eth0-3, virtio2-input.3,
# mlx5_comp3@pci:0000:03:00.0. mlx4 numbers those of all ports through, from 1 on: each port has an equal part, in order.
find_irqs() {
  local line irq name device='' per_port=0 port=0 queue named=$iface
  irqs=() irq_queue=()
  if device=$(readlink -f -- "$root/sys/class/net/$iface/device"); then named+="|${device##*/}"; fi
  named="(^|[^[:alnum:]])(${named//./\\.})(\$|[^[:alnum:]])"
  if each "/sys/class/net/$iface/device/msi_irqs/*"; then
    per_port=${#paths[@]}
    if each "/sys/class/net/$iface/device/net/*"; then per_port=$(((per_port - 1) / ${#paths[@]})); fi
  fi
  if read_file "/sys/class/net/$iface/dev_port"; then port=${value%$'\n'}; fi
  while IFS= read -r line; do
    if [[ ! $line =~ ^\ *([0-9]+):.*[[:space:]]([^[:space:]]+)$ ]]; then continue; fi
    irq=${BASH_REMATCH[1]} name=${BASH_REMATCH[2]}
    if [[ ! $name =~ $named ]]; then continue; fi
    case $name in *async* | *config* | *control* | *ctrl* | *pages* | *cmd* | *misc* | *fw*) continue ;; esac
    if [[ $name =~ ^mlx4-([0-9]+)@ ]]; then
      queue=$((BASH_REMATCH[1] - 1 - port * per_port))
      if ((queue < 0 || (per_port && queue >= per_port))); then continue; fi
    elif [[ ${name%%@*} =~ ([0-9]+)$ && ${name%%@*} != "$iface" ]]; then
      queue=$((10#${BASH_REMATCH[1]}))
    else
      queue=0
    fi
    irqs+=("$irq")
    irq_queue[irq]=$queue
  done < <(cat -- "$root/proc/interrupts" 2>/dev/null)
}

# --- The state: options of the last apply, and the value of each knob before the first. ---

saved_keys=() saved_late='' unsaved=''
declare -A saved=() late=() applied_options=()

escaped() { # In $escaped: one line without tabs
  escaped=${1//\\/\\\\}
  escaped=${escaped//$'\n'/\\n}
  escaped=${escaped//$'\t'/\\t}
  escaped=${escaped//$'\r'/\\r}
}

remember() { # KIND ARG… VALUE: unless it is known already
  local key
  printf -v key '%s\t' "${@:1:$#-1}"
  key=${key%$'\t'}
  if [[ ${saved[$key]+known} ]]; then return; fi
  saved[$key]=${!#}
  late[$key]=$saved_late
  saved_keys+=("$key")
  unsaved=1
}

store_state() { # In one step: whoever is killed leaves the old or the new one
  local key name text=$'linerate tune state 1\n'
  for name in "${!applied_options[@]}"; do
    escaped "${applied_options[$name]}"
    text+="option"$'\t'"$name"$'\t'"$escaped"$'\n'
  done
  for key in "${saved_keys[@]}"; do
    escaped "${saved[$key]}"
    text+="knob"$'\t'"${late[$key]:-early}"$'\t'"$escaped"$'\t'"$key"$'\n'
  done
  if ! { printf '%send\n' "$text" >"$state.new" && mv -f -- "$state.new" "$state"; } 2>/dev/null; then
    die "$state can not be written: nothing more is changed, and undo puts back what was"
  fi
  unsaved=''
}

load_state() { # Fails when there is none
  local line rest key value_text complete='' number=0
  saved_keys=() saved=() late=() applied_options=()
  if [[ ! -e $state ]]; then return 1; fi
  while IFS= read -r line || [[ $line ]]; do
    number=$((number + 1))
    rest=${line#*$'\t'}
    case $line in
    'linerate tune state 1') ;;
    option$'\t'*$'\t'*)
      printf -v value_text '%b' "${rest#*$'\t'}"
      applied_options[${rest%%$'\t'*}]=$value_text
      ;;
    knob$'\t'early$'\t'*$'\t'* | knob$'\t'late$'\t'*$'\t'*)
      key=${rest#*$'\t'}
      value_text=${key%%$'\t'*}
      key=${key#*$'\t'}
      known_key "$key" || die "$state: line $number is none of ours; move the file away to go on without undo"
      printf -v value_text '%b' "$value_text"
      saved[$key]=$value_text
      late[$key]=
      if [[ $rest == late* ]]; then late[$key]=late; fi
      saved_keys+=("$key")
      ;;
    end) complete=1 ;;
    *) die "$state: line $number is none of ours; move the file away to go on without undo" ;;
    esac
  done <"$state"
  if [[ ! $complete ]]; then die "$state ends too early; move the file away to go on without undo"; fi
}

known_key() { # Paths and kinds that this script writes, so that a damaged state reaches nothing else
  case $1 in
  *..* | *[!A-Za-z0-9_.:/$'\t'-]*) return 1 ;;
  file$'\t'/sys/* | file$'\t'/proc/* | mask$'\t'/sys/* | dmfs$'\t'/etc/modprobe.d/*) ;;
  service$'\t'* | pause$'\t'* | mtu$'\t'* | queues$'\t'* | ring$'\t'* | coalesce$'\t'* | feature$'\t'*) ;;
  nft$'\t'* | iptables$'\t'ip*) ;;
  rule$'\t'*$'\t'*[!0-9]*) return 1 ;;
  rule$'\t'*$'\t'?*) ;;
  *) return 1 ;;
  esac
}

lock_state() {
  local dir=${state%/*} try
  for try in 1 2 3 4 5; do
    mkdir -p -- "$dir" 2>/dev/null || die "$dir can not be made: without a place for what was before, nothing is changed"
    # What is put back is what the state says: nobody else may write it.
    if [[ ! -O $dir ]]; then die "$dir belongs to somebody else, who could have root set anything: remove it"; fi
    if ! { exec {lock}<"$dir"; } 2>/dev/null; then continue; fi
    flock -w 60 "$lock" || die "another tune-nic.sh is at work, and has been for 60 s"
    answers=() # What was asked before may have been changed meanwhile.
    # An undo that ended meanwhile has removed the directory.
    if [[ $dir -ef /proc/self/fd/$lock ]]; then return; fi
    exec {lock}<&-
  done
  die "$dir comes and goes: try $try of 5 to lock it failed"
}

# --- What becomes of each knob. ---

knob() { "knob_$pass" "$@"; }

knob_save() { # NAME KIND WANTED ARG…
  if "read_$2" "${@:4}"; then remember "$2" "${@:4}" "$value"; fi
}

knob_apply() {
  local name=$1 kind=$2 wanted=$3 wanted_raw was key
  shift 3
  printf -v key '%s\t' "$kind" "$@"
  key=${key%$'\t'}
  if [[ $wanted == '=' ]]; then
    apply_original "$name" "$key"
    return
  fi
  if ! "read_$kind" "$@"; then
    report UNSUPPORTED "$name" '' "$wanted"
    return
  fi
  if [[ ! $dry_run ]]; then remember "$kind" "$@" "$value"; fi
  canonical "$kind" "$value"
  was=$canon
  canonical "$kind" "$wanted"
  wanted_raw=$wanted wanted=$canon
  # Rules may be listed and yet be gone from the card; a driver's option may have missed its initramfs.
  if [[ $was == "$wanted" && $kind != rule && $kind != dmfs ]]; then
    report OK "$name" "$was" "$wanted"
    return
  fi
  if [[ $unsaved ]]; then store_state; fi
  if ! "write_$kind" "$wanted_raw" "$@"; then
    report UNSUPPORTED "$name" "$was" "$wanted"
    return
  fi
  if [[ $dry_run ]]; then
    report WOULD "$name" "$was" "$wanted"
    return
  fi
  canon=
  if "read_$kind" "$@"; then canonical "$kind" "$value"; fi
  if [[ $canon == "$wanted" ]]; then
    report SET "$name" "$was" "$wanted"
  else
    words="still $canon"
    report DIFF "$name" "$was" "$wanted"
  fi
}

apply_original() { # NAME KEY: what another profile or an earlier option has changed
  local was original kind=${2%%$'\t'*}
  if [[ ! ${saved[$2]+known} ]]; then return; fi
  canonical "$kind" "${saved[$2]}"
  original=$canon was=
  put_back "$2" || {
    report UNSUPPORTED "$1" '' "$original"
    return
  }
  canonical "$kind" "$was"
  if [[ $canon != "$original" ]]; then report "$(if [[ $dry_run ]]; then echo WOULD; else echo SET; fi)" "$1" "$canon" "$original"; fi
}

knob_status() {
  local name=$1 kind=$2 wanted=$3 key now=''
  shift 3
  printf -v key '%s\t' "$kind" "$@"
  key=${key%$'\t'}
  if [[ $wanted == '=' ]]; then
    if [[ ! ${saved[$key]+known} ]]; then return; fi
    wanted=${saved[$key]}
  fi
  canonical "$kind" "$wanted"
  wanted=$canon
  if ! "read_$kind" "$@"; then
    report UNSUPPORTED "$name" '' "$wanted"
    return
  fi
  canonical "$kind" "$value"
  now=$canon
  if [[ $now == "$wanted" ]]; then report OK "$name" "$now" "$wanted"; else report DIFF "$name" "$now" "$wanted"; fi
}

# Gives a knob its value from before, and leaves the one that it had in $was.
put_back() { # KEY
  local parts kind original=${saved[$1]}
  IFS=$'\t' read -ra parts <<<"$1"
  kind=${parts[0]} parts=("${parts[@]:1}")
  if ! "read_$kind" "${parts[@]}"; then
    # A file that came with queues of ours has gone with them.
    [[ ${late[$1]-} && $kind == @(file|mask) ]] && was=$original
    return
  fi
  was=$value
  if [[ $value == "$original" ]]; then return; fi
  if declare -F "put_back_$kind" >/dev/null; then
    "put_back_$kind" "$original" "${parts[@]}" || return 1
  else
    "write_$kind" "$original" "${parts[@]}" || return 1
  fi
  if [[ $dry_run ]] || { "read_$kind" "${parts[@]}" && [[ $value == "$original" ]]; }; then return; fi
  words="reads '${value%$'\n'}', and was '${original%$'\n'}'"
  return 1
}

# --- Reports: one line for neighbours that say the same. ---

reported=() # STATE NAME WAS WANTED WORDS, with tabs between
incomplete=() json_knobs=''

report() { # STATE NAME WAS WANTED, and $words when it is UNSUPPORTED or DIFF
  local why=''
  case $1 in
  UNSUPPORTED) why=$words ;;
  DIFF) if [[ $pass == apply ]]; then why=$words; fi ;;
  esac
  if [[ $1 == UNSUPPORTED || $1 == DIFF ]]; then incomplete+=("$2"); fi
  reported+=("$1"$'\x1f'"$2"$'\x1f'"$3"$'\x1f'"$4"$'\x1f'"${why//$'\t'/ }")
  if [[ $json ]]; then
    json_knobs+="${json_knobs:+, }{\"name\": $(quote "$2"), \"current\": $(or_null "$3"), \"wanted\": $(quote "$4"), \"state\": \"$1\"${why:+, \"words\": $(quote "$why")}}"
  fi
}

print_reported() {
  local line state name group was wanted why same='' first='' last='' text='' count=0
  if [[ $json ]]; then return; fi
  for line in "${reported[@]}" ''; do
    IFS=$'\x1f' read -r state name was wanted why <<<"$line"
    group=${name%%/*}
    if [[ $name == *' '* ]]; then group=$name; fi # Undo has paths instead of names.
    if [[ $same && $same == "$state,$group,$was,$wanted,$why" ]]; then
      last=$name count=$((count + 1))
      continue
    fi
    if [[ $same ]]; then say "$(printf '%-11s  %-36s  %s' "${same%%,*}" "$first$( ((count == 1)) || echo " to ${last#*/} ($count)")" "$text")"; fi
    same="$state,$group,$was,$wanted,$why" first=$name last=$name count=1
    case $state in
    OK) text=$was ;;
    DIFF) text="$was, wanted $wanted${why:+: $why}" ;;
    UNSUPPORTED) text="wanted $wanted: $why" ;;
    *) text="$was → $wanted" ;;
    esac
  done
  reported=()
}

quote() { # A JSON string; what is not printable ASCII is of no use here
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"}
  text=${text//$'\n'/\\n}
  text=${text//$'\t'/\\t}
  printf '"%s"' "${text//[^ -~]/?}"
}
or_null() { if [[ $1 ]]; then quote "$1"; else printf null; fi; }

# What was dropped since boot, layer by layer: NAME COUNT lines.
drops() {
  local line name count columns dropped=0 squeezed=0 heads=() counts=() i
  if ask ethtool -S "$iface"; then
    while IFS= read -r line; do
      name=${line%:*} count=${line##*: }
      name=${name#"${name%%[![:space:]]*}"}
      if [[ ${name,,} =~ drop|discard|missed|no_buf|overrun|fifo_err && $count =~ ^[0-9]+$ ]]; then echo "nic.$name $count"; fi
    done <<<"$answer"
  fi
  for name in rx_dropped rx_missed_errors tx_dropped; do
    if read_file "/sys/class/net/$iface/statistics/$name"; then echo "interface.$name ${value%$'\n'}"; fi
  done
  if read_file /proc/net/softnet_stat; then
    while read -ra columns; do
      if [[ ${columns[1]-} =~ ^[0-9a-f]+$ ]]; then dropped=$((dropped + 16#${columns[1]})); fi
      if [[ ${columns[2]-} =~ ^[0-9a-f]+$ ]]; then squeezed=$((squeezed + 16#${columns[2]})); fi
    done <<<"$value"
    echo "softnet.dropped $dropped"
    echo "softnet.time_squeeze $squeezed"
  fi
  if read_file /proc/net/snmp; then
    while read -ra columns; do
      if [[ ${columns[0]-} != Udp: ]]; then continue; fi
      if ((${#heads[@]} == 0)); then heads=("${columns[@]}"); else counts=("${columns[@]}"); fi
    done <<<"$value"
    for i in "${!heads[@]}"; do
      if [[ ${heads[i]} =~ Errors$ && ${counts[i]-} =~ ^[0-9]+$ ]]; then echo "udp.${heads[i]} ${counts[i]}"; fi
    done
  fi
}

print_drops_json() { # {"nic": {…}, "interface": {…}, "softnet": {…}, "udp": {…}}
  local name count layer='' text=''
  while read -r name count; do
    if [[ ! $name ]]; then continue; fi
    if [[ ${name%%.*} != "$layer" ]]; then
      text+="${layer:+\}, }$(quote "${name%%.*}"): {"
      layer=${name%%.*}
    else
      text+=', '
    fi
    text+="$(quote "${name#*.}"): $((10#$count))"
  done <<<"$1"
  printf '{%s%s}' "$text" "${layer:+\}}"
}

# --- Which interface, and which one never. ---

refuse_name() { # What is not an interface
  if [[ ! $iface =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$ || $iface == *..* || ! -e $root/sys/class/net/$iface ]]; then
    die "there is no interface '$iface': take one of $(interfaces), or auto"
  fi
}

interfaces() {
  if each '/sys/class/net/*'; then echo "${paths[*]##*/}"; else echo 'none'; fi
}

routes() { # What the kernel's tables say, IPv4 and IPv6
  # Without routes there is no telling what must not be touched.
  ask ip route show || ask ip -4 route show || die "'ip route show' fails, so that nobody can tell which interface carries the default route: $words"
  routes4=$answer
  routes6=
  if ask ip -6 route show; then routes6=$answer; fi
}

default_interfaces() {
  local line in_default='' word before
  while IFS= read -r line; do
    case $line in
    default* | 0.0.0.0/1\ * | 128.0.0.0/1\ * | ::/1\ * | 8000::/1\ *) in_default=1 ;;
    [[:space:]]*nexthop*) ;;
    *) in_default='' ;;
    esac
    if [[ ! $in_default ]]; then continue; fi
    before=
    for word in $line; do
      if [[ $before == dev ]]; then echo "$word"; fi
      before=$word
    done
  done <<<"$routes4"$'\n'"$routes6" | sort -u
}

control_interface() {
  if [[ -e $root/var/emulab/boot/controlif ]]; then tr -d '[:space:]' <"$root/var/emulab/boot/controlif"; fi
}

carries() { # IF UPPER: is it the same, or below it (VLAN, bridge, bond)?
  local lower depth=${3:-0}
  if [[ $1 == "$2" ]]; then return; fi
  if ((depth > 8)); then return 1; fi
  for lower in "$root/sys/class/net/$2"/lower_*; do
    if [[ -e $lower ]] && carries "$1" "${lower##*/lower_}" $((depth + 1)); then return; fi
  done
  return 1
}

ssh_peer() { # sudo hides the session, but not from who may read the environment of the processes above
  local pid=$$ line depth
  if [[ ${SSH_CONNECTION-} ]]; then
    echo "${SSH_CONNECTION%% *}"
    return
  fi
  if [[ $root ]]; then return; fi
  for ((depth = 0; depth < 32 && pid > 1; depth++)); do
    pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status" 2>/dev/null) || return 0
    if ! line=$(tr '\0' '\n' 2>/dev/null <"/proc/${pid:-1}/environ" | grep -m 1 '^SSH_CONNECTION='); then continue; fi
    line=${line#*=}
    echo "${line%% *}"
    return
  done 2>/dev/null
}

refuse_busy() { # Whatever a mistake would cut us off from
  local control other peer
  if [[ $iface == lo ]]; then die 'lo is the loopback: it has no queues, rings or interrupts to tune'; fi
  control=$(control_interface)
  if [[ $control ]] && carries "$iface" "$control"; then
    die "$iface carries the control network (/var/emulab/boot/controlif): take the experiment's interface, --iface IF"
  fi
  while IFS= read -r other; do
    if [[ $other ]] && carries "$iface" "$other"; then
      die "$iface carries the default route${other:+ (by $other)}: a mistake would cut this machine off; take another, --iface IF"
    fi
  done < <(default_interfaces)
  peer=$(ssh_peer)
  if [[ ! $peer ]]; then return; fi
  if [[ $peer == *%* ]]; then
    other=${peer#*%}
  elif ask ip route get "$peer" && [[ $answer =~ \ dev\ ([^ ]+) ]]; then
    other=${BASH_REMATCH[1]}
  else
    return 0
  fi
  if carries "$iface" "$other"; then
    die "$iface carries your ssh session (from $peer), which would break: come in over the control network, or take another, --iface IF"
  fi
}

choose_interface() {
  local line candidates=() name control defaults
  while IFS= read -r line; do
    if [[ $line == 10.10.1.0/2[4-9]\ * && $line =~ \ dev\ ([^ ]+) ]]; then candidates+=("${BASH_REMATCH[1]}"); fi
  done <<<"$routes4"
  if ((${#candidates[@]} == 0)); then
    control=$(control_interface)
    defaults=" $(default_interfaces | tr '\n' ' ')"
    each '/sys/class/net/*' || :
    for name in "${paths[@]##*/}"; do
      if [[ $name == lo || $name == "$control" || $defaults == *" $name "* ]]; then continue; fi
      if [[ $(readlink -- "$root/sys/class/net/$name") == */virtual/* || ! -d $root/sys/class/net/$name ]]; then continue; fi
      candidates+=("$name")
    done
  fi
  case ${#candidates[@]} in
  1) iface=${candidates[0]} ;;
  0) die "no interface is on 10.10.1.0/24, and of $(interfaces) none is left that carries neither the control network nor a default route: name one, --iface IF" ;;
  *) die "several interfaces could be meant (${candidates[*]}): name one, --iface IF" ;;
  esac
}

driver_name() {
  local link
  if ask ethtool -i "$iface" && field '' driver; then
    echo "$value"
  elif link=$(readlink -- "$root/sys/class/net/$iface/device/driver"); then
    echo "${link##*/}"
  fi
}

# --- Verbs. ---

each_table() {
  local table
  for table in "${tables[@]}"; do
    "table_$table"
    if [[ $pass != save ]]; then print_reported; fi
  done
}

prepare() { # Interface and numbers that the table needs
  local max=128 cores
  driver=$(driver_name)
  each '/sys/devices/system/cpu/cpu[0-9]*' && cpus=${#paths[@]} || cpus=$(nproc)
  cores=$((cpus < 8 ? cpus : 8))
  if read_queues "$iface"; then
    local rx tx
    queue_field Pre-set RX && rx=$value
    queue_field Pre-set TX && tx=$value
    queue_field Pre-set Combined
    if ((value)); then max=$value; elif ((rx && tx)); then max=$((rx < tx ? rx : tx)); fi
    if ((value)); then queues_wanted=combined; else queues_wanted=rx; fi
  else
    each "/sys/class/net/$iface/queues/rx-[0-9]*" && max=${#paths[@]} || max=1
    queues_wanted=combined
  fi
  if [[ $queues_option ]] && ((queues_option > max)); then
    die "--queues $queues_option: $iface has no more than $max; take a power of two from 1 to $max"
  fi
  queues_asked=${queues_option:-$(power_of_two $((cores < max ? cores : max)))}
  if ((udp_base + queues_asked > 65536)); then
    die "--udp-base $udp_base: $queues_asked ports from there go beyond 65535; take 1 to $((65536 - queues_asked))"
  fi
  if [[ $queues_wanted == rx ]]; then
    queues_wanted="rx $queues_asked tx $queues_asked"
  else
    queues_wanted="combined $queues_asked"
  fi
  if [[ $enable_dmfs && $driver != mlx4_en* ]]; then
    die "--enable-dmfs: $iface has the driver '${driver:-unknown}', and only mlx4_en (ConnectX-3) has this option"
  fi
}

power_of_two() { # The greatest that is not more
  local power=1
  while ((power * 2 <= $1)); do power=$((power * 2)); done
  echo "$power"
}

apply() {
  routes
  if [[ $iface == auto ]]; then choose_interface; fi
  refuse_name
  refuse_busy
  prepare
  if [[ ! $dry_run ]]; then lock_state; fi
  if load_state; then saved_late=late; fi
  trap 'die "interrupted: tune-nic.sh undo puts back what was"' INT TERM HUP
  if [[ ! $dry_run ]]; then
    pass=save each_table
    applied_options=([profile]=$profile [iface]=$iface [queues]=$queues_asked [udp_base]=$udp_base [mtu]=$mtu
      [hugepages]=$hugepages [ntuple]=$ntuple [enable_dmfs]=$enable_dmfs [complete]='')
    store_state
  fi
  say "$iface (${driver:-unknown driver}) of $(uname -n): profile $profile, $queues_asked queues, UDP ports $udp_base to $((udp_base + queues_asked - 1))"
  remove_own_rules
  saved_late=late pass=apply each_table
  if [[ ! $dry_run ]]; then
    applied_options[complete]=1
    store_state
  fi
  hints
  finish
}

# A ConnectX-3 that stops for new rings, queues or MTU drops its rules and goes on listing them; what is listed but gone
# can neither be deleted nor replaced (mlx4_en_stop_port, mlx4_en_flow_detach). So they go before, and come back last.
remove_own_rules() {
  local key parts
  for key in "${saved_keys[@]}"; do
    IFS=$'\t' read -ra parts <<<"$key"
    if [[ ${parts[0]} == rule && ${parts[1]} == "$iface" && ${saved[$key]} == - ]]; then
      write_rule - "${parts[@]:1}" || :
    fi
  done
}

hints() {
  if [[ $driver == mlx4_en* && " ${incomplete[*]-} " == *' feature/ntuple '* && ! $enable_dmfs ]]; then
    say "ConnectX-3 takes rules only with another driver option: tune-nic.sh apply --enable-dmfs, reboot, apply."
  fi
  if [[ $enable_dmfs ]]; then
    say 'The driver takes its new option at the next reboot; reloading it here would cut the control network. Then apply again.'
  fi
  if [[ $driver == mlx4_en* && $mtu ]] && ((mtu > 3498)); then
    say 'With an MTU above 3498 mlx4 takes no XDP program: --transport xdp can not be used.'
  fi
}

finish() {
  if ((${#incomplete[@]} == 0)); then exit 0; fi
  if [[ ! $json ]]; then say "not as wanted: ${incomplete[*]}"; fi
  exit 1
}

status() {
  local counters rest
  if load_state; then
    if [[ $iface == auto ]]; then iface=${applied_options[iface]:-auto}; fi
    if [[ $iface == "${applied_options[iface]-}" ]]; then from_applied; fi
  fi
  if [[ $iface == auto ]]; then
    routes
    choose_interface
  fi
  refuse_name
  prepare
  pass=status each_table
  counters=$(drops)
  if [[ $json ]]; then
    printf '{"host": %s, "interface": %s, "driver": %s, "profile": %s, "applied": %s, "knobs": [%s], "drops": %s}\n' \
      "$(quote "$(uname -n)")" "$(quote "$iface")" "$(or_null "$driver")" "$(quote "$profile")" \
      "$applied" "$json_knobs" "$(print_drops_json "$counters")"
    finish
  fi
  say "$iface (${driver:-unknown driver}) of $(uname -n): profile $profile, $(if [[ $applied == true ]]; then echo applied; else echo 'not applied'; fi); dropped since boot:"
  while read -r rest; do say "  $rest"; done <<<"${counters:-nothing is counted}"
  finish
}

from_applied() { # What the command line leaves open is what was applied
  profile=${profile_option:-${applied_options[profile]:-throughput}}
  queues_option=${queues_option:-${applied_options[queues]-}}
  udp_base=${udp_option:-${applied_options[udp_base]:-4100}}
  mtu=${mtu:-${applied_options[mtu]-}}
  hugepages=${hugepages:-${applied_options[hugepages]-}}
  if [[ ! ${applied_options[ntuple]-1} ]]; then ntuple=; fi
  if [[ ${applied_options[complete]-} && $profile == "${applied_options[profile]}" ]]; then applied=true; fi
}

undo() {
  local i key kept=() label
  if [[ ! -e $state ]]; then nothing_to_undo; fi
  if [[ ! $dry_run ]]; then lock_state; fi
  if ! load_state; then nothing_to_undo; fi
  trap 'die "interrupted: undo again"' INT TERM HUP
  for ((i = ${#saved_keys[@]} - 1; i >= 0; i--)); do
    key=${saved_keys[i]} was=
    if put_back "$key"; then report_back "$key"; fi
  done
  # Putting back queues or governors changes what was put back before.
  if [[ ! $dry_run ]]; then
    for key in "${saved_keys[@]}"; do
      if put_back "$key"; then continue; fi
      label=${key//$'\t'/ }
      canonical "${key%%$'\t'*}" "${saved[$key]}"
      report UNSUPPORTED "$label" '' "$canon"
      kept+=("$key")
    done
  fi
  print_reported
  if [[ $dry_run ]]; then return; fi
  if ((${#kept[@]})); then
    saved_keys=("${kept[@]}")
    store_state
    complain "${#kept[@]} knobs could not be put back, and $state keeps them: undo again, or remove the file to give up"
    exit 1
  fi
  rm -f -- "$state" "$state.new" || die "$state can not be removed; all else is as it was"
  rmdir -- "${state%/*}" 2>/dev/null || :
  say 'all is as it was before'
}

nothing_to_undo() {
  rmdir -- "${state%/*}" 2>/dev/null || :
  say "nothing to undo: $state does not exist, so nothing was applied since boot, or all is undone"
  if [[ -e $root/etc/modprobe.d/linerate-mlx4.conf ]]; then
    say '/etc/modprobe.d/linerate-mlx4.conf outlives a reboot: remove it, run update-initramfs -u and reboot to have the driver as it was'
  fi
  exit 0
}

report_back() { # KEY, when it was changed
  local kind=${1%%$'\t'*} now
  if [[ $was == "${saved[$1]}" ]]; then return; fi
  canonical "$kind" "$was"
  now=$canon
  canonical "$kind" "${saved[$1]}"
  report "$(if [[ $dry_run ]]; then echo WOULD; else echo BACK; fi)" "${1//$'\t'/ }" "$now" "$canon"
}

# --- On many nodes. ---

experiment_hosts() { # Names on the control network: by the short ones, ssh would come in over the interface to be tuned
  local tmcc=$root/usr/local/etc/emulab/tmcc line name domain
  if [[ ! -x $tmcc ]]; then tmcc=$(command -v tmcc) || die 'this is no CloudLab node (/usr/local/etc/emulab/tmcc is missing): name the nodes, --hosts A,B'; fi
  answer=$("$tmcc" hostnames </dev/null) || die "'tmcc hostnames' fails: name the nodes, --hosts A,B"
  domain=$(uname -n)
  if [[ $domain == *.* ]]; then domain=.${domain#*.}; else domain=; fi
  hosts=()
  # NAME=node0-lan IP=10.10.1.1 ALIASES='node0-0 node0': one line for each interface, the node's own name last.
  while IFS= read -r line; do
    if [[ ! $line =~ IP=10\.10\.1\.[0-9]+\ .*ALIASES=\'([^\']*)\' ]]; then continue; fi
    name=${BASH_REMATCH[1]%"${BASH_REMATCH[1]##*[! ]}"}
    hosts+=("${name##* }$domain")
  done <<<"$answer"
  if ((${#hosts[@]} == 0)); then die "'tmcc hostnames' names no node on 10.10.1.0/24: name the nodes, --hosts A,B"; fi
}

on_host() { # HOST ARG…: output and exit code of the same command there
  local code=0
  # The limit is for a node that hangs; making an initramfs takes a minute.
  timeout 300 ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o StrictHostKeyChecking=accept-new -- \
    "$1" "sudo -n bash -s -- ${*:2}" <"$0" >"$scratch/$1.out" 2>"$scratch/$1.err" &
  trap 'kill $(jobs -p); exit 2' TERM
  wait $! || code=$?
  case $code in
  0 | 1 | 2) ;;
  124) echo 'tune-nic: this node did not end within 300 s' >>"$scratch/$1.err" ;;
  255) echo 'tune-nic: ssh can not reach this node: check its name, and that your keys or agent let you in without a password' >>"$scratch/$1.err" ;;
  *) echo "tune-nic: bash there ended with $code" >>"$scratch/$1.err" ;;
  esac
  echo "$((code > 2 ? 2 : code))" >"$scratch/$1.code"
}

on_all_hosts() {
  local host worst=0 code running=0
  if [[ ! -f $0 || ! -r $0 ]]; then die 'on many nodes it must run from a file, not from standard input'; fi
  if [[ ! $hosts_option ]]; then experiment_hosts; else IFS=, read -ra hosts <<<"$hosts_option"; fi
  for host in "${hosts[@]}"; do
    if [[ ! $host =~ ^[A-Za-z0-9_][A-Za-z0-9_.@:-]*$ ]]; then die "'$host' is no host's name: letters, digits and . _ - @ : only"; fi
  done
  mapfile -t hosts < <(printf '%s\n' "${hosts[@]}" | sort -V -u)
  scratch=$(mktemp -d)
  trap 'rm -rf -- "$scratch"' EXIT
  trap 'kill $(jobs -p) 2>/dev/null; wait; die "interrupted: nodes may be half tuned; undo with the same options"' INT TERM HUP
  for host in "${hosts[@]}"; do
    # 16: what a shell of ours and an sshd with its default MaxStartups bear with ease.
    if ((running == 16)); then
      wait -n || :
      running=$((running - 1))
    fi
    on_host "$host" "${remote_options[@]}" &
    running=$((running + 1))
  done
  wait
  for host in "${hosts[@]}"; do
    if [[ $json ]]; then cat -- "$scratch/$host.out"; else sed "s/^/$host: /" "$scratch/$host.out"; fi
    sed "s/^/$host: /" "$scratch/$host.err" >&2
    code=$(cat -- "$scratch/$host.code" 2>/dev/null) || code=2
    worst=$((code > worst ? code : worst))
  done
  exit "$worst"
}

# --- The command line. ---

number_in() { # OPTION TEXT LOW HIGH
  if [[ ! $2 =~ ^[0-9]{1,7}$ ]] || ((10#$2 < $3 || 10#$2 > $4)); then die "$1 '$2': it takes a number from $3 to $4"; fi
}

parse() {
  verb='' profile_option='' iface=auto queues_option='' udp_option='' mtu='' hugepages='' ntuple=1 enable_dmfs='' dry_run=''
  json='' all_hosts='' hosts_option='' remote_options=()
  local option text takes
  while (($#)); do
    option=$1 text='' takes=''
    shift
    case $option in
    -h | --help | help)
      usage
      exit 0
      ;;
    apply | status | undo)
      if [[ $verb ]]; then die "'$option' after '$verb': one of apply, status and undo at a time"; fi
      verb=$option
      remote_options+=("$option")
      continue
      ;;
    --profile=* | --iface=* | --queues=* | --udp-base=* | --mtu=* | --hugepages=* | --hosts=*) text=${option#*=} option=${option%%=*} takes=1 ;;
    --profile | --iface | --queues | --udp-base | --mtu | --hugepages | --hosts)
      if ((!$#)); then die "$option needs a value: tune-nic.sh --help says which"; fi
      text=$1 takes=1
      shift
      ;;
    --no-ntuple | --enable-dmfs | --dry-run | --json | --all-hosts) ;;
    *) die "'$option' is unknown: tune-nic.sh --help says what there is" ;;
    esac
    case $option in
    --profile)
      if [[ $text != throughput && $text != latency ]]; then die "--profile '$text': it is throughput or latency"; fi
      profile_option=$text
      ;;
    --iface)
      if [[ ! $text =~ ^[A-Za-z0-9][A-Za-z0-9._-]{0,14}$ ]]; then die "--iface '$text': this is no interface's name"; fi
      iface=$text
      ;;
    --queues)
      number_in "$option" "$text" 1 128
      queues_option=$((10#$text))
      if (((queues_option & (queues_option - 1)) != 0)); then die "--queues $text: cards spread over powers of two only; take 1, 2, 4, … to 128"; fi
      ;;
    --udp-base)
      number_in "$option" "$text" 1 65535
      udp_option=$((10#$text))
      ;;
    --mtu)
      number_in "$option" "$text" 68 9600
      mtu=$((10#$text))
      ;;
    --hugepages)
      number_in "$option" "$text" 0 1048576
      hugepages=$((10#$text))
      ;;
    --no-ntuple) ntuple= ;;
    --enable-dmfs) enable_dmfs=1 ;;
    --dry-run) dry_run=1 ;;
    --json) json=1 ;;
    --all-hosts) all_hosts=1 ;;
    --hosts)
      if [[ ! $text ]]; then die '--hosts needs names with commas between them'; fi
      all_hosts=1 hosts_option=$text
      ;;
    esac
    if [[ $option == --all-hosts || $option == --hosts ]]; then continue; fi
    remote_options+=("$option")
    if [[ $takes ]]; then remote_options+=("$text"); fi
  done
  profile=${profile_option:-throughput} udp_base=${udp_option:-4100}
  if [[ ! $verb ]]; then die 'say what to do: apply, status or undo (tune-nic.sh --help)'; fi
  if [[ $json && $verb != status ]]; then die "--json: only status has it, not $verb"; fi
}

main() {
  parse "$@"
  # An ignored signal stays ignored in the tools, and a closed pipe is an error of one line, not the end.
  trap '' PIPE
  if [[ $all_hosts ]]; then on_all_hosts; fi
  if [[ $root ]]; then
    root=$(cd -- "$root" 2>/dev/null && pwd) || die "TUNE_ROOT '$TUNE_ROOT' is no directory that can be entered"
  else
    PATH=$PATH:/usr/sbin:/sbin # Where a user's PATH does not lead, but ethtool and ip are.
    if ((EUID != 0)) && [[ $verb != status && ! $dry_run ]]; then die "$verb changes the system: run it as root (sudo), or with --dry-run"; fi
  fi
  state=$root/run/linerate/tune-state
  "$verb"
}

root=${TUNE_ROOT:-} pass='' driver='' applied=false was='' canon='' escaped='' lock='' scratch='' verb='' paths=() irqs=()
irq_queue=()
main "$@"
exit
