"""What was decided, as data: plans, their records and tables, memory budgets and forecasts. No tensors.

May import ``passes`` and the files that anyone may import (text, files, version, models).
"""
