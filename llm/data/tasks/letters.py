"""Tasks about the letters of one word, which stands in double quotes."""

from __future__ import annotations

import random

from llm.data.tasks.task import Task
from llm.data.tasks.words import any_word

_ALPHABET = "abcdefghijklmnopqrstuvwxyz"
_VOWELS = "aeiou"
_ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def spell(rng: random.Random) -> Task:
    """A word letter by letter, apart as the question asks."""
    word = any_word(rng)
    between, described = rng.choice((("-", "hyphens"), (", ", "commas"), (" ", "spaces")))
    questions = (
        f'Spell the word "{word}" with {described} between the letters.',
        f'Write "{word}" letter by letter, separated by {described}.',
        f'How is "{word}" spelled? Put {described} between the letters.',
    )
    return Task(rng.choice(questions), between.join(word), "spell", any_case=True)


def reverse_word(rng: random.Random) -> Task:
    """A word from its last letter to its first."""
    word = any_word(rng)
    questions = (
        f'Reverse the word "{word}".',
        f'Write "{word}" backwards.',
        f'What is "{word}" read from right to left?',
    )
    return Task(rng.choice(questions), word[::-1], "reverse_word", any_case=True)


def nth_letter(rng: random.Random) -> Task:
    """One letter of a word, counted from its beginning."""
    word = any_word(rng)
    place = rng.randrange(min(len(word), len(_ORDINALS)))
    questions = (
        f'What is the {_ORDINALS[place]} letter of "{word}"?',
        f'Which letter is number {place + 1} in the word "{word}"?',
        f'Give the letter at position {place + 1} of "{word}", counting from 1.',
    )
    return Task(rng.choice(questions), word[place], "nth_letter", any_case=True)


def count_letter(rng: random.Random) -> Task:
    """How often a letter is in a word; sometimes it is not."""
    word = any_word(rng)
    letter = rng.choice(_ALPHABET if rng.random() < 0.25 else word)
    questions = (
        f'How many times does the letter "{letter}" occur in "{word}"?',
        f'Count the letter "{letter}" in the word "{word}".',
        f'How often is the letter "{letter}" used in "{word}"?',
    )
    return Task(rng.choice(questions), str(word.count(letter)), "count_letter")


def count_vowels(rng: random.Random) -> Task:
    """How many letters of a word are vowels."""
    word = any_word(rng)
    questions = (
        f'How many vowels (a, e, i, o, u) are in "{word}"?',
        f'Count the vowels a, e, i, o and u in the word "{word}".',
        f'How many letters of "{word}" are one of a, e, i, o, u?',
    )
    count = sum(letter in _VOWELS for letter in word)
    return Task(rng.choice(questions), str(count), "count_vowels")


def word_length(rng: random.Random) -> Task:
    """How many letters a word has."""
    word = any_word(rng)
    questions = (
        f'How many letters does the word "{word}" have?',
        f'Count the letters in "{word}".',
        f'How long is the word "{word}", in letters?',
    )
    return Task(rng.choice(questions), str(len(word)), "word_length")


def remove_vowels(rng: random.Random) -> Task:
    """A word without its vowels."""
    word = any_word(rng)
    questions = (
        f'Remove the vowels a, e, i, o and u from "{word}".',
        f'Write "{word}" without its vowels (a, e, i, o, u).',
        f'What is left of "{word}" when every a, e, i, o and u is deleted?',
    )
    answer = "".join(letter for letter in word if letter not in _VOWELS)
    return Task(rng.choice(questions), answer, "remove_vowels", any_case=True)


def replace_letter(rng: random.Random) -> Task:
    """A word with one of its letters changed to another wherever it occurs."""
    word = any_word(rng)
    old = rng.choice(word)
    new = rng.choice(_ALPHABET.replace(old, ""))
    questions = (
        f'Replace every "{old}" in "{word}" with "{new}".',
        f'Change each letter "{old}" of "{word}" to "{new}".',
        f'Put "{new}" in place of "{old}" everywhere in "{word}".',
    )
    return Task(rng.choice(questions), word.replace(old, new), "replace_letter", any_case=True)


def capitals(rng: random.Random) -> Task:
    """A word with its first letter, its last letter or all of them as capitals."""
    word = any_word(rng)
    all_capitals = word.upper()
    described, answer = rng.choice(
        (
            ("all letters", all_capitals),
            ("only the first letter", all_capitals[0] + word[1:]),
            ("only the last letter", word[:-1] + all_capitals[-1]),
        )
    )
    questions = (
        f'Write "{word}" with {described} in upper case.',
        f'Copy the word "{word}", but put {described} in upper case.',
        f'How does "{word}" look with {described} in capitals?',
    )
    return Task(rng.choice(questions), answer, "capitals")
