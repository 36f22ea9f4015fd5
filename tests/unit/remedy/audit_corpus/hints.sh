#!/bin/sh
grep -q 'net.ipv4.tcp_fin_timeout=10' /etc/sysctl.conf
if ! grep -E "^net.ipv4.tcp_abort_on_overflow = 1" /etc/sysctl.d/*; then
  echo "hint: net.ipv4.tcp_abort_on_overflow=1 is often recommended" >&2
fi
echo 'you may want net.ipv4.tcp_rfc1337=1'
log "would set net.ipv4.tcp_fin_timeout=10"
cat <<EOF
usage: $0 [--fix]
  --fix   sets net.ipv4.tcp_fin_timeout=10
EOF
sysctl -a | grep 'net.ipv4.tcp_max_orphans=1'
