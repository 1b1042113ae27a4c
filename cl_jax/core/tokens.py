"""Token numbers that mean the same in every vocabulary of this package, and the file of BERT's."""

from pathlib import Path

PAD, UNKNOWN, START, END, MASK = range(5)
SPECIAL = 5  # the first number of a piece of text
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # what BERT calls them


def pieces_of(path: str | Path) -> list[str]:
    """The pieces of BERT's vocab.txt, one a line.

    Raises:
      ValueError: bytes that are no text.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8: {error}; expected BERT's vocab.txt, a piece a line."
        ) from None
    # Not `splitlines`: a piece may be a separator of Unicode, such as U+2028.
    return text.removesuffix("\n").split("\n") if text else []
