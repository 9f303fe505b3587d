"""TensorBoard event files in workdir/tb. Show them with `tensorboard --logdir=WORKDIR/tb`."""

import contextlib
import io
import time

from PIL import Image

# Not SummaryWriter: its thread dies if the disk is full, and its queue then blocks forever.
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.summary import hparams

from vit_jax.workdir import storage


def make(workdir, config, start):
    del config
    return TensorBoard(workdir, start)


class TensorBoard:
    """Writer of one event file per start of the run."""

    def __init__(self, workdir, start):
        if not storage.is_bucket(workdir):
            (workdir / "tb").mkdir(exist_ok=True)
        # File names have a resolution of one second; without the suffix, a quick restart would
        # overwrite the previous file.
        self.events = EventsWriter(str(workdir / "tb" / "events"), f".{time.time_ns()}")
        # TensorBoard hides events of earlier starts from this step onwards.
        self._write(start + 1 if start else 0, session_log={"status": "START"})

    def write(self, step, numbers):
        values = [{"tag": name, "simple_value": value} for name, value in numbers.items()]
        self._write(step, summary={"value": values})

    def image(self, step, tag, array):
        height, width, channels = array.shape
        png = io.BytesIO()
        Image.fromarray(array[:, :, 0] if channels == 1 else array).save(png, "png")
        image = dict(height=height, width=width, colorspace=channels)
        image["encoded_image_string"] = png.getvalue()
        self._write(step, summary={"value": [{"tag": tag, "image": image}]})

    def hparams(self, values, metrics):
        plain = (bool, int, float, str, type(None))
        values = {name: x if isinstance(x, plain) else str(x) for name, x in values.items()}
        for summary in hparams(values, metrics):
            self._write(0, summary=summary)

    def flush(self):
        self.events.flush()

    def close(self):
        try:
            self.events.close()
        finally:
            # On a full disk, flushing fails and the file stays open. Python 3.13 would report that
            # again when the file is deleted.
            with contextlib.suppress(OSError):
                self.events._py_recordio_writer.close()

    def _write(self, step, **content):
        self.events.write_event(Event(wall_time=time.time(), step=step, **content))
