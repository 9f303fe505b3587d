"""The components of the page and their events, in gradio."""

from html import escape
from pathlib import Path

import gradio as gr
import numpy as np

from vit_jax.data import decode, pictures
from vit_jax.demo import access, explain, panel

MAX_WAITING = 16  # requests in the queue
SESSION_SECONDS = 3600
DELETE_FILES = (60, 600)  # seconds: how often, and how old they are then


class Page:
    """The page of one model, or of two side by side.

    Args:
      models: `inference.LoadedModel`s.
      phrases: `figures.catalog.Catalog`.
    """

    def __init__(self, models, phrases):
        self.models = models
        self.phrases = phrases
        self.resolutions = explain.resolutions(models)
        self.vits = [model for model in models if not model.is_cnn]
        self.cams = [model for model in models if model.is_cnn and model.module.head is not None]

    def build(self):
        """The page as gr.Blocks."""
        phrases = self.phrases
        options = dict(analytics_enabled=False, delete_cache=DELETE_FILES)
        with gr.Blocks(title=phrases("title"), **options) as blocks:
            gr.HTML(f"<h1>{phrases('title')}</h1><p>{phrases('intro')}</p>", elem_id="intro")
            self.found = gr.State(time_to_live=SESSION_SECONDS)  # [Explanation] of the picture
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=280):
                    self.build_input()
                with gr.Column(scale=1 + 2 * len(self.models), min_width=320):
                    with gr.Row(equal_height=False):
                        drawn = [self.build_drawing(i) for i in range(len(self.models))]
                    self.drawings, self.captions = zip(*drawn, strict=True)
                    with gr.Group(visible=bool(self.vits or self.cams)):
                        self.dials = self.build_dials()
            self.connect()
        return blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)

    def named(self, name):
        """Arguments of the component whose label is the phrase of its name."""
        return dict(label=self.phrases(name), elem_id=name)

    def build_input(self):
        phrases, named = self.phrases, self.named
        sources = ["upload", "clipboard"]
        self.picture = gr.Image(
            placeholder=phrases("drop"), sources=sources, buttons=[], height=240, **named("picture")
        )
        self.status = gr.HTML(panel.note("status", phrases("waiting")), elem_id="status")
        self.tops = [gr.HTML("", elem_id=f"top{i}") for i in range(len(self.models))]
        sides = [dict.fromkeys(f"{m.image} × {m.image}" for m in row) for row in self.resolutions]
        choices = [(" / ".join(row), i) for i, row in enumerate(sides)]
        visible = len(choices) > 1
        self.resolution = gr.Radio(choices, value=0, visible=visible, **named("resolution"))
        megapixels = pictures.MAX_PIXELS // 10**6
        limits = dict(megabytes=access.MAX_FILE_BYTES >> 20, megapixels=megapixels)
        gr.HTML(f"<small>{phrases('limits', **limits)}</small>")

    def build_drawing(self, i):
        """The drawing of a model and the caption under it."""
        model = self.models[i]
        with gr.Column(min_width=240, visible=model in self.vits + self.cams):
            kind = self.phrases("gradcam" if model.is_cnn else "attention")
            drawing = gr.Image(
                label=f"{kind}: {panel.title(self.phrases, model)}",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id=f"drawing{i}",
            )
            return drawing, gr.HTML("", elem_id=f"caption{i}")

    def build_dials(self):
        """The components of `panel.Dials`, by name."""
        phrases, named, vits, cams = self.phrases, self.named, self.vits, self.cams
        depth = max([2] + [model.depth for model in vits + cams])  # a slider has two values or more
        num_heads = max((model.num_heads for model in vits), default=0)
        heads = [(phrases("mean"), "mean"), (phrases("rollout"), "rollout")]
        heads += [(str(i), i) for i in range(num_heads)]
        layers = dict.fromkeys(
            phrases("stage" if model.is_cnn else "layer") for model in vits + cams
        )
        layers = dict(label=" / ".join(layers), elem_id="layer")
        queries = dict.fromkeys(phrases("cls" if model.prefix else "average") for model in vits)
        queries = [(" / ".join(queries), "whole"), (phrases("patch"), "patch")]
        ranks = [(phrases("nth", n=i + 1), i) for i in range(explain.TOP)]
        dials = {}
        with gr.Row():
            dials["layer"] = gr.Slider(1, depth, depth, step=1, **layers)
            dials["opacity"] = gr.Slider(0, 1, 0.65, step=0.05, **named("opacity"))
        with gr.Column(visible=bool(vits)):
            hint = phrases("rollout_hint")
            dials["heads"] = gr.Radio(heads, value="mean", info=hint, **named("heads"))
            with gr.Row():
                hint = dict(info=phrases("patch_hint"), scale=4, min_width=320)
                dials["query"] = gr.Radio(queries, value="whole", **hint, **named("query"))
                number = dict(value=1, minimum=1, precision=0, min_width=120)
                dials["row"] = gr.Number(**number, **named("row"))
                dials["column"] = gr.Number(**number, **named("column"))
        dials["rank"] = gr.Radio(ranks, value=0, visible=bool(cams), **named("rank"))
        return dials

    def connect(self):
        """Events. Only `show` runs the models; all events wait in one queue."""
        dials = self.dials
        options = dict(concurrency_id="model", api_visibility="private", show_progress="hidden")
        chosen = {self.found, *dials.values()}
        drawn = {*self.drawings, *self.captions}
        # preprocess=False: `decode` opens the file, not gradio, which knows more formats.
        gr.on(
            [self.picture.change, self.resolution.input],
            self.show,
            {self.picture, self.resolution},
            {self.found, self.status, *self.tops},
            preprocess=False,
            **options | dict(show_progress="minimal"),
        ).then(self.redraw, chosen, drawn, **options)
        options["trigger_mode"] = "always_last"
        patch = {dials[name] for name in ("query", "row", "column")}
        for name, dial in dials.items():
            if name in ("row", "column"):
                dial.input(self.choose_patch, chosen, drawn | patch, **options)
            else:
                dial.input(self.redraw, chosen, drawn, **options)
        for model, drawing in zip(self.models, self.drawings, strict=True):
            if not model.is_cnn:
                drawing.select(self.click, chosen, drawn | patch, **options)

    def show(self, values):
        """Explain the picture at the resolution."""
        nothing = dict.fromkeys(self.tops, "") | {self.found: None}
        if not values[self.picture]:
            return nothing | {self.status: panel.note("status", self.phrases("waiting"))}
        path = values[self.picture]["path"]
        models = self.resolutions[values[self.resolution]]
        try:
            images = [self.read(path, 1 if model.channels == 1 else 3) for model in models]
            pairs = zip(models, images, strict=True)
            found = [explain.explain(*pair, self.phrases.language) for pair in pairs]
        except decode.DecodeError as error:
            message = self.phrases("broken", cause=error)
            return nothing | {self.status: panel.note("alert", message)}
        rows = zip(self.tops, models, found, strict=True)
        tables = {top: panel.table(self.phrases, model, one) for top, model, one in rows}
        return tables | {self.found: found, self.status: ""}

    def read(self, path, channels):
        """An uploaded file -> uint8 [h, w, channels]. Raises decode.DecodeError."""
        path = Path(path).resolve()
        # Gradio checks this only of requests whose file has a "meta" field.
        if not path.is_relative_to(Path(self.picture.GRADIO_CACHE).resolve()):
            raise decode.DecodeError(f"{path.name}: not an uploaded file")
        return decode.decode(path, channels, name=path.name, max_pixels=pictures.MAX_PIXELS)

    def redraw(self, values):
        """Drawings and captions as the dials phrases."""
        found = values[self.found]
        if not found:
            return dict.fromkeys(self.drawings) | dict.fromkeys(self.captions, "")
        dials = panel.Dials(**{name: values[dial] for name, dial in self.dials.items()})
        grid = finest_grid(found)
        changes = {}
        for i, one in enumerate(found):
            drawing, caption = panel.drawing(self.phrases, self.models[i], one, dials, grid)
            changes[self.drawings[i]] = gr.update(value=drawing, alt_text=caption)
            changes[self.captions[i]] = f"<p>{escape(caption)}</p>"
        return changes

    def choose_patch(self, values):
        """Redraw for a row and column, with the attention of that patch."""
        choice = {self.dials["query"]: "patch"}
        return choice | self.redraw(values | choice)

    def click(self, values, event: gr.SelectData):
        """Redraw for the patch that was clicked on."""
        found = values[self.found]
        if not found:
            return {}
        names = [drawing.elem_id for drawing in self.drawings]  # the target is a copy
        one = found[names.index(event.target.elem_id)]
        side = explain.draw(one.view, np.ones((1, 1)), 0).shape[0]
        patch = explain.patch_at(event.index, side, one.grid)
        row, column = explain.convert_patch(patch, one.grid, finest_grid(found))
        choice = {self.dials["row"]: row + 1, self.dials["column"]: column + 1}
        return choice | self.choose_patch(values | choice)


def finest_grid(found):
    """The grid with the most patches, in which the page counts rows and columns; None: no ViT."""
    return max((one.grid for one in found if one.grid), default=None)
