ansible all -b -m ansible.posix.sysctl -a "name=net.ipv4.tcp_fin_timeout value=10 reload=yes"
