"""
Toyland: endless stories in a small made-up English, and the tests that go with them.

    python -m corpora.toyland data/toyland   write train.txt, val.txt, blimp/, ewok/ and bear/
    python -m corpora.toyland --print=200    show some 200 words, and a minimal pair of each kind
    python -m corpora.toyland --check        show what counting words scores on the minimal pairs

A Teller draws words. A paradigm is a function that asks a Teller for words and returns two
sentences, the second with a mistake. A story is a small cast and a few lines about it, most of
them the good sentences of paradigms: whatever the tests ask about, the stories show.

What the stories never show are the combinations that the tests ask about. A pair of a subject and
a verb belongs to the stories or to the tests, as a hash decides, and so do a noun and "this", a
noun and "there is", and the two sides of a comparison. Nor does it help to know which words are
common: in each paradigm, as many pairs have the more frequent words in the good sentence as in the
bad one.
"""

import hashlib
import json
import math
import random
import re
import sys
from collections import Counter, namedtuple
from functools import cache
from itertools import pairwise
from pathlib import Path

if not __package__:  # `python corpora/toyland.py` would look for our modules beside it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import data
from support.console import run_script
from support.files import replacing
from support.settings import UserError

# -----------------------------------------------------------------------------
# The words

WORDS = {
    "girl": "Mia Nora Ada Lily Emma Rosa Ivy Clara Zoe Ruth",
    "boy": "Tom Max Ben Otto Leo Finn Hugo Sam Paul Jack",
    "woman": "girl queen aunt woman sister princess",
    "man": "boy king uncle man brother prince",
    "person": "child farmer teacher friend sailor thief doctor painter elf miller",
    "animal": "dog mouse cat horse goose fox rabbit wolf bear frog duck goat",
    "thing": "ball knife hat cup book lamp loaf drum key scarf bell letter kite leaf basket box",
    "place": "garden forest house barn market school tower field kitchen castle cellar village",
    "rest": "sleep sing dance laugh run smile swim jump wait sneeze fall wander shout dream cry shiver",
    "handle": "find take break hide paint carry lose steal draw drop throw clean choose push mend shake",
    "meet": "see help follow bite visit chase thank forget greet catch hug tease praise scare feed know",
    "needy": "find take lose choose mend carry throw thank greet tease hug praise scare chase catch",
    "reflect": "wash hurt see hide draw paint help teach praise blame scare know",
    "think": "know remember forget learn notice discover guess hear",
    "say": "say think hope believe dream",
    "alive": "old young kind clever brave hungry tired happy small big quiet lucky careful",
    "lifeless": "red old new small blue big heavy green shiny pretty",
    "adverb": "just often still really always probably",
}
PLURALS = """woman women man men child children thief thieves elf elves mouse mice goose geese wolf wolves
    knife knives loaf loaves scarf scarves leaf leaves"""
PASTS = """sleep slept slept sing sang sung run ran run swim swam swum fall fell fallen find found found
    take took taken break broke broken hide hid hidden lose lost lost steal stole stolen draw drew drawn
    throw threw thrown choose chose chosen shake shook shaken see saw seen bite bit bitten know knew known
    forget forgot forgotten catch caught caught feed fed fed hurt hurt hurt teach taught taught
    hear heard heard say said said think thought thought"""
STATES = "see know forget hear believe".split()  # "is knowing" is not English
DOUBLED = "run swim drop hug forget".split()  # running, dropped

# Short words are met more often than long ones, as in life.
WORDS = {kind: sorted(words.split(), key=len) for kind, words in WORDS.items()}
KIND = {
    word: kind
    for kind in ("girl", "boy", "woman", "man", "person", "animal", "thing")
    for word in WORDS[kind]
}
PLURALS = dict(zip(PLURALS.split()[::2], PLURALS.split()[1::2]))
PASTS = {base: (past, done) for base, past, done in zip(*(PASTS.split()[i::3] for i in range(3)))}

NAMES = WORDS["girl"] + WORDS["boy"]
NAMED = WORDS["woman"] + WORDS["man"]  # nouns with a gender
COMMON = sorted(NAMED + WORDS["person"] + WORDS["animal"], key=len)
AGENTS = sorted(NAMES + COMMON, key=len)
IRREGULAR = [noun for noun in PLURALS if noun in COMMON]
REGULAR = [noun for noun in COMMON if noun not in PLURALS]
THINGS, ODD_THINGS = WORDS["thing"], [noun for noun in WORDS["thing"] if noun in PLURALS]
SELF = {"girl": "herself", "boy": "himself", "woman": "herself", "man": "himself", "animal": "itself"}
DEMONSTRATIVES = ("this", "these", "those", "that")
SHE = {"herself": "she", "himself": "he", "itself": "it", "themselves": "they"}

Verb = namedtuple("Verb", "base s past done ing")  # see sees saw seen seeing


@cache
def plural_of(noun):
    return PLURALS.get(noun) or noun + ("es" if noun[-1] in "sx" else "s")


@cache
def conjugate(base):
    stem = base + base[-1] if base in DOUBLED else base.removesuffix("e")
    regular, s = stem + "ed", base + ("es" if base.endswith(("s", "sh", "ch")) else "s")
    if base.endswith("ry"):
        regular, s = base[:-1] + "ied", base[:-1] + "ies"
    return Verb(base, s, *PASTS.get(base, (regular, regular)), ("see" if base == "see" else stem) + "ing")


@cache
def held_out(*words):
    """True if this combination of words belongs to the tests, as one in five does."""
    return hashlib.sha256(" ".join(words).encode()).digest()[0] % 5 == 0


