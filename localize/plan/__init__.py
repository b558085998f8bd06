"""Plans, their records and tables, memory budgets and forecasts: everything that was decided, as data. No tensors.

May import ``passes`` and the files that anyone may import (text, files, version, models).
"""
