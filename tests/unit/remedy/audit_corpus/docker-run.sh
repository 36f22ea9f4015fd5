docker run -d --sysctl net.ipv4.tcp_fin_timeout=20 \
  --sysctl "net.ipv4.tcp_abort_on_overflow=1" nginx
