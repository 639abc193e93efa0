"""Masks in annotation tools: CVAT, Label Studio and FiftyOne."""
