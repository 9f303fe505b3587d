"""Device mesh and sharding rules, multi-process runs, and host memory settings."""
