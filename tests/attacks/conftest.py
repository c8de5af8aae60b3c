"""A theft, and the log of its answers."""

import pandas as pd
import pytest
from logs import png
from toys import CPU, cell

from mad.defenses import Undefended
from mad.deployment import deploy
from mad.storage.store import Store


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """An undefended theft: its outputs, and the images and answers of its transfer set."""
    store, whole = Store(tmp_path_factory.mktemp("outputs")), cell(defense=Undefended())
    api = deploy(whole.victim, store=store).session(50)
    transfer = whole.attack.spend(api, whole.pool.images((1, 8, 8)), whole.adversary(CPU)).transfer
    return store, transfer.images[transfer.rows], transfer.answers


@pytest.fixture
def written(asked, tmp_path):
    """Write the log in one of the ways that it may have; return its path."""
    _, images, answers = asked

    def write(how="bytes", name="log.parquet", **changes):
        (tmp_path / "images").mkdir(exist_ok=True)
        for number, image in enumerate(images):
            (tmp_path / "images" / f"{number}.png").write_bytes(png(image))
        paths, content = [f"images/{number}.png" for number in range(len(images))], list(map(png, images))
        pictures = {
            "bytes": content,
            "paths": paths,
            "structs": [{"bytes": each, "path": None} for each in content],
            "structs of paths": [{"bytes": None, "path": each} for each in paths],
        }
        frame = pd.DataFrame({"image": pictures[how], "answer": answers.numpy().tolist()})
        for column, value in changes.items():
            frame[column] = value
        frame = frame.drop(columns=[column for column, value in changes.items() if value is None])
        frame.to_csv(tmp_path / name, index=False) if name.endswith("csv") else frame.to_parquet(tmp_path / name)
        return str(tmp_path / name)

    return write
