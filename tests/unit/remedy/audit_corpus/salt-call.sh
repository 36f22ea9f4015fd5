salt '*' sysctl.assign net.ipv4.tcp_fin_timeout 10
salt 'lb*' sysctl.persist net.ipv4.tcp_abort_on_overflow 1
