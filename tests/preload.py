"""What a run imports and reads late, ahead of the fork of many processes that each make a run."""

from tests import test_faults

test_faults.narrativeqa_eval.TASK.check_scores()
