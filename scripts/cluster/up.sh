#!/usr/bin/env bash
# A SLURM of two virtual nodes on this machine, with accounting: up.sh FOLDER, as root on
# Debian. What it starts is ended by down.sh FOLDER, by pid; all its files are in FOLDER.
set -euo pipefail
folder=$(mkdir -p "${1:?folder}" && cd "$1" && pwd)
host=$(hostname -s)
cpus=$(nproc)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.4)}' /proc/meminfo) # MB, of each node

bash "$(dirname "$0")/install.sh" >&2
mkdir -p "$folder"/{state,spool,log,run,db}
chmod 755 "$folder" # the database has a user of its own

wait_for() { # a command that is to succeed within 20 s
  for _ in $(seq 200); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done
  echo "no answer: $*" >&2
  return 1
}

# munge: who says what. One that runs already is used, and left alone.
speaks() { munge -n </dev/null | unmunge; }
if ! speaks >/dev/null 2>&1; then
  [ -s /etc/munge/munge.key ] || mungekey --create --force
  mkdir -p /run/munge
  chown munge: /etc/munge /etc/munge/munge.key /run/munge
  setpriv --reuid=munge --regid=munge --clear-groups munged \
    --pid-file=/run/munge/dcli.pid --log-file=/run/munge/dcli.log
  cp /run/munge/dcli.pid "$folder/run/munged.pid"
  wait_for speaks
fi

# a database of its own, on a socket
socket=$folder/db/socket
if [ ! -d "$folder/db/mysql" ]; then
  chown mysql "$folder/db"
  mariadb-install-db --no-defaults --user=mysql --datadir="$folder/db" --skip-test-db \
    --auth-root-authentication-method=normal >"$folder/log/install.log" 2>&1
fi
mariadbd --no-defaults --user=mysql --datadir="$folder/db" --socket="$socket" \
  --skip-networking --pid-file="$folder/db/pid" --innodb-buffer-pool-size=64M \
  --innodb-lock-wait-timeout=900 >"$folder/log/mariadbd.log" 2>&1 &
wait_for mariadb-admin --no-defaults --socket="$socket" ping
cp "$folder/db/pid" "$folder/run/mariadbd.pid"
mariadb --no-defaults --socket="$socket" -e "
  create database if not exists slurm;
  create user if not exists slurm@localhost identified by 'slurm';
  grant all on slurm.* to slurm@localhost;"

cat >"$folder/slurmdbd.conf" <<CONF
AuthType=auth/munge
DbdHost=localhost
DbdPort=16829
SlurmUser=root
LogFile=$folder/log/slurmdbd.log
PidFile=$folder/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
CONF
chmod 600 "$folder/slurmdbd.conf"

# cred_expire: how long a requeued job waits. preempt_send_user_signal: SIGUSR2 to jobs
# that make way; newer versions spell it PreemptParameters=send_user_signal.
cat >"$folder/slurm.conf" <<CONF
ClusterName=dcli
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=16829
ReturnToService=2
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
SlurmctldPort=16827
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
KillWait=20
MinJobAge=3600
NodeName=n1 NodeHostname=$host NodeAddr=127.0.0.1 Port=17021 CPUs=$cpus RealMemory=$memory
NodeName=n2 NodeHostname=$host NodeAddr=127.0.0.1 Port=17022 CPUs=$cpus RealMemory=$memory
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
CONF
export SLURM_CONF=$folder/slurm.conf

MYSQL_UNIX_PORT=$socket slurmdbd
wait_for sacctmgr --noheader list cluster
sacctmgr --immediate add cluster dcli >/dev/null || true # it is there already
slurmctld
for node in n1 n2; do
  mkdir -p "$folder/spool/$node"
  slurmd -N $node
done
idle() { [ "$(sinfo --noheader --Node --format=%t | sort -u)" = idle ]; }
wait_for idle
echo "export SLURM_CONF=$SLURM_CONF"
