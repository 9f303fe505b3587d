"""HTML reports of runs and weight files. `vit_jax.tools.report` is the command."""
