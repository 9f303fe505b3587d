"""The page of `vit_jax.tools.demo`: a picture dropped on it, and what a model makes of it.

seen: a picture through a model once, and what can be drawn of that; words: what the page says;
guard: who may see it, and how much they may send; page: its components and events, in gradio.
"""
