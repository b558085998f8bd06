"""Write a localized model as one HTML page, which opens from disk and loads nothing; ``assets`` holds its scripts.

May import what ``localize.export`` may import, and ``drawing.fold``.
"""
