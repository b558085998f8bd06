"""The page: one HTML file that opens from disk and loads nothing.

May import what ``localize.export`` may import.
"""
