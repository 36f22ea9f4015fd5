sysctl { 'net.ipv4.tcp_fin_timeout':
  ensure => present,
  value  => '10',
}
sysctl::value { 'net.ipv4.tcp_abort_on_overflow': value => '1' }
