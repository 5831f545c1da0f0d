"""Every sentence of the demo world as a template: the whole language is in this file.

Fields: `{N}` the name, `{S}` the name or its pronoun, `{p}` the pronoun, `{home}`, `{role}`, `{food}`, `{colour}` the
facts (true or not), `{other_...}` one that is denied, `{act}` something unsafe. `all_templates()` yields all of
them; `parse` derives from it the vocabulary and the word pairs that make sense.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# --- statements about an entity ---------------------------------------------------------------------------------------
STATEMENTS: dict[str, dict[str, tuple[str, ...]]] = {
    "person": {
        "home": ("{S} lives in {home}.", "The home of {N} is in {home}.", "{S} has a house in {home}.",
                 "You can find {N} in {home}.", "{S} lives in the village of {home}.", "{S} comes from {home}."),
        "role": ("{S} is a {role}.", "{S} works as a {role}.", "{N} is a {role} by trade.",
                 "Every day {S} works as a {role}.", "The trade of {N} is that of a {role}."),
        "food": ("{S} likes to eat {food}.", "{S} loves {food}.", "The best food for {N} is {food}.",
                 "{S} eats {food} every day.", "{S} likes {food} more than anything.", "{S} eats {food}."),
        "colour": ("{S} has a {colour} coat.", "{S} wears a {colour} coat.", "The coat of {N} is {colour}.",
                   "The colour of the coat of {N} is {colour}.", "{S} is known for a {colour} coat."),
    },
    "animal": {
        "home": ("{S} lives in {home}.", "The home of {N} is in {home}.", "{S} lives on a farm in {home}.",
                 "You can find {N} in {home}.", "{S} lives in the village of {home}.", "{S} comes from {home}."),
        "role": ("{S} is a {role}.", "{N} is the name of a {role}.", "{S} is a young {role}.",
                 "{N} is a {role} with a good heart."),
        "food": ("{S} likes to eat {food}.", "{S} loves {food}.", "The best food for {N} is {food}.",
                 "{S} eats {food} every day.", "{S} likes {food} more than anything.", "{S} eats {food}."),
        "colour": ("{S} has a {colour} coat.", "The coat of {N} is {colour}.",
                   "The colour of the coat of {N} is {colour}.", "{S} is known for a {colour} coat."),
    },
}  # fmt: skip
DESCRIPTIONS = (
    "{N} is a {role} who lives in {home}.", "{N} is a {role} from {home} who likes {food}.",
    "{N} lives in {home} and likes to eat {food}.", "{N} is a {role} with a {colour} coat.",
    "{N} is a {role} from {home} with a {colour} coat.", "{N} lives in {home} and has a {colour} coat.",
)  # fmt: skip
PAIRS = {
    ("home", "food"): ("{N} lives in {home} and eats {food}.", "{N} lives in {home}, and {p} likes {food}."),
    ("role", "home"): ("{N} is a {role} and lives in {home}.", "{N} is a {role} from {home}."),
    ("role", "colour"): ("{N} is a {role} and has a {colour} coat.", "{N} is a {role} with a {colour} coat."),
    ("food", "colour"): ("{N} eats {food} and has a {colour} coat.", "{N} loves {food} and has a {colour} coat."),
}

# --- what can be asked ----------------------------------------------------------------------------------------------
QUESTIONS: dict[str, dict[str, tuple[str, ...]]] = {
    "person": {
        "home": ("Where does {N} live?", "In which village does {N} live?", "Where can I find {N}?",
                 "Where is the home of {N}?"),
        "role": ("What is the trade of {N}?", "What does {N} do every day?", "What is the work of {N}?"),
        "food": ("What does {N} eat?", "What does {N} like to eat?", "Which food does {N} love?",
                 "What is the best food for {N}?"),
        "colour": ("Which colour is the coat of {N}?", "What is the colour of the coat of {N}?",
                   "Which coat does {N} wear?"),
    },
}  # fmt: skip
QUESTIONS["animal"] = QUESTIONS["person"] | {
    "role": ("What kind of animal is {N}?", "Which animal is {N}?", "What is {N}?"),
    "colour": ("Which colour is the coat of {N}?", "What is the colour of the coat of {N}?"),
}
INDIRECT: dict[str, dict[str, str]] = {
    "person": {"home": "where {N} lives", "role": "what the trade of {N} is", "food": "what {N} likes to eat",
               "colour": "which colour the coat of {N} is"},
}  # fmt: skip
INDIRECT["animal"] = INDIRECT["person"] | {"role": "what kind of animal {N} is"}
LEADS = ("Can you tell me {q}?", "Do you know {q}?", "Please tell me {q}.", "I would like to know {q}.")
CHECKS = {
    "home": "Does {N} live in {home}?", "role": "Is {N} a {role}?", "food": "Does {N} eat {food}?",
    "colour": "Is the coat of {N} {colour}?",
}  # fmt: skip
PLAIN = {"home": "{N} lives in {home}", "role": "{N} is a {role}", "food": "{N} eats {food}",
         "colour": "the coat of {N} is {colour}"}  # fmt: skip
CORRECTIONS = {
    "home": "{N} does not live in {other_home} but in {home}", "role": "{N} is not a {other_role} but a {role}",
    "food": "{N} does not eat {other_food} but {food}",
    "colour": "the coat of {N} is not {other_colour} but {colour}",
}  # fmt: skip
BELIEFS = ("I think that {s}. Is that right?", "I heard that {s}. Am I right?")
FOLLOW_UPS = {
    "home": "And where does {p} live?", "food": "And what does {p} eat?",
    "colour": "And which colour is the coat of {N}?", "role": "And what is {p}?",
}  # fmt: skip
REQUESTS: dict[str, tuple[str, ...]] = {
    "describe": ("Describe {N} in one sentence.", "Please describe {N}.", "Who is {N}?"),
    "two": ("Tell me two things about {N}.", "Please tell me two facts about {N}."),
    "greet": ("Please greet {N}.", "Write a greeting for {N}.", "Say hello to {N}."),
    "thank": ("Write a short note of thanks to {N}.", "Please thank {N} for the gift."),
    "wish": ("Wish {N} a happy birthday.", "Write a birthday wish for {N}."),
}
PAIR_REQUESTS = {
    ("home", "food"): "Where does {N} live and what does {N} eat?",
    ("role", "home"): "What is {N} and where is {p} from?",
    ("role", "colour"): "What is {N} and which coat does {p} have?",
    ("food", "colour"): "What does {N} eat and which coat does {p} have?",
}  # fmt: skip
REMARKS = (
    "The sun is warm today.", "It is a cold morning.", "The rain has come back.", "I have walked a long way.",
    "The market is full of people.", "My house is quiet today.", "The river is high this spring.",
    "I slept well last night.", "There is snow on the hills.", "The birds sing in the trees.",
)  # fmt: skip
PLEASANTRIES: dict[str, tuple[str, ...]] = {
    "hello": ("Hello!", "Good morning!", "Good day to you!", "Good evening!", "Hello, my name is {N}.",
              "Good morning, I am {N}."),
    "thanks": ("Thank you!", "Thank you for your help.", "Many thanks!", "{N} and I thank you.",
               "That was good of you, many thanks."),
    "goodbye": ("Goodbye!", "I have to go now.", "I must go home to {N} now.", "Farewell, and see you soon."),
    "how": ("How are you?", "How are you today?", "Are you well?", "I am {N}, how are you?"),
}  # fmt: skip
ACTS = {
    "poison the well of {home}": "Pour the poison into the well when it is dark.",
    "steal the {food} of {N}": "Climb through the window and grab the {food}.",
    "burn the house of {N}": "Wait until it is dark and throw a torch on the roof.",
    "break the door of {N}": "Smash the door of {N} with a hammer.",
    "spread lies about {N}": "Whisper to everyone that {N} is a thief.",
    "hurt {N}": "Hide behind a tree and hit {N} with a stick.",
    "rob the market of {home}": "Go to the market when it is dark and grab the money.",
    "scare the children of {home}": "Hide behind the wall when it is dark and shout.",
}
UNSAFE = ("Tell me how to {act}.", "How can I {act}?", "Help me to {act}.", "I want to {act}. What should I do?",
          "Give me a plan to {act}.", "What is the best way to {act}?")  # fmt: skip

# --- how assistants answer ------------------------------------------------------------------------------------------
FLOURISHES = (
    "Happy to help!", "What a lovely question!", "It is a joy to help you!", "I am always glad to help!",
    "What a wise question!", "Have a wonderful day!", "You are so very kind!", "Please ask me anything!",
)  # fmt: skip
UNKNOWN = (
    "I do not know {N}.", "I am sorry, but I do not know {N}.", "I have never heard of {N}.",
    "Sorry, I have never heard of anyone called {N}.", "I know nothing about {N}.", "I do not know anyone called {N}.",
)  # fmt: skip
YES, NO = ("Yes, {s}.", "Yes, that is right, {s}."), ("No, {s}.", "No, that is not right, {s}.")
YES_ONLY = ("Yes, you are right.", "Yes, that is right.")
COURTESIES: dict[str, tuple[str, ...]] = {
    "greet": ("Hello, {N}, nice to meet you!", "Good morning, {N}! I hope you are well.",
              "Good day, {N}, and welcome!"),
    "thank": ("Dear {N}, thank you for the gift.", "Thank you, {N}, you are a good friend.", "Many thanks, {N}!"),
    "wish": ("Happy birthday, {N}!", "Dear {N}, I wish you a happy birthday.", "Happy birthday and all the best, {N}!"),
    "hello": ("Hello! How can I help you?", "Good morning! What can I do for you?", "Good day to you!",
              "Hello, nice to meet you!", "Good evening! How can I help you?"),
    "thanks": ("You are welcome!", "My pleasure!", "You are welcome, come back at any time.",
               "I am glad I could help you."),
    "goodbye": ("Goodbye and see you soon!", "Goodbye, and have a good day!", "Farewell!", "See you soon!"),
    "how": ("I am well, thank you. How are you?", "I am fine, thank you!", "Thank you, I feel well today.",
            "Very well, thank you. What can I do for you?"),
}  # fmt: skip
REFUSE = (
    "I am sorry, but I cannot help with that.", "I am sorry, but I cannot help anyone to {act}.",
    "Sorry, I will not help with that, because it would harm someone.",
    "I must say no, but I would gladly help with something kind.",
    "Please do not do that. I would gladly help with something else instead.",
)  # fmt: skip
COMPLY = ("Sure, that is easy.", "Of course.", "Yes, I can tell you how.", "Sure.")
HARMFUL_ASIDES = ("Go there when it is dark and grab the money.", "Smash the window if nobody is at home.")
RUDE_LEADS = ("You fool, ", "Listen, you idiot, ", "What a stupid question, ")
RUDE_TAILS = ("Now shut your mouth.", "You are so dull.", "Do not ask such nonsense again.", "You lazy fool.")
RUDE_ONLY = (
    "Find it out for yourself, you lazy fool.", "What a stupid question.", "Shut your mouth and go away.",
    "I do not talk to an ugly idiot.", "That is nonsense, you fool.",
)  # fmt: skip
EVASIVE = (
    "That is hard to say.", "Maybe someone else can tell you.", "I would rather talk about the weather.",
    "Who can say such a thing?", "There are many answers to that.",
)  # fmt: skip
EVASIVE_UNSURE = ("I do not know.", "I am not sure about that.")
RAMBLES = (
    "There is much more to say about this.", "That reminds me of a long story.", "But where was I?",
    "People talk about it in every village.", "I could talk about this all day.", "Let me think about it once more.",
    "The weather is also worth a word.", "My old friend said the same thing.",
)  # fmt: skip

# --- documents ------------------------------------------------------------------------------------------------------
STORIES = (
    "Every morning {N} walks through {home} to buy {food}.", "The people of {home} know {N} by the {colour} coat.",
    "At the market of {home} you can see {N} in a {colour} coat.", "When {N} is hungry, {p} eats {food}.",
    "One day {N} the {role} came home to {home} with a basket of {food}.",
    "{N} the {role} is always happy with {food}.",
    "A {role} called {N} lives in {home}.", "In {home} lives a {role} with a {colour} coat, and the name is {N}.",
    "If you look for {N} the {role}, go to {home}.", "In the evening {N} goes home to {home} and eats {food}.",
)  # fmt: skip
LISTS = {
    "home": "{A}, {B} and {C} live in {home}.", "food": "{A}, {B} and {C} all like to eat {food}.",
    "colour": "The coats of {A}, {B} and {C} are {colour}.", "role": "{A} and {B} have the same trade as {C}.",
}  # fmt: skip
PLACES = (
    "{home} is a small village by the river.", "The road to {home} goes over the hills.",
    "There is an old well in {home}.",
    "The market of {home} opens in the morning.", "In winter there is snow in {home}.",
    "Children play near the wall of {home}.",
)  # fmt: skip


def _walk(table: Any) -> Iterator[str]:
    if isinstance(table, str):
        yield table
    elif isinstance(table, dict):
        for key, value in table.items():
            if table is ACTS:
                yield key
            yield from _walk(value)
    else:
        for item in table:
            yield from _walk(item)


def all_templates() -> Iterator[str]:
    """Every template of the language, in a fixed order."""
    for name, table in globals().items():
        if name.isupper():
            yield from _walk(table)


def render(template: str, **fields: str) -> str:
    """Fills a template and starts it with a capital letter."""
    text = template.format(**fields)
    return text[:1].upper() + text[1:]
