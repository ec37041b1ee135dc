#!/bin/sh
# One replica with its data in a volume. The volume is made on the node of the first task; from then on the task runs
# only there. A node that loses the managers kills it (`--on-partition stop`, the default for tasks with a volume).
set -eu
shoal svc create \
    --name database \
    --mount type=volume,source=database,target=/data \
    --publish mode=host,target=7000,published=7000 \
    --on-partition stop \
    --reserve-memory 64m \
    --stop-grace-period 30s \
    --init \
    "${IMAGE:-example/busybox}" \
    sh -c 'echo "started $(date)" >> /data/starts; exec httpd -f -p 7000 -h /data'
echo 'each start adds a line: wget -q -O - http://NODE:7000/starts'
shoal volume ls --cluster