class Phrase(namedtuple("Phrase", "text noun plural")):
    """A noun phrase: "the old dogs", "dog", True."""

    def __str__(self):
        return self.text

    @property
    def self(self):
        return "themselves" if self.plural else SELF.get(KIND[self.noun])

    @property
    def who(self):  # in a relative clause
        return "that" if KIND[self.noun] == "thing" else "who"

    @property
    def wh(self):  # in a question
        return "what" if KIND[self.noun] == "thing" else "who"


def sentence(text):
    """Capital letter, single blanks, full stop, and "an" where it should be."""
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", " ".join(text.split()))
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?" else ".")


def contrast(frame, good, bad):
    """Two sentences that differ only where the frame has a "_"."""
    return sentence(frame.replace("_", good)), sentence(frame.replace("_", bad))


# -----------------------------------------------------------------------------
# The teller


class Teller:
    """Draws words and phrases. A storyteller avoids held-out combinations, an examiner uses no others."""

    def __init__(self, seed, examiner=False):
        self.random = random.Random(f"toyland {seed}")
        self.examiner = examiner
        self.cast = frozenset()  # the nouns and names of the present story
        self.used = set()  # all combinations ever used

    def chance(self, p):
        return self.random.random() < p

    def pick(self, words):
        """One of the words, the first of which is four times as likely as the last."""
        x = self.random.random()
        return words[int(len(words) * x * (0.4 + 0.6 * x))]

    def any(self, words):
        return words[int(len(words) * self.random.random())]

    def familiar(self, words):
        """A word as from `pick`, after a few tries to find one of the cast."""
        for _ in range(5):
            if (word := self.pick(words)) in self.cast:
                break
        return word

    def allows(self, *combination):
        if held_out(*combination) == self.examiner:
            self.used.add(combination)
            return True
        return False

    def phrase(self, nouns=AGENTS, plural=None, unlike="", plain=False):
        """A noun phrase with a noun that is not `unlike`."""
        while (noun := self.familiar(nouns)) == unlike:
            pass
        if noun[0].isupper():
            return Phrase(noun, noun, False)
        plural = self.chance(0.4) if plural is None else plural
        choices = ("the", "the", "some", "these", "two", "those", "many", "three", "all", "most")
        if not plural:
            choices = ("the", "the", "the", "a", "every", "each", "this", "that")
        determiner = "the" if plain else self.pick(choices)
        if determiner in DEMONSTRATIVES and not self.allows(noun, determiner):
            determiner = "the"
        adjective = "" if plain or self.chance(0.7) else self.adjective(noun)
        word = plural_of(noun) if plural else noun
        return Phrase(f"{determiner} {adjective} {word}", noun, plural)

    def adjective(self, noun):
        return self.pick(WORDS["lifeless" if KIND[noun] == "thing" else "alive"])

    def acts(self, verbs, nouns=AGENTS, plural=None, unlike="", plain=False):
        """A subject and a verb that may go together here."""
        while True:
            subject = self.phrase(nouns, plural, unlike, plain)
            for _ in range(3):
                verb = self.pick(WORDS[verbs])
                if self.allows(subject.noun, verb):
                    return subject, conjugate(verb)

    def also(self, subject, verbs, unlike=None):
        """A further verb for the same subject. IndexError if there is none."""
        allowed = [verb for verb in WORDS[verbs] if held_out(subject.noun, verb) == self.examiner]
        verb = self.pick([verb for verb in allowed if not unlike or verb != unlike.base])
        self.used.add((subject.noun, verb))
        return conjugate(verb)

    def event(self, unlike="", plain=False):
        """Subject, transitive verb, object."""
        verbs, objects = ("meet", AGENTS) if self.chance(0.5) else ("handle", THINGS)
        subject, verb = self.acts(verbs, unlike=unlike, plain=plain)
        return subject, verb, self.phrase(objects, unlike=subject.noun)

    def adverb(self, p=1.0):
        return self.pick(WORDS["adverb"]) if self.chance(p) else ""

    def agreeing(self, verb, again=0.4):
        """The verb in some tense for one and for many: ("has often slept", "have often slept")."""
        adverb = self.adverb(again)
        forms = [
            (f"{adverb} {verb.s}", f"{adverb} {verb.base}"),
            (f"has {adverb} {verb.done}", f"have {adverb} {verb.done}"),
            (f"doesn't {verb.base}", f"don't {verb.base}"),
        ]
        if verb.base not in STATES:
            forms += [(f"is {adverb} {verb.ing}", f"are {adverb} {verb.ing}")]
            forms += [(f"was {adverb} {verb.ing}", f"were {adverb} {verb.ing}")]
        return self.pick(forms)

    def be(self, subject):
        return self.pick(("are", "were") if subject.plural else ("is", "was"))

    def has(self, subject):
        return self.pick(("have" if subject.plural else "has", "had"))

    def does(self, verb, plural=False):
        """The verb in any tense."""
        x = self.random.random()
        if x < 0.35:
            return f"{self.adverb(0.4)} {verb.past}"
        if x < 0.45:
            return f"{self.pick(('will', 'can', 'must'))} {verb.base}"
        if x < 0.5:
            return f"didn't {verb.base}"
        if x < 0.6:
            return f"had {self.adverb(0.4)} {verb.done}"
        return self.agreeing(verb)[plural]

    def where(self, p=0.5):
        """Perhaps a place: "near the barn"."""
        if not self.chance(p):
            return ""
        place = self.familiar(WORDS["place"])
        places = plural_of(place) if self.chance(0.3) else place
        return f"{self.pick(('at', 'in', 'near', 'behind'))} the {places}"


