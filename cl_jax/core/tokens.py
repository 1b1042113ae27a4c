"""Token numbers that mean the same in every vocabulary of this package."""

PAD, UNKNOWN, START, END, MASK = range(5)
SPECIAL = 5  # the first number of a piece of text
MARKS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # what BERT calls them
