"""The web page of `vit_jax.tools.demo`, which explains a model's predictions for an uploaded image.

access: passwords, hosts and ports; explain: run a model on an image and draw its maps; panel:
tables and captions; page: gradio components and events; serve: the web server.
"""
