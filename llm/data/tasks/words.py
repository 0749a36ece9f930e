"""The words that tasks are about: common English ones, and made-up ones for more variety."""

from __future__ import annotations

import random

_WORD_LINES = """
able above across actor afraid again airport almost amber anchor angle animal answer apple
apron arrow artist atlas autumn avenue baker balcony bamboo banana barrel basket battery beach
beard because bedroom before begin believe bell better bicycle bird biscuit blanket blossom
blue boat border bottle bottom bowl branch bread breakfast brick bridge bright brother brown
bucket build butter button cabin cable calm camera candle canyon captain carpet carrot castle
ceiling cellar chair chalk cheese cherry chicken chimney circle city clever climb cloud coffee
collar colour common compass copper corner cotton country cousin cradle cricket crowd crystal
cup curtain cushion daily dance danger daughter decide desert dinner distance doctor dolphin
donkey door double dragon drawer dream drink drum eager eagle early earth easy echo editor
eleven empty engine enough evening exact fabric factory family famous farmer father feather
fence ferry field finger fire flag flower forest fork forward fountain fresh friend frost fruit
funny garden garlic gate gentle giant glass globe glove golden grass green guitar hammer happy
harbour harvest heavy helmet hidden hill history hollow honey horse hotel house hundred hungry
husband iron island ivory jacket jelly jewel journey juice jungle kettle kitchen kitten knee
knife ladder lake lamp language lantern large laugh leather lemon lesson letter library light
lion listen little lizard lobster lucky magnet mango marble market meadow medal melon metal
middle milk mirror model monkey month morning mountain music napkin narrow nature needle nephew
never nine noise north number oak ocean office olive onion open orange orchard oven owner
paint palace paper parade parrot path peach pepper perfect piano picture pillow pilot planet
plastic pocket poem potato powder present purple puzzle quarter queen question quick quiet
rabbit rainbow ready reason ribbon ring river rocket roof rubber saddle salad salt sandwich
school season second shadow sheep shelf shoulder silent silver simple sister sleeve slow smile
soap soldier spider spoon spring square stable station steam storm story street strong student
sudden sugar summer sunset supper surprise table teacher temple theatre thirty thunder ticket
tiger timber tomato tower travel treasure tunnel turtle umbrella uncle under useful valley
velvet village violin voice wagon walnut warm water weather whisper wide window winter wisdom
wonder wood yard yellow young zebra zero
"""
WORDS = tuple(_WORD_LINES.split())

# Few consonants, so that no syllables meet in a word that a reader would mind.
_CONSONANTS, _VOWELS = "bdlmrtvz", "aeiou"


def any_word(rng: random.Random) -> str:
    """A word to take letter by letter: a common one or, half of the time, a made-up one."""
    if rng.random() < 0.5:
        return rng.choice(WORDS)
    syllables = [rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(rng.randrange(2, 5))]
    ending = rng.choice(("", "", "l", "m", "r", "s", "x"))
    return "".join(syllables) + ending
