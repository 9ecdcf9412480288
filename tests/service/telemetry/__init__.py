"""What a run tells of itself, and what dashboards and alerts make of it."""
