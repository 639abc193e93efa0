import numpy as np
import pytest
from PIL import Image


def draw_sample(number, size=(96, 64)):
    """An image (W, H) of sky, ground and a box, and its classes 0, 1, 2 with a void frame."""
    width, height = size
    rng = np.random.default_rng(number)
    truth = np.zeros((height, width), np.uint8)
    truth[height // 2 :] = 1
    left = int(rng.integers(10, width // 2))
    truth[height // 4 : height * 3 // 4, left : left + width // 3] = 2
    colours = np.array([(90, 150, 230), (60, 140, 50), (200, 60, 40)], np.uint8)
    picture = colours[truth] + rng.integers(0, 12, (height, width, 3)).astype(np.uint8)
    truth[:2] = 255
    return picture, truth


@pytest.fixture
def labelled(tmp_path):
    """A folder of three labelled images, in the form of any other data set."""
    folder = tmp_path / "labelled"
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number in range(3):
        picture, truth = draw_sample(number)
        Image.fromarray(picture).save(folder / "images" / f"photo{number}.png")
        Image.fromarray(truth).save(folder / "labels" / f"photo{number}.png")
    (folder / "README.txt").write_text("Three pictures.\nClasses: 0=sky, 1=ground, 2=red box, 255=unlabelled.\n")
    return folder