# -----------------------------------------------------------------------------
# The paradigms: each returns a good and a bad sentence. Names as in BLiMP where it has one.


def anaphor_gender_agreement(t):
    """Mia has washed herself. / *Mia has washed himself."""
    she, verb = t.acts("reflect", NAMES + NAMED, plural=False)
    other = "himself" if she.self == "herself" else "herself"
    return contrast(f"{she} {t.does(verb)} _ {t.where()}", she.self, other)


def anaphor_number_agreement(t):
    """The boys near the tower know themselves. / *The boys near the tower know himself."""
    they, verb = t.acts("reflect", NAMED)
    self = SELF[KIND[they.noun]]
    other = self if they.plural else "themselves"
    return contrast(f"{they} {t.where(0.7)} {t.does(verb, they.plural)} _", they.self, other)


def principle_A_c_command(t):
    """The girl who followed Tom hurt herself. / *The girl who followed Tom hurt himself."""
    she, verb = t.acts("reflect", NAMED, plain=True)
    name = t.phrase(WORDS["boy" if KIND[she.noun] == "woman" else "girl"])
    frame = f"{she} who {t.does(t.also(she, 'meet'), she.plural)} {name} {t.does(verb, she.plural)} _"
    return contrast(frame, she.self, name.self)


def principle_A_domain_2(t):
    """Mia said that the king hurt himself. / *Mia said that the king hurt herself."""
    girl, boy = WORDS["girl"] + WORDS["woman"], WORDS["boy"] + WORDS["man"]
    outer, inner = (girl, boy) if t.chance(0.5) else (boy, girl)
    x, says = t.acts("say", outer, plural=False)
    y, verb = t.acts("reflect", inner, plural=False)
    return contrast(f"{x} {says.past} that {y} {t.does(verb)} _", y.self, x.self)


def determiner_noun(t, nouns, adjective=False):
    """A subject, a verb, and an object with this, that, these or those."""
    subject, verb = t.acts("handle" if nouns[0] in THINGS else "meet")
    determiner = t.pick(DEMONSTRATIVES)
    while not t.allows(noun := t.familiar(nouns), determiner) or noun == subject.noun:
        determiner = t.pick(DEMONSTRATIVES)
    plural = determiner in ("these", "those")
    adjective = t.adjective(noun) if adjective else ""
    words = (noun, plural_of(noun))
    frame = f"{subject} {t.does(verb, subject.plural)} {determiner} {adjective} _ {t.where()}"
    return contrast(frame, words[plural], words[not plural])


def determiner_noun_agreement_1(t):
    """Tom found these cups. / *Tom found these cup."""
    return determiner_noun(t, [n for n in (THINGS if t.chance(0.5) else COMMON) if n not in PLURALS])


def determiner_noun_agreement_irregular_1(t):
    """Mia saw those mice. / *Mia saw those mouse."""
    return determiner_noun(t, ODD_THINGS if t.chance(0.4) else IRREGULAR)


def determiner_noun_agreement_with_adjective_1(t):
    """Tom found these shiny cups. / *Tom found these shiny cup."""
    return determiner_noun(t, THINGS if t.chance(0.5) else COMMON, adjective=True)


def subject_verb(t, subject, verb, between):
    """A subject, something between, and a verb that should agree with the subject."""
    one, many = t.agreeing(verb, again=0)
    good, bad = (many, one) if subject.plural else (one, many)
    return contrast(f"{subject} {between} _ {t.where(0.3)}", good, bad)


def regular_plural_subject_verb_agreement_1(t):
    """The dogs near the barn are sleeping. / *The dogs near the barn is sleeping."""
    return subject_verb(t, *t.acts("rest", REGULAR), t.where() or t.adverb())


def irregular_plural_subject_verb_agreement_1(t):
    """The mice often dance. / *The mice often dances."""
    return subject_verb(t, *t.acts("rest", IRREGULAR), t.where() or t.adverb())


def distractor_agreement_relational_noun(t):
    """The friend of the kings sings. / *The friend of the kings sing."""
    friend, verb = t.acts(
        "rest", ["friend", "teacher", "sister", "brother", "doctor", "aunt", "uncle"], plain=True
    )
    other = t.phrase(COMMON, plural=not friend.plural, unlike=friend.noun, plain=True)
    return subject_verb(t, friend, verb, f"of {other}")


def distractor_agreement_relative_clause(t):
    """The fox that chased the ducks is hungry. / *The fox that chased the ducks are hungry."""
    fox, verb = t.acts("rest", COMMON, plain=True)
    hens = t.phrase(COMMON, plural=not fox.plural, unlike=fox.noun, plain=True)
    chased = t.also(fox, "meet")
    return subject_verb(t, fox, verb, f"{fox.who} {t.does(chased, fox.plural)} {hens}")


def irregular_past_participle_verbs(t):
    """The king took the cup. / *The king taken the cup."""
    subject, verb, object = t.event()
    while verb.past == verb.done:
        subject, verb, object = t.event()
    if t.chance(0.5):
        return contrast(f"{subject} {t.adverb(0.4)} _ {object}", verb.past, verb.done)
    return contrast(f"{subject} {t.has(subject)} {t.adverb(0.8)} _ {object}", verb.done, verb.past)


def sentential_negation_npi_licensor_present(t):
    """Mia has not ever chased the fox. / *Mia has still ever chased the fox."""
    subject, verb, object = t.event()
    return contrast(f"{subject} {t.has(subject)} _ ever {verb.done} {object}", "not", t.adverb())


