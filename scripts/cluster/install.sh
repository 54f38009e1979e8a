#!/usr/bin/env bash
# What up.sh needs, from Debian's packages if it is not there: as root.
set -euo pipefail
missing=()
for command in slurmctld slurmd slurmdbd munged mariadbd; do
  [ -n "$(PATH=$PATH:/usr/sbin command -v $command)" ] || missing+=("$command")
done
if [ ${#missing[@]} -gt 0 ]; then
  echo "installing SLURM: no ${missing[*]}" >&2
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
    slurmctld slurmd slurm-client slurmdbd munge mariadb-server >&2
fi
