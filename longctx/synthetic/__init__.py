"""Data that the project writes itself, in the schemas of the data sets, of any length.

All is decided by the seed and the record's number; question and answer do not depend on the
length, the answer stands at a known depth, and the question alone does not give it away.
"""

from longctx.synthetic._four_choices import four_choices
from longctx.synthetic._ruler import RULER_TASKS, ruler
from longctx.synthetic._stories import pass_keys, stories
from longctx.synthetic._two_hop import two_hop

__all__ = [
    "DATASET_IDS",
    "RULER_TASKS",
    "four_choices",
    "pass_keys",
    "ruler",
    "stories",
    "two_hop",
]

# The values of DATASET_ID that stand for such data.
DATASET_IDS = ("synthetic", "synthetic-passkey")
