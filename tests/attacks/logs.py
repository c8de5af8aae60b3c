"""The parts of a log of answers."""

import io

from PIL import Image


def png(image):
    held = io.BytesIO()
    Image.fromarray(image.squeeze(0).numpy()).save(held, "PNG")
    return held.getvalue()


def columns(answers, name="p{}"):
    return {name.format(number): answers[:, number].numpy() for number in range(answers.shape[1])}
