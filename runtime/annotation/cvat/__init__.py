"""Functions for CVAT's agents: `detector` annotates whole images, `interactor` answers clicks.

    cvat-cli function create-native "DiffSeg" --function-module diffseg.annotation.cvat.detector
    cvat-cli function run-agent ID --function-module diffseg.annotation.cvat.detector

Both modules have a `create`, whose arguments `cvat-cli` takes as `-p NAME=TYPE:VALUE`. They need the extra `cvat`.
"""
