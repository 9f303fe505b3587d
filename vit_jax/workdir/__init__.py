"""What a workdir holds: checkpoints, metrics, log; on disk or in a bucket. Knows no config."""
