fin_timeout:
  sysctl.present:
    - name: net.ipv4.tcp_fin_timeout
    - value: 10

net.ipv4.tcp_abort_on_overflow:
  sysctl.present:
    - value: 1
    - config: /etc/sysctl.d/60-tcp.conf

{% if grains['role'] == 'lb' %}
net.ipv4.tcp_rfc1337:
  sysctl.present:
    - value: {{ pillar['rfc1337'] }}
{% endif %}
