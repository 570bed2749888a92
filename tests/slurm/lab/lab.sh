#!/bin/bash
# A small real SLURM cluster on this one machine: a controller and login host `ctl` and compute hosts n1..nN, each in namespaces of its
# own (pid, net, uts, ipc, mount), so that each has its own name, address, processes and /dev/shm; the file system is shared. Root only.
#   lab.sh install           Debian's SLURM, where it is missing
#   lab.sh up [N]            installs, starts ctl and N hosts (default 2); does nothing where they are up
#   lab.sh on HOST CMD...    runs CMD on that host, in the caller's directory and environment:  lab.sh on ctl sbatch -N2 job.sh
#   lab.sh crash|boot HOST   power cut: no peer gets a goodbye, every process ends;  and the host back again
#   lab.sh unplug|plug HOST  its cable out: no packet passes, its processes live;  and in again
#   lab.sh down              ends all of it
# A host is one bash process, PID 1 of its namespaces: when it ends the kernel ends all that ran there, so that nothing can be left
# behind. Pid files hold pid and start time, and nothing else is ever signalled. The network's switch is a bridge inside ctl; this
# machine's own network gets no link, no address and no route. By environment:
: "${LAB_DIR:=/tmp/clipx-slurm-lab}" # state, logs, sockets: 60 characters at most
: "${LAB_NET:=198.18.77}"            # of RFC 2544's range for tests, inside the namespaces only
: "${LAB_CPUS:=4}"                   # CPUs that each host claims: a claim, nothing is bound
: "${LAB_GPUS:=0}"                   # devices that each host claims as GPUs
: "${LAB_TTL:=3600}"                 # seconds after which a host ends by itself, whatever happened
: "${LAB_REQUEUE_WAIT:=5}"           # seconds until a requeued job starts again; SLURM's default is 120
set -euo pipefail

say() { echo "lab: $*" >&2; }
die() { say "$*"; exit 1; }

address() { [ "$1" = ctl ] && echo "$LAB_NET.1" || echo "$LAB_NET.$((10 + ${1#n}))"; }

