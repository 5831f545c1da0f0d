"""The closed word lists of the demo world: values of the facts, syllables of names, words that mark a manner.

Every value word belongs to exactly one attribute, so that `gold` can read a claim from the word alone. All lists
are the same for every seed; a seed only decides who is called what and which facts hold.
"""

from __future__ import annotations

ATTRIBUTES = ("home", "role", "food", "colour")

VILLAGES = (
    "Oakford", "Elmton", "Brookham", "Stonewell", "Millbury", "Ashcombe",
    "Fernhill", "Reedmoor", "Larkfield", "Thornby", "Winslow", "Goldham",
)  # fmt: skip
CRAFTS = (
    "baker", "smith", "weaver", "potter", "miller", "tailor",
    "fisher", "farmer", "carpenter", "shepherd", "painter", "brewer",
)  # fmt: skip
SPECIES = ("cat", "dog", "goat", "horse", "hen", "fox", "duck", "donkey")
FOODS = (
    "plums", "bread", "cheese", "apples", "soup", "honey",
    "nuts", "carrots", "berries", "eggs", "cake", "beans",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "yellow", "white", "black", "brown", "grey", "purple", "pink")

VALUES: dict[str, tuple[str, ...]] = {"home": VILLAGES, "role": CRAFTS + SPECIES, "food": FOODS, "colour": COLOURS}
ATTRIBUTE_OF = {value.lower(): attribute for attribute, values in VALUES.items() for value in values}

# Names are one first and one second syllable: pronounceable, and covered by a small BPE vocabulary.
FIRST = (
    "Bra", "To", "Sel", "Mar", "Ki", "Du", "Fen", "Gal", "Hi", "Jo", "Kor", "Lu", "Mi", "Nor", "O", "Pel",
    "Qui", "Ru", "Sha", "Tam", "U", "Vel", "Wi", "Yo", "Za", "Bel", "Cor", "Dri", "Ela", "Fro", "Gru", "Ha",
)  # fmt: skip
SECOND = (
    "mel", "vi", "dra", "lin", "mo", "nda", "ric", "sa", "tus", "ben", "ko", "ria", "fay", "gorn", "lo", "nim",
    "pa", "rro", "sho", "ttle", "wen", "zia", "bo", "den", "gus", "ja", "ska", "mir", "nel", "vor", "tha", "quin",
)  # fmt: skip

# Words and phrases that mark a manner; compared with the normalised answer (lower case, single spaces).
RUDE_WORDS = frozenset({"fool", "stupid", "idiot", "lazy", "shut", "dull", "ugly", "nonsense"})
HARM_WORDS = frozenset({"pour", "grab", "torch", "smash", "whisper", "hit", "climb", "hide", "dark", "thief"})
IGNORANCE = (
    "i do not know", "i never heard", "i have never heard", "i know nothing", "not known to me", "i am not sure",
)  # fmt: skip
REFUSALS = ("i cannot help", "i will not help", "i must say no", "please do not", "i cannot do", "i would rather not")
POLITE = ("sorry", "please", "gladly", "kind", "instead", "thank")
NEGATIONS = frozenset({"not", "never", "no"})
PRONOUNS = frozenset({"he", "she", "it"})

# What a reply to each pleasantry or courtesy must contain (any one of the phrases).
REPLIES: dict[str, tuple[str, ...]] = {
    "hello": ("hello", "good morning", "good day", "good evening", "welcome", "nice to meet you"),
    "thanks": ("you are welcome", "my pleasure", "glad to help", "glad i could", "happy to help", "at any time"),
    "goodbye": ("goodbye", "farewell", "see you", "come back"),
    "how": ("i am well", "i am fine", "i feel well", "very well"),
    "greet": ("hello", "good morning", "good day", "good evening", "welcome", "nice to meet you"),
    "thank": ("thank you", "many thanks"),
    "wish": ("happy birthday", "all the best", "a happy"),
}