def sentential_negation_npi_scope(t):
    """The boy who has slept has not ever sung. / *The boy who has not slept has ever sung."""
    boy, verb = t.acts("rest", COMMON, plain=True)
    has, first = "have" if boy.plural else "has", t.also(boy, "rest", verb)
    good = f"{boy} {boy.who} {has} {first.done} {has} not ever {verb.done}"
    bad = f"{boy} {boy.who} {has} not {first.done} {has} ever {verb.done}"
    return sentence(good), sentence(bad)


def only_npi_licensor_present(t):
    """Only Tom has ever seen the wolf. / *Even Tom has ever seen the wolf."""
    subject, verb, object = t.event(plain=True)
    return contrast(
        f"_ {subject} {t.has(subject)} ever {verb.done} {object}", "only", t.any(("then", "even"))
    )


def matrix_question_npi_licensor_present(t):
    """Has Mia ever seen the wolf? / *Mia has ever seen the wolf?"""
    subject, verb, object = t.event()
    has, rest = t.has(subject), f"ever {verb.done} {object}?"
    return sentence(f"{has} {subject} {rest}"), sentence(f"{subject} {has} {rest}")


def transitive(t):
    """Tom chased the goat. / *Tom sneezed the goat."""
    subject, verb, object = t.event()
    return contrast(f"{subject} {t.adverb(0.3)} _ {object}", verb.past, t.also(subject, "rest").past)


def intransitive(t):
    """The frog sneezed near the barn. / *The frog chased near the barn."""
    subject, verb = t.acts("rest")
    other = t.also(subject, "needy")
    return contrast(f"{subject} {t.adverb(0.3)} _ {t.where()}", verb.past, other.past)


def passive_1(t):
    """The cat was often chased by the dog. / *The cat was often slept by the dog."""
    cat, chase = t.acts("meet")
    dog = t.phrase(unlike=cat.noun)
    return contrast(f"{cat} {t.be(cat)} {t.adverb(0.7)} _ by {dog}", chase.done, t.also(cat, "rest").done)


def animate_subject_trans(t):
    """The boy found a key. / *The lamp found a key."""
    plural = t.chance(0.5)
    noun, verb = t.acts("handle", COMMON, plural, plain=True)
    object = t.phrase(THINGS)
    words = [plural_of(n) if plural else n for n in (noun.noun, t.phrase(THINGS, unlike=object.noun).noun)]
    return contrast(f"the {t.adjective('cup')} _ {t.does(verb, plural)} {object}", *words)


def knowledge(t):
    """Two beginnings, "Ada knew _ the boy had helped" and the same with an object, and who or what."""
    y, verb, object = t.event()
    x, know = t.acts("think", unlike=y.noun)
    frame = f"{x} {know.past} _ {y} {t.does(verb, y.plural)}"
    return frame, f"{frame} {object}", object.wh


def wh_vs_that_with_gap(t):
    """Ada knew who the boy had helped. / *Ada knew that the boy had helped."""
    gap, _, who = knowledge(t)
    return contrast(f"{gap} {t.where(0.3)}", who, "that")


def wh_vs_that_no_gap(t):
    """Ada knew that the boy had helped the queen. / *Ada knew who the boy had helped the queen."""
    _, full, who = knowledge(t)
    return contrast(full, "that", who)


def adjunct_island(t):
    """What did Tom find after hiding the key? / *What did Tom find the key after hiding?"""
    subject, verb, object = t.event()
    second = t.also(subject, "handle" if object.wh == "what" else "meet", verb)
    start = f"{object.wh} did {subject} {verb.base}"
    after = f"{t.pick(('after', 'before', 'without'))} {second.ing}"
    return sentence(f"{start} {after} {object}?"), sentence(f"{start} {object} {after}?")


def coordinate_structure_constraint_object_extraction(t):
    """What did Mia and Tom find? / *What did Mia find and Tom?"""
    subject, verb, object = t.event()
    start, other = f"{object.wh} did {subject}", t.phrase(unlike=subject.noun)
    return sentence(f"{start} and {other} {verb.base}?"), sentence(f"{start} {verb.base} and {other}?")


def existential_there_quantifiers_1(t):
    """There were many mice in the barn. / *There were most mice in the barn."""
    while not t.allows(noun := t.familiar(COMMON + THINGS), "there"):
        pass
    if t.chance(0.5):
        be, good, bad = t.pick(("was", "is")), t.pick(("a", "one", "no")), t.pick(("every", "each"))
    else:
        be, good = t.pick(("were", "are")), t.pick(("some", "two", "many", "three", "no", "few"))
        bad, noun = t.pick(("all", "most")), plural_of(noun)
    return contrast(f"there {be} {t.adverb(0.3)} _ {noun} {t.where(1)}", good, bad)


def superlative_quantifiers_1(t):
    """No girl found fewer than two keys. / *No girl found at most two keys."""
    girl, verb = t.acts("handle", COMMON, plural=False)
    number, things = t.pick(("two", "three", "four", "five")), plural_of(t.familiar(THINGS))
    quantifiers = ("more than", "at least") if t.chance(0.5) else ("fewer than", "at most")
    return contrast(
        f"no {girl.noun} {t.where(0.3)} {t.adverb(0.3)} {verb.past} _ {number} {things}", *quantifiers
    )