born() { # PID -> the kernel's start time of that process; nothing if it is gone or a zombie
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 0
  set -- ${stat##*) } # from the state letter on: a name may hold spaces
  [ "$1" = Z ] || [ "$1" = X ] || echo "${20}"
}

pid_of() { # HOST -> pid of its PID 1, only while it is the very process that was started
  local pid start
  read -r pid start 2>/dev/null <"$LAB_DIR/run/$1.pid" || return 1
  [ -n "$start" ] && [ "$(born "$pid")" = "$start" ] && echo "$pid"
}
gone() { ! pid_of "$1" >/dev/null; }

hosts() { # those that the state folder knows, the controller last
  local file
  for file in "$LAB_DIR"/run/n*.pid "$LAB_DIR"/run/ctl.pid; do
    [ ! -e "$file" ] || basename "$file" .pid
  done
}

on() { # HOST CMD...
  local pid
  pid=$(pid_of "$1") || die "host $1 is not up (LAB_DIR=$LAB_DIR)"
  shift
  SLURM_CONF=$LAB_DIR/slurm.conf nsenter -t "$pid" -m -u -i -n -p -- \
    /bin/sh -c 'cd "$1" 2>/dev/null || cd /; shift; exec "$@"' sh "$PWD" "$@"
}

within() { # SECONDS CMD...: wait until CMD succeeds
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.1
  done
}

boot() { # HOST: start it, cable it to the switch, then let it start its daemons
  local host=$1 pid ctl
  gone "$host" || return 0
  mkdir -p "$LAB_DIR/spool/$host"
  rm -f "$LAB_DIR/run/$host.pid" "$LAB_DIR/run/$host.cabled"
  env LAB_HOST="$host" LAB_DIR="$LAB_DIR" LAB_TTL="$LAB_TTL" SLURM_CONF="$LAB_DIR/slurm.conf" \
    setsid unshare --net --uts --ipc --mount --propagation private --pid --fork \
    bash "$(dirname "${BASH_SOURCE[0]}")/host.sh" </dev/null >>"$LAB_DIR/log/$host.out" 2>&1 9>&- &
  disown
  within 10 pid_of "$host" || die "host $host did not start: see $LAB_DIR/log/$host.out"
  pid=$(pid_of "$host")
  if [ "$host" = ctl ]; then
    nsenter -t "$pid" -n ip link add sw0 type bridge stp_state 0 forward_delay 0
    nsenter -t "$pid" -n ip addr add "$(address ctl)/24" dev sw0
    nsenter -t "$pid" -n ip link set sw0 up
  else
    ctl=$(pid_of ctl)
    nsenter -t "$ctl" -n ip link del "port-$host" 2>/dev/null || true
    nsenter -t "$ctl" -n ip link add "port-$host" master sw0 type veth peer name eth0 netns "$pid"
    nsenter -t "$ctl" -n ip link set "port-$host" up
    nsenter -t "$pid" -n ip addr add "$(address "$host")/24" dev eth0
    nsenter -t "$pid" -n ip link set eth0 up
  fi
  : >"$LAB_DIR/run/$host.cabled"
}

end() { # HOST...: ask each PID 1 to stop its daemons; after 10 s end it, and with it all inside
  local host pid
  for host; do pid=$(pid_of "$host") && kill -TERM "$pid" 2>/dev/null || true; done
  for host; do
    within 10 gone "$host" || kill -KILL "$(pid_of "$host")" 2>/dev/null || true
    within 5 gone "$host" || die "host $host would not end"
    rm -f "$LAB_DIR/run/$host.pid" "$LAB_DIR/run/$host.cabled"
  done
}

install() {
  local need=() packages
  command -v ip >/dev/null || need+=(iproute2)
  command -v munged >/dev/null || need+=(munge)
  command -v slurmctld >/dev/null || need+=(slurmctld)
  command -v slurmd >/dev/null || need+=(slurmd)
  command -v sbatch >/dev/null || need+=(slurm-client)
  [ ${#need[@]} -gt 0 ] || return 0
  say "installing ${need[*]}"
  # RUNLEVEL=1 keeps the packages' own start scripts quiet
  packages=(env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -q --no-install-recommends "${need[@]}")
  "${packages[@]}" >"$LAB_DIR/apt.log" 2>&1 </dev/null ||
    { apt-get update -q && "${packages[@]}"; } >>"$LAB_DIR/apt.log" 2>&1 </dev/null ||
    { tail -n 5 "$LAB_DIR/apt.log" >&2; die "apt-get install failed: see $LAB_DIR/apt.log"; }
}

slurm_conf() { # HOST...
  local host i
  cat <<CONF
ClusterName=lab
SlurmctldHost=ctl($(address ctl))
SlurmctldPort=6817
SlurmdPort=6818
AuthType=auth/munge
# cred_expire is also how long a requeued job waits
AuthInfo=socket=$LAB_DIR/run/munge.sock,cred_expire=$LAB_REQUEUE_WAIT
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$LAB_DIR/state
SlurmdSpoolDir=$LAB_DIR/spool/%n
SlurmctldPidFile=$LAB_DIR/run/slurmctld.pid
SlurmdPidFile=$LAB_DIR/run/slurmd-%n.pid
SlurmctldLogFile=$LAB_DIR/log/slurmctld.log
SlurmdLogFile=$LAB_DIR/log/slurmd-%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# short timers: a test should not wait out a site's minutes
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
MessageTimeout=5
TCPTimeout=2
KillWait=5
CompleteWait=0
UnkillableStepTimeout=15
OverTimeLimit=0
CONF
  [ "$LAB_GPUS" = 0 ] || echo "GresTypes=gpu"
  for host; do
    echo "NodeName=$host NodeAddr=$(address "$host") CPUs=$LAB_CPUS RealMemory=8192$([ "$LAB_GPUS" = 0 ] || echo " Gres=gpu:$LAB_GPUS")"
  done
  echo "PartitionName=main Nodes=ALL Default=YES PriorityTier=1 GraceTime=5 MaxTime=INFINITE State=UP"
  echo "PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE State=UP"
  for ((i = 0; i < LAB_GPUS; i++)); do # SLURM wants a device file, and reads the number off its name
    [ -e "$LAB_DIR/dev/gpu$i" ] || mknod "$LAB_DIR/dev/gpu$i" c 1 3
    echo "Name=gpu File=$LAB_DIR/dev/gpu$i" >>"$LAB_DIR/gres.conf"
  done
}

up() { # [N]
  local number=${1:-2} host names=() want
  [ "$(id -u)" = 0 ] || die "needs root, for namespaces"
  install
  for ((host = 1; host <= number; host++)); do names+=("n$host"); done
  want="hosts=$number net=$LAB_NET cpus=$LAB_CPUS gpus=$LAB_GPUS requeue=$LAB_REQUEUE_WAIT"
  ready() { # every host takes work
    local taking
    taking=$(on ctl timeout 10 sinfo -h -N -t idle,mixed,allocated,completing -o '%N %t' 2>/dev/null | grep -v '\*' | cut -d' ' -f1 | sort -u | wc -l)
    [ "$taking" = "$number" ]
  }
  if [ "$(cat "$LAB_DIR/run/settings" 2>/dev/null)" = "$want" ] && ready; then return; fi
  end $(hosts)
  rm -rf "$LAB_DIR"/{run,state,spool,log,dev,gres.conf}
  mkdir -p "$LAB_DIR"/{run,state,spool,log,dev}
  chmod 755 "$LAB_DIR"
  { echo "127.0.0.1 localhost"; for host in ctl "${names[@]}"; do echo "$(address "$host") $host"; done; } >"$LAB_DIR/hosts"
  (umask 077 && head -c 128 /dev/urandom >"$LAB_DIR/munge.key")
  : >"$LAB_DIR/gres.conf"
  slurm_conf "${names[@]}" >"$LAB_DIR/slurm.conf"
  trap 'say "failed: see $LAB_DIR/log"; end $(hosts)' EXIT
  trap 'exit 1' INT TERM HUP
  for host in ctl "${names[@]}"; do boot "$host"; done
  within 30 ready || die "not ready within 30 s"
  echo "$want" >"$LAB_DIR/run/settings"
  trap - EXIT
  say "up: $want (state in $LAB_DIR)"
}

down() {
  end $(hosts)
  rm -rf "$LAB_DIR"/{run,spool,state,dev,munge.key,munge.seed}
}

[ ${#LAB_DIR} -le 60 ] || die "LAB_DIR is too long for the sockets in it: $LAB_DIR"
verb=${1:?install, up, down, on, crash, boot, unplug or plug}
shift
if [ "$verb" != on ]; then # one at a time changes the lab
  mkdir -p "$LAB_DIR"
  exec 9>"$LAB_DIR/.lock"
  flock -w 60 9 || die "another lab.sh holds $LAB_DIR/.lock"
fi
case $verb in
  install | up | down | on | boot) "$verb" "$@" ;;
  crash)
    on ctl ip link set "port-$1" down
    kill -KILL "$(pid_of "$1")"
    within 10 gone "$1" || die "$1 would not end"
    ;;
  unplug) on ctl ip link set "port-$1" down ;;
  plug)
    on ctl ip link set "port-$1" up
    on "$1" sh -c "kill -HUP \$(cat $LAB_DIR/run/slurmd-$1.pid)" # it reports at once; the controller asks lost hosts but rarely
    ;;
  *) die "unknown verb $verb" ;;
esac
