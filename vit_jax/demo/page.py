"""The components of the page, and what happens when they are used, in gradio."""

from html import escape
from pathlib import Path

import gradio as gr
import numpy as np

from vit_jax.data import decode
from vit_jax.demo import panel, seen

QUEUE, SESSIONS = 16, 8  # requests that wait; sessions whose pictures are remembered
FILES = (60, 600)  # seconds: how often old files are looked for, and how old they get
FORGET = 3600  # seconds after which a session's pictures go


class Page:
    """The page of one model, or of two side by side. say: `words.Words`."""

    def __init__(self, models, say):
        self.models, self.say = models, say
        self.sides = seen.sides(models)
        self.vits = [model for model in models if not model.cnn]
        self.mapped = [model for model in models if not model.cnn or model.names]

    def build(self):
        """-> gr.Blocks"""
        say = self.say
        with gr.Blocks(title=say("title"), analytics_enabled=False, delete_cache=FILES) as blocks:
            gr.HTML(f"<h1>{say('title')}</h1><p>{say('intro')}</p>", elem_id="intro")
            self.memory = gr.State({}, time_to_live=FORGET)
            with gr.Row(equal_height=False):
                with gr.Column(scale=2, min_width=280):
                    self.build_input()
                with gr.Column(scale=1 + 2 * len(self.models), min_width=320):
                    with gr.Row(equal_height=False):
                        self.drawings, self.captions = zip(
                            *(self.build_drawing(i) for i in range(len(self.models))), strict=True
                        )
                    with gr.Group(visible=bool(self.mapped)):
                        self.build_dials()
            self.connect()
        blocks.state_session_capacity = SESSIONS
        return blocks.queue(max_size=QUEUE, default_concurrency_limit=1, api_open=False)

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
        keep_path(self.picture)
        self.status = gr.HTML(panel.note(say, "waiting"), elem_id="status")
        self.tops = [gr.HTML("", elem_id=f"top{i}") for i in range(len(self.models))]
        labels = [" / ".join(dict.fromkeys(f"{s} × {s}" for s in row)) for row in self.sides]
        self.resolution = gr.Radio(
            [(label, i) for i, label in enumerate(labels)],
            value=0,
            label=say("resolution"),
            visible=len(labels) > 1,
            elem_id="resolution",
        )
        limits = dict(megabytes=seen.MAX_FILE >> 20, megapixels=seen.MAX_PIXELS // 10**6)
        gr.HTML(f"<small>{say('limits', **limits)}</small>")

    def build_drawing(self, i):
        model = self.models[i]
        with gr.Column(min_width=240, visible=model in self.mapped):
            kind = self.say("gradcam" if model.cnn else "attention")
            drawing = gr.Image(
                label=f"{kind}: {panel.title(self.say, model)}",
                format="png",
                interactive=False,
                buttons=["download", "fullscreen"],
                elem_id=f"drawing{i}",
            )
            return drawing, gr.HTML("", elem_id=f"caption{i}")

    def build_dials(self):
        say, vits = self.say, self.vits
        depth = max((model.depth for model in self.mapped), default=1)
        last = max((model.heads for model in vits), default=1) - 1
        tokens = {bool(model.prefix) for model in vits}
        kind = "layer_or_stage" if len(self.mapped) > len(vits) else "layer"
        kind = kind if vits else "stage"
        whole = "either" if len(tokens) > 1 else "cls" if True in tokens else "average"
        with gr.Row():
            self.layer = slider(1, depth, depth, say(kind), "layer")
            self.strength = gr.Slider(
                0, 1, panel.Dials().strength, step=0.05, label=say("strength"), elem_id="strength"
            )
        with gr.Row(visible=bool(vits)):
            self.heads = gr.Radio(
                [(say(word), word) for word in ("mean", "one", "rollout")],
                value="mean",
                label=say("heads"),
                info=say("rollout_hint"),
                elem_id="heads",
                scale=2,
            )
            self.head = slider(0, last, 0, say("head"), "head")
        with gr.Row(visible=bool(vits)):
            self.whose = gr.Radio(
                [(say(whole), "whole"), (say("patch"), "patch")],
                value="whole",
                label=say("whose"),
                info=say("patch_hint"),
                elem_id="whose",
                scale=4,
            )
            numbers = dict(value=1, minimum=1, precision=0, step=1, min_width=120)
            self.row = gr.Number(label=say("row"), elem_id="row", **numbers)
            self.column = gr.Number(label=say("column"), elem_id="column", **numbers)
        self.rank = gr.Radio(
            [(say("rank", rank=i + 1), i) for i in range(seen.TOP)],
            value=0,
            label=say("explained"),
            visible=len(self.mapped) > len(vits),
            elem_id="rank",
        )

    def connect(self):
        """Events; all that ask the model wait in one line."""
        options = dict(concurrency_id="model", api_visibility="private", show_progress="hidden")
        drawn = {*self.drawings, *self.captions}
        free = {self.layer, self.strength, self.heads, self.whose, self.rank}
        asked = {self.picture, self.resolution, self.memory, *free}
        asked |= {self.head, self.row, self.column}
        shown = {self.status, self.row, self.column, *self.tops, *drawn}
        sources = [self.picture.change, self.resolution.input]
        gr.on(sources, self.show, asked, shown, **options | dict(show_progress="minimal"))
        options["trigger_mode"] = "always_last"
        gr.on([dial.input for dial in free], self.redraw, asked, drawn, **options)
        # To name a head or a patch is to ask for it.
        for dials, choice in (
            ([self.head], {self.heads: "one"}),
            ([self.row, self.column], {self.whose: "patch"}),
        ):
            gr.on(
                [dial.input for dial in dials],
                lambda values, choice=choice: choice | self.redraw(values | choice),
                asked,
                drawn | set(choice),
                **options,
            )
        for i, drawing in enumerate(self.drawings):
            if not self.models[i].cnn:
                drawing.select(
                    self.picker(i), asked, drawn | {self.whose, self.row, self.column}, **options
                )

    def find(self, values):
        """The picture through the models, remembered or anew; None without picture."""
        path, memory = values[self.picture], values[self.memory]
        if not path:
            return None
        key = (path, int(values[self.resolution]))
        if key not in memory:
            images = [seen.read(path, model.channels) for model in self.models]
            rows = zip(self.models, images, self.sides[key[1]], strict=True)
            seen.remember(memory, key, [seen.see(*row) for row in rows])
        return memory[key]

    def show(self, values):
        """What a new picture or resolution changes."""
        nothing = dict.fromkeys(self.tops, "") | dict.fromkeys(self.drawings)
        nothing |= dict.fromkeys(self.captions, "")
        try:
            found = self.find(values)
        except decode.DecodeError as error:
            return nothing | {self.status: panel.note(self.say, "broken", cause=error)}
        if found is None:
            return nothing | {self.status: panel.note(self.say, "waiting")}
        tops = [panel.table(self.say, *pair) for pair in zip(self.models, found, strict=True)]
        changed = dict(zip(self.tops, tops, strict=True)) | {self.status: ""}
        if self.vits:
            rows, columns = self.finest(found)
            changed |= {self.row: gr.update(maximum=rows), self.column: gr.update(maximum=columns)}
        return changed | self.redraw(values)

    def redraw(self, values):
        """-> drawings and captions by the values of the dials."""
        try:
            found = self.find(values) or []
        except decode.DecodeError:  # deleted meanwhile; `show` says so of a new one
            found = []
        dials = panel.Dials(*(values[getattr(self, name)] for name in panel.Dials._fields))
        changed, grid = {}, found and self.finest(found)
        for i, one in enumerate(found):
            picture, line = panel.drawing(self.say, self.models[i], one, dials, grid)
            changed[self.drawings[i]] = gr.update(value=picture, alt_text=line)
            changed[self.captions[i]] = f"<p>{escape(line)}</p>"
        return changed

    def picker(self, i):
        """The event of a click on drawing i."""

        def pick(values, event: gr.SelectData):
            found = self.find(values)
            if not found:
                return {}
            picture = seen.draw(found[i].view, np.ones((1, 1)), 0)
            patch = seen.place(event.index, picture.shape, found[i].grid)
            patch = seen.convert(patch, found[i].grid, self.finest(found))
            dials = (self.whose, self.row, self.column)
            choice = dict(zip(dials, ("patch", patch[0] + 1, patch[1] + 1), strict=True))
            return choice | self.redraw(values | choice)

        return pick

    def finest(self, found):
        """The grid with the most patches, whose rows and columns the page counts; or None."""
        return max((one.grid for one in found if one.prefix is not None), default=None)


def keep_path(image):
    """The component gives out the path of what was uploaded, unopened: `decode` is what reads it.

    It takes uploads alone. Gradio would fetch an address, and in a mounted page it does not look
    where a path leads. (A subclass would say this more plainly, but gradio writes another file
    beside that of every subclass, for editors.)
    """
    move, folder = image.async_move_resource_to_block_cache, Path(image.GRADIO_CACHE).resolve()

    def check(path):
        if not Path(path).resolve().is_relative_to(folder):
            raise gr.Error("only uploads are taken", print_exception=False)
        return path

    async def move_file(path):
        return await move(path and check(path))

    image.preprocess = lambda payload: payload and check(payload.path)
    image.async_move_resource_to_block_cache = move_file


def slider(low, high, value, label, name):
    """Whole numbers; there is none where there is nothing to choose."""
    found = dict(step=1, label=label, elem_id=name, visible=high > low)
    return gr.Slider(low, max(high, low + 1), value, **found)
