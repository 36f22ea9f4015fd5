#!/usr/bin/env bash
printf 'net.ipv4.tcp_fin_timeout = 10\n' >> /etc/sysctl.conf
printf '%s\n' "net.ipv4.tcp_rfc1337=1" | sudo tee -a /etc/sysctl.d/60.conf
echo -e "net.core.somaxconn=1024\nnet.ipv4.tcp_abort_on_overflow=1\n" | tee -a /etc/sysctl.conf
sudo tee /proc/sys/net/ipv4/tcp_fin_timeout <<< 12
sh -c 'echo 14 > /proc/sys/net/ipv4/tcp_fin_timeout'
grep -q tcp_fin_timeout /etc/sysctl.conf || echo "net.ipv4.tcp_fin_timeout=16" >> /etc/sysctl.conf
sed -i 's/^net.ipv4.tcp_fin_timeout.*/net.ipv4.tcp_fin_timeout = 18/' /etc/sysctl.conf
echo "$FIN" > /proc/sys/net/ipv4/tcp_fin_timeout
