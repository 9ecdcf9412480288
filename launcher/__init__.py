"""The `sparta` command: starts the service's verbs, multi-rank ones through TorchX and torchrun.

    cli            the command line: which verb, in which way
    request        the little the launcher reads from a command line
    run_directory  where a new run goes
    local          one job on this machine: TorchX `local_cwd`, signals, the terminal
    agent, rank    what runs inside the job, above and in front of the service: torchrun, one rank
    forward        rank 0's output, live on the user's terminal
    verdict        logs and exit codes of a failed job, as one line
    attempts       whether the ranks of a failed job are started again
    beats          how far each rank has come
    stopped        a training that was told to stop, and how to go on with it
    tether         no process outlives the one that started it
    watch          a Prometheus beside local runs; prometheus starts and ends it
    demo           the first look: synth, prepare, train

    submit         a job for somewhere else, or for here but on its own; `--dry-run` shows it
    manage         status, logs, cancel, list: the jobs that were submitted
    detached       a local job in a session of its own
    records        local jobs as other shells find them
    ranklogs       the logs of all ranks of one
    app            a job as TorchX takes it; components for `torchx run`, resources it may ask for
    node           torchrun on one machine of a cluster
    cluster        TorchX's runner, its failures in one line
    schedulers     TorchX's schedulers as they are needed here, and one for Kueue
    pods           the API server, and the logs of pods

The command itself loads neither torch nor, before a job starts or is rendered, TorchX.
"""