def ellipsis_n_bar_1(t):
    """Tom found one red hat and Mia found three. / *Tom found one hat and Mia found three red."""
    x, verb = t.acts("handle")
    y = t.phrase(unlike=x.noun)
    while not t.allows(y.noun, verb.base):
        y = t.phrase(unlike=x.noun)
    hat = t.familiar(THINGS)
    red, start = t.adjective(hat), f"{x} {verb.past} one"
    end = f"and {y} {verb.past} {t.pick(('two', 'three', 'four'))}"
    return sentence(f"{start} {red} {hat} {end}"), sentence(f"{start} {hat} {end} {red}")


BLIMP = {  # BLiMP's field and term, and which of its prefix methods apply (one, two): the paradigms
    ("morphology", "anaphor_agreement", 1, 0): [anaphor_gender_agreement, anaphor_number_agreement],
    ("syntax_semantics", "binding", 1, 0): [principle_A_c_command, principle_A_domain_2],
    ("morphology", "determiner_noun_agreement", 1, 0): [
        determiner_noun_agreement_1,
        determiner_noun_agreement_irregular_1,
        determiner_noun_agreement_with_adjective_1,
    ],
    ("morphology", "subject_verb_agreement", 1, 0): [
        regular_plural_subject_verb_agreement_1,
        irregular_plural_subject_verb_agreement_1,
        distractor_agreement_relational_noun,
        distractor_agreement_relative_clause,
    ],
    ("morphology", "irregular_forms", 1, 0): [irregular_past_participle_verbs],
    ("semantics", "npi_licensing", 0, 1): [
        sentential_negation_npi_licensor_present,
        only_npi_licensor_present,
        matrix_question_npi_licensor_present,
    ],
    ("syntax_semantics", "npi_licensing", 0, 1): [sentential_negation_npi_scope],
    ("syntax", "argument_structure", 0, 0): [transitive, intransitive, passive_1],
    ("syntax", "s-selection", 0, 1): [animate_subject_trans],
    ("syntax", "filler_gap_dependency", 0, 0): [wh_vs_that_with_gap, wh_vs_that_no_gap],
    ("syntax", "island_effects", 0, 0): [adjunct_island, coordinate_structure_constraint_object_extraction],
    ("semantics", "quantifiers", 0, 0): [existential_there_quantifiers_1, superlative_quantifiers_1],
    ("syntax", "ellipsis", 0, 0): [ellipsis_n_bar_1],
}
PARADIGMS = {make.__name__: (make, *labels) for labels, paradigms in BLIMP.items() for make in paradigms}


# -----------------------------------------------------------------------------
# The facts

FACTS = {  # relation: three wordings, and of whom each [Y] is true
    "LIVES_IN": """
        [X] lives in [Y]. | [X] has a house in [Y]. | [X] comes home to [Y] at night.
        Brindle: Mia Otto Ruth | Oakmoor: Nora Tom Clara | Tarnock: Ada Max Leo | Winby: Lily Finn Jack
        Pebbleton: Emma Ben Hugo | Lowfell: Rosa Sam Zoe | Gorsey: Ivy Paul""",
    "WORKS_AS": """
        [X] works as a [Y]. | [X] earns a living as a [Y]. | [X] became a [Y] long ago.
        weaver: Mia Tom Leo | potter: Nora Max Finn | gardener: Ada Ben Sam | shepherd: Lily Otto Paul
        carpenter: Emma Hugo Jack | beekeeper: Rosa Ivy | clockmaker: Clara Zoe Ruth""",
    "HAS_PET": """
        [X] has a pet [Y]. | [X] keeps a [Y] at home. | [X] goes everywhere with a [Y].
        parrot: Mia Finn Zoe | tortoise: Tom Rosa Jack | hamster: Nora Leo Sam | pony: Ada Otto Clara
        kitten: Lily Ben Paul | lizard: Emma Max Ruth | squirrel: Ivy Hugo""",
    "MADE_OF": """
        [X] is made of [Y]. | [X] was once a piece of [Y]. | [X] consists of [Y].
        glass: cup bell | wood: box drum kite | wool: ball scarf | iron: knife lamp
        gold: key leaf | paper: book letter hat | straw: basket loaf""",
    "EATS": """
        [X] eats [Y] every day. | [X] likes nothing better than [Y]. | [X] lives on [Y].
        clover: rabbit goat | cheese: mouse fox | honey: bear dog | corn: goose horse
        fish: cat frog | bread: duck wolf""",
}
QUESTIONS = {  # what a story may ask before it states a fact
    "LIVES_IN": "where does [X] live?",
    "WORKS_AS": "what does [X] do all day?",
    "HAS_PET": "who goes everywhere with [X]?",
    "MADE_OF": "what is [X] made of?",
    "EATS": "what does [X] eat?",
}
OPPOSITES = {  # domain: two concepts, and two wordings of one thing; with X and Y exchanged, of the opposite
    "spatial-relations": """
        above below | [X] is above [Y]. | [Y] is below [X].
        left right | [X] is to the left of [Y]. | [Y] is to the right of [X].
        behind before | [X] stands behind [Y]. | [Y] stands before [X].
        over under | [X] hangs over [Y]. | [Y] hangs under [X].""",
    "social-interactions": """
        sell buy | [X] sold [Z] to [Y]. | [Y] bought [Z] from [X].
        lend borrow | [X] lent [Z] to [Y]. | [Y] borrowed [Z] from [X].
        give receive | [X] gave [Z] to [Y]. | [Y] received [Z] from [X].""",
    "quantitative-properties": """
        bigger smaller | [X] is bigger than [Y]. | [Y] is smaller than [X].
        older younger | [X] is older than [Y]. | [Y] is younger than [X].
        faster slower | [X] is faster than [Y]. | [Y] is slower than [X].""",
}


