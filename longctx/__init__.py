"""The harness that the evaluation scripts share: settings, models, data, prompts, runs, results."""
