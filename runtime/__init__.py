"""Images → masks, from a bundle, without PyTorch.

from diffseg import Segmenter

segmenter = Segmenter.load("tiny")
result = segmenter("photo.jpg")
result.overlay().save("masks.png")
"""

from diffseg.segmentation import MergeSettings, Segment, Segmentation
from diffseg.segmenter import Segmenter

__all__ = ["MergeSettings", "Segment", "Segmentation", "Segmenter"]
