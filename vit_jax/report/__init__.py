"""The report of a run as one HTML file; `vit_jax.tools.report` is its command."""
