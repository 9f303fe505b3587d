"""Fault injection: kill, damage, fill, mutate, and check that nothing is lost or silently wrong.

A module of this package, such as `kills`, defines `cases()`. `python -m tests.faults` runs them.
"""
