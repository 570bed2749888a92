#!/bin/bash
# PID 1 of one host of the lab. Started by lab.sh through unshare; by environment: LAB_HOST LAB_DIR LAB_TTL SLURM_CONF
set -u

read -r stat </proc/self/stat # /proc is still the machine's own: pid and start time as it sees them
set -- ${stat##*) }
born="${stat%% *} ${20}"

mount -t proc proc /proc
mount -t tmpfs -o mode=1777,size=2g tmpfs /dev/shm
mount --bind "$LAB_DIR/hosts" /etc/hosts
hostname "$LAB_HOST"
ip link set lo up

stopping=''
trap 'stopping=1' TERM
trap ':' HUP INT
echo "$born" >"$LAB_DIR/run/$LAB_HOST.pid.new"
mv "$LAB_DIR/run/$LAB_HOST.pid.new" "$LAB_DIR/run/$LAB_HOST.pid"

pause() { sleep "$1" & wait $! 2>/dev/null; } # a trap cuts `wait` short, not `sleep`
tries=0
until [ -e "$LAB_DIR/run/$LAB_HOST.cabled" ]; do
  tries=$((tries + 1))
  [ "$tries" -lt 300 ] && [ -z "$stopping" ] || exit 1
  pause 0.05
done

daemons=()
if [ "$LAB_HOST" = ctl ]; then
  munged --foreground --socket="$LAB_DIR/run/munge.sock" --key-file="$LAB_DIR/munge.key" --pid-file="$LAB_DIR/run/munged.pid" \
    --log-file="$LAB_DIR/log/munged.log" --seed-file="$LAB_DIR/munge.seed" --origin=lo &
  daemons+=($!)
  for _ in $(seq 100); do [ -S "$LAB_DIR/run/munge.sock" ] && break; pause 0.05; done
  slurmctld -D -f "$SLURM_CONF" &
  daemons=($! "${daemons[@]}")
else
  slurmd -D -N "$LAB_HOST" -f "$SLURM_CONF" &
  daemons+=($!)
fi

end=$((SECONDS + LAB_TTL))
while [ -z "$stopping" ] && [ "$SECONDS" -lt "$end" ]; do pause 2; done
for pid in "${daemons[@]}"; do # slurmctld saves its state on TERM
  kill -TERM "$pid" 2>/dev/null
  for _ in $(seq 60); do kill -0 "$pid" 2>/dev/null || break; pause 0.05; done
done
exit 0 # the kernel ends whatever is left
