"""Performance measurement: workloads, interleaved timing, compiled programs, device specs."""
