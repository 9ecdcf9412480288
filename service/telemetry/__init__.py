"""What a run tells of itself while it runs: one endpoint per rank, for Prometheus and for probes.

instruments   every metric there is
telemetry     from what happens in training to instruments
phases        where the time of a step goes
window        metrics of the samples trained on last
endpoint      HTTP
"""
