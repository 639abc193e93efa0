import os

os.environ["FIFTYONE_DO_NOT_TRACK"] = "true"


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore")  # FiftyOne's own: it uses deprecated parts of its packages
