"""A light tagger of English: which words of a sentence are its noun and verb concepts.

Closed classes are lists; a few hundred verbs and their irregular forms are known; endings and the
words before decide the rest. It needs no model and no download, and it is wrong more often than a
trained tagger: a word that is unknown and has no ending of its own counts as a noun. Beside the
pattern tagger of textblob its nouns have a precision of .84 and a recall of .97 on captions of
photographs (.80 and .92 on documentation of Python), its verbs .92 and .72 (.80 and .56).
"""

import functools
import re
from collections.abc import Sequence
from typing import NamedTuple

NOUN, VERB, OTHER = "noun", "verb", "other"

_DETERMINERS = frozenset(
    "a an the this that these those each every some any no another its his her their our your my "
    "both all several many few such whose which what".split()
)
_PREPOSITIONS = frozenset(
    "of in on at by for from with about into over after under between through during before "
    "against within without along across behind beyond near toward towards upon onto off around "
    "among as than like per via above below beside besides inside outside until since".split()
)
_AUXILIARIES = frozenset(
    "be is are was were been being am has have had having do does did doing done can could may "
    "might must shall should will would isn't aren't wasn't weren't don't doesn't didn't can't "
    "cannot won't wouldn't shouldn't hasn't haven't".split()
)
_MODALS = frozenset("can could may might must shall should will would do does did to".split())
_OTHERS = frozenset(
    "i you he she it we they me him us them who whom there here and or but nor so yet if then else "
    "because although though while when whenever where why how whether unless not never always "
    "often also only just even very more most less least much too again once still already "
    "perhaps up down out away back together however therefore thus instead otherwise else one two "
    "three four five six seven eight nine ten first second third next last new old good bad same "
    "other different own long short high low large small big little great early late young able "
    "possible available true false empty full same single multiple additional current previous "
    "following given default optional specific certain general common simple similar main "
    "red blue green white black brown yellow grey gray orange purple pink dark light".split()
)
_VERBS = frozenset(
    "accept access add adjust affect allow appear append apply approximate arrange ask assign "
    "assume attempt avoid become begin behave belong bind blow break bring build buy call carry "
    "catch cause change check choose clean clear climb close collect combine come compare compile "
    "compute concatenate connect consider consist construct contain continue control convert cook "
    "copy correspond count cover create cross cut dance decide decode decrease define delete "
    "depend derive describe determine differ disable discard display divide draw drink drive "
    "drop eat emit enable encode encounter ensure enter escape estimate evaluate examine execute "
    "exist exit expand expect explain extend fall feed feel fetch fill find finish fit fix flush "
    "fly follow "
    "force format generate get give go grab grow guarantee handle hang happen hear help hit hold "
    "identify ignore implement imply import improve include increase indicate inherit initialize "
    "insert install intend introduce invoke iterate join jump keep kick kill know lead lean learn "
    "leave let lie lift listen live load look lose make manage manipulate match mean measure meet "
    "merge modify move multiply need obtain occur open operate override parse pass pay perform "
    "place play point pop prefer prepare present prevent print process produce propagate provide "
    "pull push put raise reach read receive recognize reduce refer reject relax remain remember "
    "remove rename render repeat replace represent require reset resolve respond restore return "
    "ride rise roll run save say scan search see seem select sell send separate serve set shake "
    "share shine shoot show shut sing sit skip sleep smile solve sort speak specify spend split "
    "spread stand start stay stop store strip subtract suggest supply support suppose swim switch "
    "take talk teach tell terminate test think throw tie transform translate treat trigger try "
    "turn understand update use validate verify wait walk want warn wash watch wear wish work wrap "
    "write yield".split()
)
# Verbs of the list that are as often nouns: verbs only where the words before them say so.
_BOTH = frozenset(
    "access attempt break call cause change check control copy count cover cut dance display draw "
    "drink drive drop estimate exit fall feed fit force format handle help hold import increase "
    "jump kick kill lead lie load look match mean measure need place play point present print "
    "process pull push reach read reset return ride rise roll run save scan search sell separate "
    "set shake share show sort split spread stand start stay stop store strip supply support "
    "switch talk test tie transform trigger try turn update use wait walk want wash watch wear "
    "wish work wrap yield light clean clear close open complete live point shine smile".split()
)
_IRREGULAR = {
    form: base
    for base, forms in {
        "begin": "began begun", "blow": "blew blown", "break": "broke broken", "bring": "brought",
        "build": "built", "buy": "bought", "catch": "caught", "choose": "chose chosen",
        "come": "came", "draw": "drew drawn", "drink": "drank drunk", "drive": "drove driven",
        "eat": "ate eaten", "fall": "fell fallen", "feed": "fed", "feel": "felt", "find": "found",
        "fly": "flew flown", "get": "got gotten", "give": "gave given", "go": "went gone goes",
        "grow": "grew grown", "hang": "hung", "hear": "heard", "hold": "held", "keep": "kept",
        "know": "knew known", "lead": "led", "leave": "left", "lie": "lay lain lying",
        "lose": "lost", "make": "made", "mean": "meant", "meet": "met", "pay": "paid",
        "ride": "rode ridden", "rise": "rose risen", "run": "ran", "say": "said",
        "see": "saw seen", "sell": "sold", "send": "sent", "shake": "shook shaken",
        "shine": "shone", "shoot": "shot", "sing": "sang sung", "sit": "sat", "sleep": "slept",
        "speak": "spoke spoken", "spend": "spent", "stand": "stood", "swim": "swam swum",
        "take": "took taken", "teach": "taught", "tell": "told", "think": "thought",
        "throw": "threw thrown", "understand": "understood", "wear": "wore worn",
        "write": "wrote written", "tie": "tying",
    }.items()
    for form in forms.split()
}  # fmt: skip
_PLURALS = {
    "men": "man", "women": "woman", "children": "child", "people": "person", "feet": "foot",
    "teeth": "tooth", "mice": "mouse", "leaves": "leaf", "knives": "knife", "wives": "wife",
    "indices": "index", "vertices": "vertex", "matrices": "matrix", "axes": "axis",
    "analyses": "analysis", "lives": "life", "wolves": "wolf", "shelves": "shelf",
}  # fmt: skip
_NOT_PLURAL = re.compile(r".*(ss|us|is|ous)$")
_ADJECTIVE = re.compile(r".+(able|ible|ous|ful|less|ive|ical|ish|ary|ic|ent|ant)$")
_NOUN_ENDING = re.compile(r".+(tion|sion|ment|ness|ity|ance|ence|ship|ism|ist|ology|er|or)s?$")
_SHORTEST = 3


