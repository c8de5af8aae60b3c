#!/usr/bin/env bash
# A Slurm cluster of this one machine, to try sweeps on: bash scripts/slurm_local.sh up|down
# Its partition `urgent` preempts the jobs of its partition `local`, which are queued again.
# Needs root, and Debian's slurm-wlm and munge. All of it lies in one folder, which `down` removes.
set -euo pipefail
home="${MAD_SLURM:-/var/tmp/mad-slurm}"
host="$(hostname -s)"
export SLURM_CONF="$home/slurm.conf"

need() { command -v "$1" >/dev/null || { echo "$1 is missing: apt-get install slurm-wlm munge" >&2; exit 1; }; }

stop() { # every daemon by the id it wrote; nothing else is touched
    for daemon in slurmd slurmctld munged; do
        local pid
        pid="$(cat "$home/$daemon.pid" 2>/dev/null)" || continue
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$daemon" ] || continue
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null || true
    done
}

configure() {
    mkdir -p "$home/state" "$home/spool"
    cat >"$SLURM_CONF" <<CONF
ClusterName=mad
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${MAD_SLURM_PORT:-16817}
SlurmdPort=$((${MAD_SLURM_PORT:-16817} + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$home/munge/socket,cred_expire=5
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MpiDefault=none
ReturnToService=2
StateSaveLocation=$home/state
SlurmdSpoolDir=$home/spool
SlurmctldPidFile=$home/slurmctld.pid
SlurmdPidFile=$home/slurmd.pid
SlurmctldLogFile=$home/slurmctld.log
SlurmdLogFile=$home/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo) State=UNKNOWN
PartitionName=local Nodes=$host Default=YES MaxTime=INFINITE PriorityTier=1
PartitionName=urgent Nodes=$host MaxTime=INFINITE PriorityTier=2
CONF
}

start_munge() { # a key and a socket of its own: a munged that runs already is left alone
    install -d -o munge -g munge -m 755 "$home/munge"
    dd if=/dev/urandom bs=128 count=1 status=none >"$home/munge/key"
    chown munge:munge "$home/munge/key"
    chmod 400 "$home/munge/key"
    setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged --key-file="$home/munge/key" \
        --socket="$home/munge/socket" --pid-file="$home/munge/munged.pid" --log-file="$home/munge/munged.log" \
        --seed-file="$home/munge/munged.seed"
    ln -sf munge/munged.pid "$home/munged.pid"
}

case "${1:-}" in
    up)
        for program in munged slurmctld slurmd sinfo; do need "$program"; done
        if [ -e "$SLURM_CONF" ] && sinfo -h -o %t 2>/dev/null | grep -qE 'idle|mix|alloc'; then :; else
            stop; rm -rf "$home"
            configure
            start_munge
            slurmctld
            slurmd
            for _ in $(seq 100); do [ "$(sinfo -h -o %t 2>/dev/null)" = idle ] && break; sleep 0.2; done
        fi
        sinfo
        echo "export SLURM_CONF=$SLURM_CONF"
        ;;
    down)
        stop
        rm -rf "$home"
        ;;
    *)
        echo "usage: bash scripts/slurm_local.sh up|down" >&2
        exit 2
        ;;
esac
