sysctl 'net.ipv4.tcp_fin_timeout' do
  value 10
end
