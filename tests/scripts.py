"""The evaluation scripts, as they lie in the project's folder."""

import importlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = {path.stem: importlib.import_module(path.stem) for path in sorted(ROOT.glob("*_eval.py"))}
