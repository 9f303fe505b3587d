"""The page of `vit_jax.tools.demo`: drop a picture on it and look inside a model.

access: passwords, hosts and ports; explain: a picture through a model, and drawings of the
result; panel: tables and captions; page: components and events; serve: the web server.
"""
