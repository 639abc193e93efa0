import pytest
from PIL import Image

from tests.labelled import draw_sample


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
