"""What benchmark and compile_check share: workloads, timing, compiled programs, device specs."""
