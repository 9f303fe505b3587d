"""Contents of a workdir: checkpoints, metrics and log, on disk or in a bucket."""
