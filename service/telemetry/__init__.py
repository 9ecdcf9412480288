"""What a run tells of itself while it runs: one endpoint per rank for Prometheus and for probes.

instruments   every metric there is
dashboards    what Grafana shows of them, written into k8s/base/dashboards
"""