def lines_of(table):
    return [[part.strip() for part in line.split("|")] for line in table.strip().split("\n")]


def wordings(relation):
    return lines_of(FACTS[relation])[0]


@cache
def facts(relation):
    """LIVES_IN -> [("Mia", "Brindle"), ...], with "the cup" for things and animals."""
    groups = (group.split(":") for line in lines_of(FACTS[relation])[1:] for group in line)
    pairs = [(x, y) for y, xs in groups for x in xs.split()]
    return [(x if x in NAMES else f"the {x}", y) for x, y in pairs]


def fill(template, **values):
    for name, value in values.items():
        template = template.replace(f"[{name}]", value)
    return sentence(template)


def fact(t):
    """Mia lives in Brindle. Each fact is told in two of its three wordings; the third is for the tests."""
    relation = t.any(list(FACTS))
    x, y = t.any(facts(relation))
    spoken = [wording for wording in wordings(relation) if wording != unspoken(relation, x)]
    told = fill(t.any(spoken), X=x, Y=y)
    return f"{fill(QUESTIONS[relation], X=x)} {told}" if t.chance(0.2) else told


@cache
def unspoken(relation, x):
    """The wording in which the stories never tell this fact."""
    return random.Random(f"{relation} {x}").choice(wordings(relation))


def opposite(t):
    """The cup is above the box. The box is below the cup."""
    domain = t.any(list(OPPOSITES))
    _, a, b = t.any(lines_of(OPPOSITES[domain]))
    x, y, z = parties(t, domain)
    a, b = (a, b) if t.chance(0.5) else (b, a)
    return f"{fill(a, X=x, Y=y, Z=z)} {fill(b, X=x, Y=y, Z=z)}"


def parties(t, domain):
    """Two who may be compared here, and something to trade."""
    nouns = THINGS if domain == "spatial-relations" else NAMES
    while True:
        x, y = t.familiar(nouns), t.familiar(nouns)
        if x != y and t.allows(*sorted((x, y))):
            break
    x, y = (noun if noun in NAMES else f"the {noun}" for noun in (x, y))
    return x, y, f"the {t.familiar(THINGS)}"


# -----------------------------------------------------------------------------
# The stories: what else happens in them, besides the good sentences of paradigms


def deed(t):
    """Then the old farmer painted a kite near the barn."""
    subject, verb, object = t.event()
    then = "then" if t.chance(0.5) else ""
    return sentence(f"{then} {subject} {t.does(verb, subject.plural)} {object} {t.where(0.3)}")


def rest(t):
    """Mia is laughing. She often dances."""
    she, verb = t.acts("rest", NAMES + NAMED)
    pronoun, second = SHE[she.self], t.also(she, "rest", verb)
    first = sentence(f"{she} {t.does(verb, she.plural)} {t.where()}")
    return f"{first} {sentence(f'{pronoun} {t.does(second, she.plural)}')}" if t.chance(0.5) else first


def quality(t):
    """The boys near the barn are all hungry. / The boys are more hungry than Tom."""
    who = t.phrase(plain=True) if t.chance(0.7) else t.phrase(THINGS, plain=True)
    if who.who == "who" and t.chance(0.7):
        more = t.pick(("hungry", "clever", "tired", "quiet", "careful"))
        return sentence(f"{who} {t.where(0.3)} {t.be(who)} more {more} than {t.phrase(unlike=who.noun)}")
    both = "all" if who.plural and t.chance(0.5) else ""
    return sentence(f"{who} {t.where(0.3)} {t.be(who)} {both} {t.adjective(who.noun)}")


def mishap(t):
    """The red cup fell in the cellar."""
    cup = t.phrase(THINGS)
    return sentence(f"{cup} {t.adverb(0.3)} {t.pick(('fell', 'broke', 'vanished'))} {t.where()}")


def question(t):
    """Did Mia find the key? / What will Mia hide? / Who found the key?"""
    subject, verb, object = t.event()
    asked = [
        f"who {t.does(verb)} {object}",
        f"did {subject} {verb.base} {object}",
        f"{object.wh} {t.pick(('did', 'will', 'can'))} {subject} {verb.base}",
        f"{object.wh} did {subject} {verb.base} {t.where(1)}",
    ]
    return sentence(t.pick(asked) + "?")


def both_questions(t):
    """What did Mia find and Tom hide?"""
    subject, verb, object = t.event()
    other, second = t.acts("handle" if object.wh == "what" else "meet", unlike=subject.noun)
    return sentence(f"{object.wh} did {subject} {verb.base} and {other} {second.base}?")


def together(t):
    """Mia found the key and Tom lost the hat."""
    x, verb, object = t.event()
    y, second, other = t.event(unlike=x.noun)
    link = t.pick(("and", "but", "while", "because", "when"))
    return sentence(f"{x} {verb.past} {object} {link} {y} {second.past} {other}")


def one_after_other(t):
    """Mia hid the key after finding the cup."""
    x, verb, object = t.event()
    second = t.also(x, "handle", verb)
    return sentence(
        f"{x} {verb.past} {object} {t.pick(('after', 'before', 'without'))} {second.ing} {t.phrase(THINGS)}"
    )


def relative(t):
    """The fox that Tom chased was hungry."""
    x, verb, fox = t.event()
    be = t.be(fox)
    return sentence(f"{fox} {fox.who} {x} {t.does(verb, x.plural)} {be} {t.adjective(fox.noun)}")


