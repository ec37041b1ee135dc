#!/bin/sh
# A playground of one manager and two workers, with the examples' image on each host.
set -eu
cd "$(dirname "$0")"
shoal playground up --managers 1 --workers 2
for host in manager1 worker1 worker2; do
    shoal playground exec "$host" sh image.sh
done
