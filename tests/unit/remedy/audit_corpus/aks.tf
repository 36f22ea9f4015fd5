resource "azurerm_kubernetes_cluster_node_pool" "a" {
  linux_os_config {
    sysctl_config {
      net_ipv4_tcp_fin_timeout = 12
      net_ipv4_tcp_tw_reuse    = true
    }
  }
}
