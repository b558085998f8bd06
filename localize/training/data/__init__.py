"""Images for training: sources of images, stores that deliver them, and batches that a resumed run draws again.

May import the same rooms as ``localize.training``.
"""
