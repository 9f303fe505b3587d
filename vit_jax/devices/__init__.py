"""Devices: mesh and sharding rules, the processes of a run, the memory of a host."""
