"""Gradio components and events of the demo page."""

from html import escape
from pathlib import Path

import gradio as gr
import numpy as np

from vit_jax.data import decode, pictures
from vit_jax.demo import access, explain, panel
from vit_jax.figures import INTERPOLATIONS

MAX_QUEUED_REQUESTS = 16
SESSION_SECONDS = 3600
DELETE_FILES = (60, 600)  # seconds: check interval, and age of files to delete


class Page:
    """The page for one model, or for two models side by side.

    Args:
      models: `inference.LoadedModel`s.
      phrases: `figures.catalog.Catalog` of the section "demo".
    """

    def __init__(self, models, phrases):
        self.models = models
        self.phrases = phrases
        self.resolutions = explain.resolutions(models)
        self.vits = [model for model in models if not model.is_cnn]
        self.cams = [model for model in models if model.is_cnn and model.module.head is not None]

    def build(self):
        """Build the page; returns gr.Blocks."""
        phrases = self.phrases
        options = dict(analytics_enabled=False, delete_cache=DELETE_FILES)
        with gr.Blocks(title=phrases("title"), **options) as blocks:
            gr.HTML(f"<h1>{phrases('title')}</h1><p>{phrases('intro')}</p>", elem_id="intro")
            self.explanations = gr.State(time_to_live=SESSION_SECONDS)  # one per model
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=280):
                    self.build_input()
                with gr.Column(scale=1 + 2 * len(self.models), min_width=320):
                    with gr.Row(equal_height=False):
                        pairs = [self.build_drawing(i) for i in range(len(self.models))]
                    self.drawings, self.captions = zip(*pairs, strict=True)
                    with gr.Group(visible=bool(self.vits or self.cams)):
                        self.controls = self.build_controls()
            self.connect()
        return blocks.queue(
            max_size=MAX_QUEUED_REQUESTS, default_concurrency_limit=1, api_open=False
        )

    def labeled(self, name):
        """Return the label and element id of the component `name`."""
        return dict(label=self.phrases(name), elem_id=name)

    def build_input(self):
        """Build the upload field, the tables of classes, the resolution, and the logit lenses."""
        phrases, labeled = self.phrases, self.labeled
        sources = ["upload", "clipboard"]
        self.picture = gr.Image(
            placeholder=phrases("drop"),
            sources=sources,
            buttons=[],
            height=240,
            **labeled("picture"),
        )
        self.status = gr.HTML(panel.note("status", phrases("waiting")), elem_id="status")
        self.tops = [gr.HTML("", elem_id=f"top{i}") for i in range(len(self.models))]
        sides = [dict.fromkeys(f"{m.image} × {m.image}" for m in row) for row in self.resolutions]
        choices = [(" / ".join(row), i) for i, row in enumerate(sides)]
        visible = len(choices) > 1
        self.resolution = gr.Radio(choices, value=0, visible=visible, **labeled("resolution"))
        megapixels = pictures.MAX_PIXELS // 10**6
        limits = dict(megabytes=access.MAX_FILE_BYTES >> 20, megapixels=megapixels)
        gr.HTML(f"<small>{phrases('limits', **limits)}</small>")
        self.lenses = [gr.HTML("", elem_id=f"lens{i}") for i in range(len(self.models))]

    def build_drawing(self, i):
        """Build the drawing of model i and its caption."""
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

    def build_controls(self):
        """Build the components of `panel.Controls`; returns {field: component}."""
        phrases, labeled, vits, cams = self.phrases, self.labeled, self.vits, self.cams
        depth = max([2] + [model.depth for model in vits + cams])  # a slider needs two values
        num_heads = max((model.num_heads for model in vits), default=0)
        heads = [(phrases("mean"), "mean"), (phrases("rollout"), "rollout")]
        heads += [(str(i), i) for i in range(num_heads)]
        layers = dict.fromkeys(
            phrases("stage" if model.is_cnn else "layer") for model in vits + cams
        )
        layers = dict(label=" / ".join(layers), elem_id="layer")
        queries = dict.fromkeys(
            phrases("cls" if model.has_class_token else "average") for model in vits
        )
        queries = [(" / ".join(queries), "whole"), (phrases("patch"), "patch")]
        ranks = [(phrases("nth", n=i + 1), i) for i in range(explain.TOP_K)]
        controls = {}
        with gr.Row():
            controls["layer"] = gr.Slider(1, depth, depth, step=1, **layers)
            controls["opacity"] = gr.Slider(0, 1, 0.65, step=0.05, **labeled("opacity"))
            choices = [(phrases(name), name) for name in INTERPOLATIONS]
            smooth = dict(value=choices[0][1], min_width=200, **labeled("interpolation"))
            controls["interpolation"] = gr.Radio(choices, **smooth)
        with gr.Column(visible=bool(vits)):
            hint = phrases("rollout_hint")
            controls["heads"] = gr.Radio(heads, value="mean", info=hint, **labeled("heads"))
            with gr.Row():
                hint = dict(info=phrases("patch_hint"), scale=4, min_width=320)
                controls["query"] = gr.Radio(queries, value="whole", **hint, **labeled("query"))
                number = dict(value=1, minimum=1, precision=0, min_width=120)
                controls["row"] = gr.Number(**number, **labeled("row"))
                controls["column"] = gr.Number(**number, **labeled("column"))
        controls["rank"] = gr.Radio(ranks, value=0, visible=bool(cams), **labeled("rank"))
        return controls

    def connect(self):
        """Connect the events. Only `show` runs the models; all events share one queue."""
        controls = self.controls
        options = dict(concurrency_id="model", api_visibility="private", show_progress="hidden")
        inputs = {self.explanations, *controls.values()}
        outputs = {*self.drawings, *self.captions}
        # preprocess=False: `decode` opens the file; gradio would accept more formats.
        gr.on(
            [self.picture.change, self.resolution.input],
            self.show,
            {self.picture, self.resolution},
            {self.explanations, self.status, *self.tops, *self.lenses},
            preprocess=False,
            **options | dict(show_progress="minimal"),
        ).then(self.redraw, inputs, outputs, **options)
        options["trigger_mode"] = "always_last"
        patch = {controls[name] for name in ("query", "row", "column")}
        for name, control in controls.items():
            if name in ("row", "column"):
                control.input(self.choose_patch, inputs, outputs | patch, **options)
            else:
                control.input(self.redraw, inputs, outputs, **options)
        for model, drawing in zip(self.models, self.drawings, strict=True):
            if not model.is_cnn:
                drawing.select(self.click, inputs, outputs | patch, **options)

    def show(self, values):
        """Run the models on the image at the selected resolution."""
        empty = dict.fromkeys([*self.tops, *self.lenses], "") | {self.explanations: None}
        if not values[self.picture]:
            return empty | {self.status: panel.note("status", self.phrases("waiting"))}
        path = values[self.picture]["path"]
        models = self.resolutions[values[self.resolution]]
        try:
            images = [self.read(path, 1 if model.channels == 1 else 3) for model in models]
            pairs = zip(models, images, strict=True)
            explanations = [explain.explain(*pair, self.phrases.language) for pair in pairs]
        except decode.DecodeError as error:
            message = self.phrases("broken", cause=error)
            return empty | {self.status: panel.note("alert", message)}
        tables = {}
        for i, pair in enumerate(zip(models, explanations, strict=True)):
            tables[self.tops[i]] = panel.table(self.phrases, *pair)
            tables[self.lenses[i]] = panel.lens_table(self.phrases, *pair)
        return tables | {self.explanations: explanations, self.status: ""}

    def read(self, path, channels):
        """Decode an uploaded file to uint8 [h, w, channels]. Raises decode.DecodeError."""
        path = Path(path).resolve()
        # Gradio checks this only if the file in the request has a "meta" field.
        if not path.is_relative_to(Path(self.picture.GRADIO_CACHE).resolve()):
            raise decode.DecodeError(f"{path.name}: not an uploaded file")
        return decode.decode(
            path,
            channels,
            name=path.name,
            max_pixels=pictures.MAX_PIXELS,
            formats=decode.UPLOAD_FORMATS,
        )

    def redraw(self, values):
        """Redraw the maps for the current values of the controls."""
        explanations = values[self.explanations]
        if not explanations:
            return dict.fromkeys(self.drawings) | dict.fromkeys(self.captions, "")
        controls = panel.Controls(
            **{name: values[control] for name, control in self.controls.items()}
        )
        grid = finest_grid(explanations)
        changes = {}
        for i, explanation in enumerate(explanations):
            model = self.models[i]
            drawing, caption = panel.drawing(self.phrases, model, explanation, controls, grid)
            changes[self.drawings[i]] = gr.update(value=drawing, alt_text=caption)
            changes[self.captions[i]] = f"<p>{escape(caption)}</p>"
        return changes

    def choose_patch(self, values):
        """Redraw with the patch at the entered row and column as the query."""
        choice = {self.controls["query"]: "patch"}
        return choice | self.redraw(values | choice)

    def click(self, values, event: gr.SelectData):
        """Redraw with the clicked patch as the query."""
        explanations = values[self.explanations]
        if not explanations:
            return {}
        names = [drawing.elem_id for drawing in self.drawings]  # event.target is a copy
        explanation = explanations[names.index(event.target.elem_id)]
        side = explain.draw(explanation.view, np.ones((1, 1)), 0).shape[0]
        patch = explain.patch_at(event.index, side, explanation.grid)
        row, column = explain.convert_patch(patch, explanation.grid, finest_grid(explanations))
        choice = {self.controls["row"]: row + 1, self.controls["column"]: column + 1}
        return choice | self.choose_patch(values | choice)


def finest_grid(explanations):
    """Return the finest grid, in which row and column are entered; None without a ViT."""
    return max((x.grid for x in explanations if x.grid), default=None)