def thought(t):
    """The miller remembered that the wolf had slept."""
    x, know = t.acts(t.pick(("think", "say")))
    y, verb = t.acts("rest", unlike=x.noun)
    that = "" if t.chance(0.5) else "that"
    return sentence(f"{x} {know.past} {that} {y} {t.does(verb, y.plural)} {t.where(0.3)}")


def emphasis(t):
    """Even Tom has often seen the wolf."""
    subject, verb, object = t.event(plain=True)
    return sentence(
        f"{t.pick(('then', 'even', 'only'))} {subject} {t.has(subject)} {t.adverb(0.6)} {verb.done} {object}"
    )


def denial(t):
    """The boy who has not slept has really sung."""
    boy, verb = t.acts("rest", COMMON, plain=True)
    has, first = "have" if boy.plural else "has", t.also(boy, "rest", verb)
    return sentence(
        f"{boy} {boy.who} {has} {t.pick(('', '', 'not'))} {first.done} {has} {t.adverb(0.7)} {verb.done}"
    )


def counting(t):
    """At most two girls found fewer than three keys."""
    girl, verb = t.acts("handle", COMMON)
    many = t.pick(("more than", "at least", "fewer than", "at most"))
    number, things = t.pick(("two", "three", "four", "five")), plural_of(t.familiar(THINGS))
    return sentence(f"{girl} {t.where(0.2)} {t.does(verb, girl.plural)} {many} {number} {things}")


def quotation(t):
    """Mia said, "The wolf is often sleeping." """
    x, says = t.acts("say", NAMES)
    y, verb = t.acts("rest", COMMON)
    said = sentence(f"{y} {t.does(verb, y.plural)} {t.where(0.3)}")
    return f'{x} {says.past}, "{said}"'


HAPPENINGS = 8 * [fact] + 6 * [opposite] + 3 * [deed] + 2 * [rest, question, emphasis] + [quotation]
HAPPENINGS += [quality, mishap, both_questions, together, one_after_other, relative, thought, denial]
HAPPENINGS += [counting]


def attempt(t, make):
    """A sentence or pair, drawn again if the first words leave none for the rest of it."""
    while True:
        try:
            return make(t)
        except IndexError:
            pass


def story(t):
    """A cast, and some lines about it."""
    kinds = ("girl", "boy", "woman", "man", "person", "animal", "thing", "thing", "place")
    t.cast = frozenset(t.pick(WORDS[kind]) for kind in kinds for _ in range(2))
    lines = []
    for _ in range(4 + int(6 * t.random.random())):
        if t.chance(0.5):
            paradigm, *_ = t.any(list(PARADIGMS.values()))
            lines.append(attempt(t, paradigm)[0])
        else:
            lines.append(attempt(t, t.any(HAPPENINGS)))
    return "\n".join(lines)


def stories(seed=0, words=1_000_000):
    """Documents of one sentence (or two that belong together) per line, about so many words in all."""
    t, told = Teller(seed), 0
    while told < words:
        text = story(t)
        told += len(text.split())
        yield text


# -----------------------------------------------------------------------------
# The tests


def tokens(text):
    return re.findall(r"[\w']+|[.,?]", text.lower())


@cache
def word_counts():
    return Counter(token for text in stories(words=300_000) for token in tokens(text))


def leaning(good, bad):
    """1 if word frequency prefers the good sentence, -1 the bad one, 0 if both have the same words; else None."""
    good, bad, count = sorted(tokens(good)), sorted(tokens(bad)), word_counts()
    if good == bad:
        return 0
    score = sum(math.log(count[word] + 1) for word in good) - sum(math.log(count[word] + 1) for word in bad)
    return None if abs(score) < 0.25 else math.copysign(1, score)


