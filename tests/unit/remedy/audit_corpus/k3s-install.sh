#!/bin/sh
curl -sfL https://get.example/ | INSTALL_K3S_EXEC="server --kube-proxy-arg=conntrack-tcp-timeout-close-wait=30s" sh -
k3s server --kube-proxy-arg conntrack-tcp-timeout-established=1h
