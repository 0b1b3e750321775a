#!/usr/bin/env bash
# A Slurm of one node for test_slurm.py, from Debian's packages, unpacked and started in a folder without touching the
# system. It needs root, Debian or Ubuntu, and nothing else: no systemd, no control groups, no accounting.
#
#   tests/book/slurm.sh start /tmp/slurm   prints the line that puts sbatch and its kin on the PATH
#   tests/book/slurm.sh stop /tmp/slurm
set -euo pipefail
usage="usage: $0 start|stop FOLDER"
action=${1:?$usage}
folder=$(realpath -m "${2:?$usage}")
root=$folder/root
libraries=$root/usr/lib/$(uname -m)-linux-gnu
packages=(libhwloc15 liblua5.1-0 libmunge2 munge slurm-wlm-basic-plugins slurm-client slurmd slurmctld slurm-wlm)

unpack() {
  mkdir -p "$folder/packages"
  (cd "$folder/packages" && apt-get download "${packages[@]}")
  for package in "$folder"/packages/*.deb; do dpkg -x "$package" "$root"; done
}

# More processors and memory than there may be, so that the jobs of the profile fit; they share what there is. A job
# that is requeued waits until the leave of its first start has run out, which would be two minutes. Finished jobs are
# remembered, because without accounting squeue is the only one to tell how they ended.
configure() {
  local host
  host=$(hostname -s)
  cat >"$folder/slurm.conf" <<END
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$folder/munge/munge.sock,cred_expire=10
PluginDir=$libraries/slurm-wlm
PlugStackConfig=/dev/null
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
KillWait=5
MinJobAge=3600
NodeName=$host NodeAddr=127.0.0.1 CPUs=16 RealMemory=64000
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
END
}

# Programs find the configuration through wrappers: within a job Snakemake takes away all variables of Slurm.
wrap() {
  mkdir -p "$folder/bin"
  for program in "$root"/usr/bin/s*; do
    printf '#!/bin/sh\nexport SLURM_CONF=%s LD_LIBRARY_PATH=%s\nexec %s "$@"\n' \
      "$folder/slurm.conf" "$libraries:$libraries/slurm-wlm" "$program" >"$folder/bin/$(basename "$program")"
    chmod +x "$folder/bin/$(basename "$program")"
  done
}

start() {
  mkdir -p "$folder"/{spool,state,log}
  mkdir -p -m 711 "$folder/munge"
  [[ -d $root ]] || unpack
  configure
  wrap
  head -c 1024 /dev/urandom >"$folder/munge/munge.key"
  chmod 400 "$folder/munge/munge.key"
  export SLURM_CONF=$folder/slurm.conf LD_LIBRARY_PATH=$libraries:$libraries/slurm-wlm
  "$root/usr/sbin/munged" --force --key-file="$folder/munge/munge.key" \
    --socket="$folder/munge/munge.sock" --pid-file="$folder/munge/munged.pid" \
    --log-file="$folder/munge/munged.log" --seed-file="$folder/munge/munged.seed"
  "$root/usr/sbin/slurmctld-wlm" -f "$SLURM_CONF" -c
  sleep 1
  "$root/usr/sbin/slurmd-wlm" -f "$SLURM_CONF" -d "$root/usr/sbin/slurmstepd-wlm" -c
  echo "export PATH=$folder/bin:\$PATH"
}

stop() {
  for name in slurmd slurmctld munge/munged; do
    if [[ -f $folder/$name.pid ]]; then kill "$(cat "$folder/$name.pid")" || true; fi
  done
}

case $action in
  start) start ;;
  stop) stop ;;
  *) echo "$usage" >&2 && exit 2 ;;
esac
