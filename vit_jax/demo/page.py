"""The components of the page and their events, in gradio."""

from html import escape
from pathlib import Path

import gradio as gr
import numpy as np

from vit_jax.data import decode, pictures
from vit_jax.demo import explain, panel

MAX_WAITING = 16  # requests in the queue
SESSION_SECONDS = 3600
DELETE_FILES = (60, 600)  # seconds: how often, and how old they are then


class Page:
    """The page of one model, or of two side by side.

    Args:
      models: `inference.LoadedModel`s.
      say: `figures.catalog.Catalog`.
      max_file_bytes: of an upload, as the page says.
    """

    def __init__(self, models, say, max_file_bytes):
        self.models = models
        self.say = say
        self.max_file_bytes = max_file_bytes
        self.resolutions = explain.resolutions(models)
        self.vits = [model for model in models if not model.is_cnn]
        self.cams = [model for model in models if model.is_cnn and model.module.head is not None]

    def build(self):
        """The page as gr.Blocks."""
        say = self.say
        options = dict(analytics_enabled=False, delete_cache=DELETE_FILES)
        with gr.Blocks(title=say("title"), **options) as blocks:
            gr.HTML(f"<h1>{say('title')}</h1><p>{say('intro')}</p>", elem_id="intro")
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

    def build_input(self):
        say = self.say
        self.picture = gr.Image(
            label=say("picture"),
            placeholder=say("drop"),
            sources=["upload", "clipboard"],
            buttons=[],
            height=240,
            elem_id="picture",
        )
        self.status = gr.HTML(panel.note("status", say("waiting")), elem_id="status")
        self.tops = [gr.HTML("", elem_id=f"top{i}") for i in range(len(self.models))]
        sides = [dict.fromkeys(model.image for model in row) for row in self.resolutions]
        labels = [" / ".join(f"{side} × {side}" for side in row) for row in sides]
        self.resolution = gr.Radio(
            [(label, i) for i, label in enumerate(labels)],
            value=0,
            label=say("resolution"),
            visible=len(labels) > 1,
            elem_id="resolution",
        )
        limits = dict(megabytes=self.max_file_bytes >> 20, megapixels=pictures.MAX_PIXELS // 10**6)
        gr.HTML(f"<small>{say('limits', **limits)}</small>")

    def build_drawing(self, i):
        """The drawing of a model and the caption under it."""
        model = self.models[i]
        with gr.Column(min_width=240, visible=model in self.vits + self.cams):
            kind = self.say("gradcam" if model.is_cnn else "attention")
            drawing = gr.Image(
                label=f"{kind}: {panel.title(self.say, model)}",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id=f"drawing{i}",
            )
            return drawing, gr.HTML("", elem_id=f"caption{i}")

    def build_dials(self):
        """The components of `panel.Dials`, by name."""
        say, vits = self.say, self.vits
        depth = max((model.depth for model in vits + self.cams), default=1)
        num_heads = max((model.num_heads for model in vits), default=0)
        heads = [(say("mean"), "mean"), (say("rollout"), "rollout")]
        heads += [(str(i), i) for i in range(num_heads)]
        if vits and self.cams:
            layer = say("layer_or_stage")
        else:
            layer = say("layer" if vits else "stage")
        tokens = {bool(model.prefix) for model in vits}
        whole = "either" if len(tokens) > 1 else "cls" if True in tokens else "average"
        number = dict(value=1, minimum=1, precision=0, step=1, min_width=120)
        dials = {}
        with gr.Row():
            dials["layer"] = gr.Slider(1, depth, depth, step=1, label=layer, elem_id="layer")
            dials["opacity"] = gr.Slider(
                0, 1, panel.Dials().opacity, step=0.05, label=say("opacity"), elem_id="opacity"
            )
        dials["heads"] = gr.Radio(
            heads,
            value="mean",
            label=say("heads"),
            info=say("rollout_hint"),
            visible=bool(vits),
            elem_id="heads",
        )
        with gr.Row(visible=bool(vits)):
            dials["query"] = gr.Radio(
                [(say(whole), "whole"), (say("patch"), "patch")],
                value="whole",
                label=say("query"),
                info=say("patch_hint"),
                elem_id="query",
                scale=4,
            )
            dials["row"] = gr.Number(label=say("row"), elem_id="row", **number)
            dials["column"] = gr.Number(label=say("column"), elem_id="column", **number)
        dials["rank"] = gr.Radio(
            [(say("rank", rank=i + 1), i) for i in range(explain.TOP)],
            value=0,
            label=say("explained"),
            visible=bool(self.cams),
            elem_id="rank",
        )
        return dials

    def connect(self):
        """Events. Only `show` runs the models; all events wait in one queue."""
        dials = self.dials
        options = dict(concurrency_id="model", api_visibility="private", show_progress="hidden")
        chosen = {self.found, *dials.values()}
        drawn = {*self.drawings, *self.captions}
        # preprocess=False: gradio checks where the file lies, but only `decode` opens it.
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
        others = set(dials.values()) - {dials["row"], dials["column"]}
        gr.on([dial.input for dial in others], self.redraw, chosen, drawn, **options)
        events = [dials["row"].input, dials["column"].input]
        gr.on(events, self.choose_patch, chosen, drawn | patch, **options)
        vits = [i for i, model in enumerate(self.models) if model in self.vits]
        clicks = [self.drawings[i].select for i in vits]
        if clicks:
            gr.on(clicks, self.click, chosen, drawn | patch, **options)

    def show(self, values):
        """Explain the picture at the resolution."""
        nothing = dict.fromkeys(self.tops, "") | {self.found: None}
        file = values[self.picture]
        if not file:
            return nothing | {self.status: panel.note("status", self.say("waiting"))}
        models = self.resolutions[values[self.resolution]]
        try:
            found = [explain.explain(m, read(file["path"], m), self.say.language) for m in models]
        except decode.DecodeError as error:
            message = self.say("broken", cause=error)
            return nothing | {self.status: panel.note("alert", message)}
        rows = zip(self.tops, models, found, strict=True)
        tables = {top: panel.table(self.say, model, one) for top, model, one in rows}
        return tables | {self.found: found, self.status: ""}

    def redraw(self, values):
        """Drawings and captions as the dials say."""
        found = values[self.found]
        if not found:
            return dict.fromkeys(self.drawings) | dict.fromkeys(self.captions, "")
        dials = panel.Dials(**{name: values[dial] for name, dial in self.dials.items()})
        grid = finest_grid(found)
        changes = {}
        for i, one in enumerate(found):
            drawing, caption = panel.drawing(self.say, self.models[i], one, dials, grid)
            changes[self.drawings[i]] = gr.update(value=drawing, alt_text=caption)
            changes[self.captions[i]] = f"<p>{escape(caption)}</p>"
        return changes

    def choose_patch(self, values):
        """Redraw for a row and column: whoever names a patch wants its attention."""
        choice = {self.dials["query"]: "patch"}
        return choice | self.redraw(values | choice)

    def click(self, values, event: gr.SelectData):
        """Redraw for the patch that was clicked on."""
        found = values[self.found]
        if not found:
            return {}
        one = found[self.drawings.index(event.target)]
        side = explain.draw(one.view, np.ones((1, 1)), 0).shape[0]
        patch = explain.patch_at(event.index, side, one.grid)
        row, column = explain.convert_patch(patch, one.grid, finest_grid(found))
        choice = {self.dials["row"]: row + 1, self.dials["column"]: column + 1}
        return choice | self.choose_patch(values | choice)


def read(path, model):
    """An uploaded file -> uint8 [h, w, c]. Raises decode.DecodeError."""
    channels = 1 if model.channels == 1 else 3
    limit = pictures.MAX_PIXELS
    return decode.decode(path, channels, name=Path(path).name, max_pixels=limit)


def finest_grid(found):
    """The grid with the most patches, in which the page counts rows and columns; None: no ViT."""
    return max((one.grid for one in found if one.grid), default=None)
