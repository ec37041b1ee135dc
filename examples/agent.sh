#!/bin/sh
# A global agent: one task on every node, those that join later included. It reads what the machine shows in /proc.
set -eu
shoal svc create \
    --name agent \
    --mode global \
    --mount type=bind,source=/proc,target=/host/proc,readonly \
    --restart-condition any \
    --limit-memory 32m \
    --read-only \
    --cap-drop ALL \
    --init \
    "${IMAGE:-example/busybox}" \
    sh -c 'while :; do read -r load rest < /host/proc/loadavg; echo "load $load"; sleep 5; done'
