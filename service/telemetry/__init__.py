"""What a run tells of itself while it runs, and how it is looked at.

instruments   every metric there is
telemetry     from what happens in training to instruments
phases        where the time of a step goes
window        metrics of the samples trained on last
endpoint      HTTP: /metrics, /healthz, /readyz, /status
serve         the endpoints of a run, and where Prometheus finds them
dashboards    Grafana's dashboards, made of panels by training_board, fault_rows and tables_board
reference     the table of metrics in service/RUNBOOK.md
"""
