#!/bin/sh
# Two services on a network of their own: a counter that nobody outside reaches, and a front that asks it by name.
# The name is looked up by itself, because a busybox that is linked statically with glibc has no resolver of its own.
# The front answers at port 8088 of every machine, and shows the client's own address.
set -eu
image="${IMAGE:-example/busybox}"
shoal network inspect stack >/dev/null 2>&1 || shoal network create stack

shoal svc create \
    --name counter \
    --network stack \
    --init \
    "$image" \
    sh -c 'mkdir -p /srv/cgi-bin && printf "%s\n" "#!/bin/sh" "echo Content-type: text/plain; echo" \
        "n=\$(cat /tmp/n 2>/dev/null || echo 0); n=\$((n+1)); echo \$n > /tmp/n; echo \$n" > /srv/cgi-bin/next &&
        chmod 755 /srv/cgi-bin/next && exec httpd -f -p 8080 -h /srv'

shoal svc create \
    --name front \
    --network stack \
    --replicas 3 \
    --publish 8088:8080 \
    --health-cmd 'wget -q -O /dev/null http://127.0.0.1:8080/' \
    --health-interval 2s \
    --update-order start-first \
    --init \
    "$image" \
    sh -c 'mkdir -p /srv/cgi-bin && hostname > /srv/index.html && printf "%s\n" "#!/bin/sh" \
        "echo Content-type: text/plain; echo" \
        "counter=\$(nslookup -type=a counter | sed -n s/^Address:.//p | tail -n 1)" \
        "echo visitor \$(wget -q -O - http://\$counter:8080/cgi-bin/next), from \$REMOTE_ADDR, served by \$(hostname)" \
        > /srv/cgi-bin/hello && chmod 755 /srv/cgi-bin/hello && exec httpd -f -p 8080 -h /srv'
