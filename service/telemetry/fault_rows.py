"""The lower half of the dashboard `Training`: checkpoints, what went wrong, the machine."""

from sparta.service.telemetry.panels import Row, lines, mean, quantile, records

# The run's own: the same number on every rank, or known to one only.
STEP = "max by (name, run) (sparta_step{@})"
CHECKPOINT_AGE = "time() - max by (name, run) (sparta_checkpoint_last_timestamp_seconds{@})"
_CORES = 'sum by (name, run, rank) (rate(process_cpu_seconds_total{job="sparta",@}[$__rate_interval]))'

CHECKPOINTS: Row = (
    "Checkpoints",
    [
        lines(
            "Checkpoint age",
            "Since the last commit. Alert: SpartaCheckpointOld.",
            "s",
            (CHECKPOINT_AGE, "{{run}}"),
            steps=[(7200, "red")],
            from_zero=True,
        ),
        lines(
            "Steps since the last checkpoint",
            "What would be trained again after a crash.",
            "none",
            (f"{STEP} - max by (name, run) (sparta_checkpoint_step{{@}})", "{{run}}"),
            from_zero=True,
        ),
        lines(
            "Saves",
            "Committed and failed ones an hour. Alert: SpartaCheckpointFailing.",
            "none",
            ("max by (name, run) (increase(sparta_checkpoints_total{@}[1h]))", "{{run}} committed"),
            ("max by (name, run) (increase(sparta_checkpoint_failures_total{@}[1h]))", "{{run}} failed"),
            from_zero=True,
        ),
        lines(
            "Duration of a save",
            "From the step it was taken in to its commit, beside the next steps; mean of an hour.",
            "s",
            (mean("checkpoint_seconds", "name, run", "1h"), "{{run}}"),
            from_zero=True,
        ),
        lines(
            "What a save holds up",
            "The step that a save is taken in is that much longer; 95th percentile of an hour.",
            "s",
            (quantile(0.95, "checkpoint_stall_seconds", "name, run", "1h"), "{{run}}"),
            from_zero=True,
        ),
        lines(
            "Size of a checkpoint",
            "Of all ranks together.",
            "bytes",
            ("max by (name, run) (sparta_checkpoint_bytes{@})", "{{run}}"),
            from_zero=True,
        ),
    ],
)

FAULTS: Row = (
    "What went wrong",
    [
        lines(
            "Steps not finite, batches skipped",
            "In the last hour. Weights stay as they were in such a step.",
            "none",
            ("max by (name, run) (increase(sparta_nonfinite_steps_total{@}[1h]))", "{{run}} not finite"),
            ("max by (name, run) (increase(sparta_skipped_batches_total{@}[1h]))", "{{run}} skipped"),
            steps=[(1, "red")],
            from_zero=True,
        ),
        lines(
            "Bad rows by column",
            "Rows a second left out for a value that cannot be, over all ranks. Alert: SpartaBadRows.",
            "si:rows/s",
            (
                "max by (name, run, column) (rate(sparta_bad_rows_total{@}[$__rate_interval]))",
                "{{run}} {{column}}",
            ),
            from_zero=True,
        ),
        lines(
            "Files passed over",
            "Of a watched folder, in the last hour. Alert: SpartaPartitionSkipped.",
            "none",
            ("max by (name, run) (increase(sparta_skipped_partitions_total{@}[1h]))", "{{run}}"),
            steps=[(1, "red")],
            from_zero=True,
        ),
    ],
)

MACHINE: Row = (
    "Machine",
    [
        lines(
            "Process memory",
            "Resident, by rank. Alert: SpartaProcessMemoryGrowing.",
            "bytes",
            (
                'sum by (name, run, rank) (process_resident_memory_bytes{job="sparta",@})',
                "{{run}} rank {{rank}}",
            ),
            from_zero=True,
        ),
        lines(
            "Processor",
            "Cores that a rank's process keeps busy.",
            "none",
            (_CORES, "{{run}} rank {{rank}}"),
            from_zero=True,
        ),
        lines(
            "GPU memory",
            "By rank and kind; none on a machine without GPUs. Alert: SpartaGpuMemory.",
            "bytes",
            (
                "sum by (name, run, rank, kind) (sparta_gpu_memory_bytes{@})",
                "{{run}} rank {{rank}} {{kind}}",
            ),
            from_zero=True,
        ),
        records(
            "Versions",
            "What the runs are made of. Two lines for one run: its ranks differ.",
            "count without (instance, pod, container, endpoint, node, rank) (sparta_build_info{@})",
            value="ranks",
        ),
    ],
)