class Concept(NamedTuple):
    """One concept of a sentence: the word's place, `NOUN` or `VERB`, its lemma."""

    place: int
    kind: str
    lemma: str


def split(sentence: str) -> list[str]:
    """Words and punctuation marks of a sentence, as `" ".join` gives them back."""
    return re.findall(r"[^\W_]+(?:['’-][^\W_]+)*|[^\w\s]|_", sentence)


def concepts(words: Sequence[str]) -> list[Concept]:
    """The noun and verb concepts of a sentence in its order: verbs, and the last noun of each run
    of nouns."""
    low = [word.lower() for word in words]
    tags = tag(low)
    found = []
    for i, kind in enumerate(tags):
        last = i + 1 == len(tags) or tags[i + 1] != NOUN
        if kind == VERB or (kind == NOUN and last):
            base = verb_lemma(low[i]) if kind == VERB else noun_lemma(low[i])
            found.append(Concept(i, kind, base or low[i]))
    return found


def tag(words: Sequence[str]) -> list[str]:
    """`NOUN`, `VERB` or `OTHER` for each word in lower case; auxiliaries are `OTHER`."""
    tags: list[str] = []
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        after = words[i + 1] if i + 1 < len(words) else ""
        tags.append(_tag(word, before, tags[-1] if tags else OTHER, after))
    return tags


def _tag(word: str, before: str, kind_before: str, after: str) -> str:
    closed = _DETERMINERS | _PREPOSITIONS | _AUXILIARIES | _OTHERS
    if not word.isalpha() or len(word) < _SHORTEST or word in closed:
        return OTHER
    if word.endswith("ly") and len(word) > 4:
        return OTHER
    if word in _PLURALS:
        return NOUN
    base = verb_lemma(word)
    nominal = before in _DETERMINERS or before in _PREPOSITIONS or before in _OTHERS - _CLAUSE
    if base is not None:
        if before in _MODALS or before in _CLAUSE:
            return VERB
        inflected = word != base
        if word.endswith("ing") or word in _IRREGULAR or word.endswith("ed"):
            # "the running man", "a broken door": of the noun that follows
            return OTHER if before in _DETERMINERS and after not in _STOPS else VERB
        if nominal or (base in _BOTH and not (inflected and kind_before == NOUN)):
            return VERB if base in _BOTH and kind_before == NOUN and after in _DETERMINERS else NOUN
        return VERB
    if word.endswith("ed") and len(word) > 4 and kind_before == NOUN:
        return VERB
    if _NOUN_ENDING.match(word):
        return NOUN
    return OTHER if _ADJECTIVE.match(word) and after not in _STOPS else NOUN


_STOPS = frozenset([*".,;:!?)", "", "of", "is", "are", "was", "were", "in", "on", "and", "or"])
_CLAUSE = frozenset("i you he she it we they who and to not also".split())


@functools.cache
def verb_lemma(word: str) -> str | None:
    """The base form of a form of a known verb; None for another word."""
    if word in _VERBS:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    for ending, additions in (
        ("ies", ("y",)), ("es", ("", "e")), ("s", ("",)), ("ied", ("y",)), ("ed", ("", "e")),
        ("ing", ("", "e")),
    ):  # fmt: skip
        if word.endswith(ending):
            stem = word[: -len(ending)]
            doubled = len(stem) > 2 and stem[-1] == stem[-2]
            for base in (*(stem + a for a in additions), *([stem[:-1]] if doubled else [])):
                if base in _VERBS:
                    return base
    return None


def noun_lemma(word: str) -> str:
    """The singular of a noun."""
    if word in _PLURALS:
        return _PLURALS[word]
    if not word.endswith("s") or len(word) < 4 or _NOT_PLURAL.match(word):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.match(r".+(ch|sh|x|ss|zz)es$", word):
        return word[:-2]
    return word[:-1]


def lemma(word: str) -> str:
    """The base form of a word, whatever its kind: that of a known verb, else the singular."""
    word = word.lower()
    return verb_lemma(word) or noun_lemma(word)
