"""Images → masks, from a bundle, without PyTorch.

from diffseg.runtime import Segmenter

segmenter = Segmenter.load("tiny")
result = segmenter("photo.jpg")
result.overlay().save("masks.png")
"""

from diffseg.runtime.segmentation import MergeSettings, Segment, Segmentation
from diffseg.runtime.segmenter import Segmenter

__all__ = ["MergeSettings", "Segment", "Segmentation", "Segmenter"]
