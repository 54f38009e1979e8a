#!/usr/bin/env bash
# End what up.sh FOLDER started: by pid, never by name.
set -u
for name in slurmd.n1 slurmd.n2 slurmctld slurmdbd mariadbd munged; do
  file="${1:?folder}/run/$name.pid"
  [ -s "$file" ] || continue
  pid=$(cat "$file")
  kill "$pid" 2>/dev/null
  for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
  rm -f "$file"
done