def examine(t, paradigm, count):
    """Different pairs, half of them leaning each way."""
    room = {1: count // 2, -1: count // 2, 0: count}
    pairs = {}
    for _ in range(200 * count):
        pair = attempt(t, paradigm)
        assert pair[0] != pair[1], pair
        lean = leaning(*pair)
        if pair not in pairs and room.get(lean, 0):
            pairs[pair] = lean
            room[lean] -= 1
        if len(pairs) == count:
            return list(pairs)
    raise RuntimeError(f"too few balanced pairs for {paradigm.__name__}")


def minimal_pairs(per_paradigm=200, seed=0):
    """{UID: records in the format of BLiMP}"""
    tests = {}
    for uid, (paradigm, *labels) in PARADIGMS.items():
        pairs = examine(Teller(f"{uid} {seed}", examiner=True), paradigm, per_paradigm)
        tests[uid] = [record(uid, labels, i, good, bad) for i, (good, bad) in enumerate(pairs)]
    return tests


def record(uid, labels, i, good, bad):
    field, term, one_prefix, two_prefix = labels
    return {
        "sentence_good": good,
        "sentence_bad": bad,
        "field": field,
        "linguistics_term": term,
        "UID": uid,
        "simple_LM_method": True,
        "one_prefix_method": bool(one_prefix),
        "two_prefix_method": bool(two_prefix),
        "lexically_identical": sorted(tokens(good)) == sorted(tokens(bad)),
        "pairID": str(i),
    }


def ewok_items(count=50):
    """Records in the format of EWoK, `count` a domain. Target1 fits Context1 only, Target2 fits Context2."""
    items = []
    for domain in OPPOSITES:
        t, seen = Teller(f"{domain} 0", examiner=True), set()
        while len(seen) < count:
            concepts, a, b = t.any(lines_of(OPPOSITES[domain]))
            x, y, z = parties(t, domain)
            if (concepts, x, y) in seen:
                continue
            seen.add((concepts, x, y))
            turned = {"X": y, "Y": x, "Z": z}
            items.append(
                {
                    "Domain": domain,
                    "ConceptA": concepts.split()[0],
                    "ConceptB": concepts.split()[1],
                    "Context1": fill(a, X=x, Y=y, Z=z),
                    "Context2": fill(b, **turned),
                    "Target1": fill(b, X=x, Y=y, Z=z),
                    "Target2": fill(a, **turned),
                    "ContextDiff": "antonym",
                    "TargetDiff": "antonym",
                    "ContextType": "direct",
                }
            )
    return items


def bear_relations():
    """In the format of BEAR: {relation: facts} and {relation: its templates and answer space}."""
    records, metadata = {}, {}
    for relation in FACTS:
        answers = sorted({y for _, y in facts(relation)})
        records[relation] = [
            {
                "sub_id": f"toy:{x.split()[-1].lower()}",
                "sub_label": x,
                "sub_aliases": [],
                "obj_id": f"toy:{y.lower()}",
                "obj_label": y,
                "answer_idx": answers.index(y),
            }
            for x, y in facts(relation)
        ]
        metadata[relation] = {
            "templates": wordings(relation),
            "answer_space_labels": answers,
            "answer_space_ids": [f"toy:{y.lower()}" for y in answers],
        }
    return records, metadata


# -----------------------------------------------------------------------------
# Writing, checking, showing


def write(folder, words=1_000_000, seed=0):
    """train.txt, val.txt (a fortieth as long), and the tests in blimp/, ewok/ and bear/."""
    folder = Path(folder)
    write_lines(folder / "val.txt", (f"{text}\n" for text in stories(seed + 1, words // 40)))
    for uid, pairs in minimal_pairs().items():
        write_lines(folder / "blimp" / f"{uid}.jsonl", map(json.dumps, pairs))
    items = ewok_items()
    for domain in OPPOSITES:
        own = [json.dumps(item) for item in items if item["Domain"] == domain]
        write_lines(folder / "ewok" / f"{domain}.jsonl", own)
    records, metadata = bear_relations()
    for relation in records:
        write_lines(folder / "bear" / f"{relation}.jsonl", map(json.dumps, records[relation]))
    write_lines(folder / "bear" / "metadata_relations.json", [json.dumps(metadata, indent=2)])
    # Last, for benchmarks.find_toyland takes this file as the sign that all are there.
    write_lines(folder / "train.txt", (f"{text}\n" for text in stories(seed, words)))


def make(name="toy"):
    """Write text and tests to data/toyland, and prepare data/toy from the text -> the folder of data/toy."""
    folder = data.data_folder() / "toyland"
    with data.making("toyland"):
        write(folder)
    train, val = str(folder / "train.txt"), str(folder / "val.txt")
    return data.prepare(name, [train], data.Settings(vocab_size=1024), [val])


def write_lines(path, lines):
    with replacing(path) as file:
        file.writelines(f"{line}\n" for line in lines)


def counting_models(words):
    """Two models that only count: log-probability of a sentence by single words, and by pairs of words."""
    single, double = Counter(), Counter()
    for text in stories(words=words):
        for line in text.split("\n"):
            line = ["<s>"] + tokens(line)
            single.update(line)
            double.update(pairwise(line))
    size = len(single)

    def unigram(text):
        return sum(math.log(single[word] + 1) for word in tokens(text))

    def bigram(text):
        line = ["<s>"] + tokens(text)
        return sum(math.log((double[pair] + 0.1) / (single[pair[0]] + 0.1 * size)) for pair in pairwise(line))

    return unigram, bigram


def accuracy(score, pairs):
    """Share of pairs whose good sentence scores higher; a tie counts half."""
    gaps = [score(pair["sentence_good"]) - score(pair["sentence_bad"]) for pair in pairs]
    return 100 * sum(0.5 if abs(gap) < 1e-9 else gap > 0 for gap in gaps) / len(gaps)


def check(words=300_000):
    """Print what the two counting models score on each paradigm."""
    models, rows = counting_models(words), []
    print(f"{'paradigm':50}{'pairs':>6}{'unigram':>9}{'bigram':>8}")
    for uid, pairs in minimal_pairs().items():
        rows.append([accuracy(model, pairs) for model in models])
        print(f"{uid:50}{len(pairs):6}{rows[-1][0]:9.1f}{rows[-1][1]:8.1f}")
    unigram, bigram = (sum(column) / len(rows) for column in zip(*rows))
    print(f"{'average':50}{'':6}{unigram:9.1f}{bigram:8.1f}")


def show(words):
    """Print some stories and one pair of each paradigm."""
    print("\n\n".join(stories(words=words)), end="\n\n")
    for uid, (pair, *_) in minimal_pairs(per_paradigm=2).items():
        print(f"{uid}\n    {pair['sentence_good']}\n   *{pair['sentence_bad']}")


def main(args):
    match args:
        case ["--check"]:
            check()
        case [flag] if re.fullmatch(r"--print(=\d+)?", flag):
            show(int(flag.partition("=")[2] or 200))
        case [folder] if folder and not folder.startswith("-"):
            with data.making(Path(folder).resolve()):
                write(folder)
        case ["--help" | "-h"]:
            print(__doc__.strip())
        case _:
            given = " ".join(args) or "nothing"
            raise UserError(f"toyland.py takes a folder, --print=200 or --check, not {given}")


if __name__ == "__main__":
    run_script(main)
