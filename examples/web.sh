#!/bin/sh
# A replicated web server. Each task publishes port 8080 of its own machine, so that no machine gets two.
set -eu
shoal svc create \
    --name web \
    --replicas 3 \
    --publish mode=host,target=8080,published=8080 \
    --health-cmd 'wget -q -O /dev/null http://127.0.0.1:8080/' \
    --health-interval 2s \
    --limit-memory 64m \
    --limit-pids 32 \
    --init \
    --update-parallelism 1 \
    --update-failure-action rollback \
    --placement-pref spread=node.labels.zone \
    "${IMAGE:-example/busybox}" \
    sh -c 'hostname > /www/index.html && exec httpd -f -v -p 8080 -h /www'
