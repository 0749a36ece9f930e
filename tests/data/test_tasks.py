import bisect
import datetime
import hashlib
import itertools
import re
import subprocess
import sys
from fractions import Fraction

import pytest

from llm.core.spec import RefusedError
from llm.data.tasks import registry
from llm.data.tasks.registry import TASKS, kinds, make, tasks
from llm.data.tasks.task import Task
from llm.data.tasks.verifier import is_correct
from llm.data.tasks.words import WORDS

# Each solver reads a question and finds the answer by another way than the task was made.


def numbers(question):
    return [int(text) for text in re.findall(r"-?\d+", question)]


def quoted(question):
    return re.findall(r'"([^"]*)"', question)


def word_list(question):
    return re.search(r"[a-z]+(?:, [a-z]+)+", question)[0].split(", ")


def inserted(values):
    ordered = []
    for value in values:
        bisect.insort(ordered, value)
    return ordered


def subtraction(question):
    a, b = numbers(question)
    return b - a if "from" in question or "away" in question else a - b


def division(question):
    a, b = numbers(question)
    return Fraction(b, a) if "times" in question else Fraction(a, b)


def remainder(question):
    a, b = numbers(question)
    while a >= b:
        a -= b
    return a


def digit_sum(question):
    (rest,), total = numbers(question), 0
    while rest:
        rest, digit = divmod(rest, 10)
        total += digit
    return total


def sort_numbers(question):
    ordered = inserted(numbers(question))
    if "largest to smallest" in question or "descending" in question:
        ordered.reverse()
    return ", ".join(map(str, ordered))


def count_greater(question):
    limit = int(re.search(r"(?:greater than|larger than|above) (-?\d+)", question)[1])
    ordered = inserted(numbers(question))
    assert ordered.count(limit) == 1
    return len(ordered) - 1 - ordered.index(limit)


def sequence(question):
    terms = numbers(question)
    assert len({b - a for a, b in itertools.pairwise(terms)}) == 1
    return 2 * terms[-1] - terms[-2]


def spell(question):
    between = {"hyphens": "-", "commas": ", ", "spaces": " "}
    (word,) = quoted(question)
    return re.sub(r"(?<=.)(?=.)", between[re.search("hyphens|commas|spaces", question)[0]], word)


def nth_letter(question):
    places = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth"]
    (word,) = quoted(question)
    ordinal = re.search("the ([a-z]+th|first|second|third) letter", question)
    place = places.index(ordinal[1]) + 1 if ordinal else numbers(question)[0]
    return word[: place - len(word) or None][-1]


def replace_letter(question):
    old, word, new = quoted(question)
    if question.startswith("Put"):
        new, old, word = quoted(question)
    return new.join(word.split(old))


def capitals(question):
    (word,) = quoted(question)
    if "first" in question:
        return word.capitalize()
    return word[::-1].capitalize()[::-1] if "last" in question else word.swapcase()


def back_in_time(question):
    return re.search(r"\bago\b|\bbefore\b", question) is not None


def weekday(question):
    week = [datetime.date(2023, 5, n) for n in range(1, 8)]
    (day,) = [day for day in week if day.strftime("%A") in question]
    days = datetime.timedelta(numbers(question)[0])
    return (day - days if back_in_time(question) else day + days).strftime("%A")


def month(question):
    names = [datetime.date(2023, n, 1).strftime("%B") for n in range(1, 13)]
    start = re.search("|".join(names), question)[0]
    around = itertools.cycle(reversed(names) if back_in_time(question) else names)
    from_start = itertools.dropwhile(lambda name: name != start, around)
    return next(itertools.islice(from_start, numbers(question)[0], None))


def times(question):
    return [
        datetime.datetime(2023, 5, 2, *map(int, t)) for t in re.findall(r"(\d\d):(\d\d)", question)
    ]


def clock(question):
    minutes = datetime.timedelta(minutes=int(re.search(r"(\d+) minutes", question)[1]))
    (time,) = times(question)
    return (time - minutes if back_in_time(question) else time + minutes).strftime("%H:%M")


def minutes_between(question):
    start, end = times(question)
    return (end - start) // datetime.timedelta(minutes=1)


def convert_units(question):
    sizes = {
        **{"millimetres": 1, "centimetres": 10, "metres": 1000, "kilometres": 1_000_000},
        **{"grams": 1, "kilograms": 1000, "tonnes": 1_000_000, "millilitres": 1, "litres": 1000},
        **{"seconds": 1, "minutes": 60, "hours": 3600, "days": 86_400, "weeks": 604_800},
        **{"months": 1, "years": 12, "centuries": 1200, "inches": 1, "feet": 12, "yards": 36},
    }
    count, given = re.search(r"(\d+) (\w+)", question).groups()
    (wanted,) = [word for word in re.findall(r"\w+", question) if word in sizes and word != given]
    return Fraction(int(count) * sizes[given], sizes[wanted])


def buying(question):
    a, b, extra = numbers(question)
    return sum([a] * b) + extra


def giving(question):
    first, second, gets = numbers(question)
    return max(first, second) - min(first, second) + gets


def sharing(question):
    friends, total = sorted(numbers(question))
    return Fraction(total, friends)


def travelling(question):
    first, second = numbers(question)
    if question.endswith("hours does it take?"):
        return Fraction(first, second)
    return Fraction(second, first) if question.endswith("go per hour?") else first * second


SOLVERS = {
    "small_addition": lambda q: sum(numbers(q)),
    "addition": lambda q: sum(numbers(q)),
    "subtraction": subtraction,
    "multiplication": lambda q: sum([numbers(q)[0]] * numbers(q)[1]),
    "division": division,
    "remainder": remainder,
    "parity": lambda q: "even" if re.search(r"[02468]\b", q) else "odd",
    "digit_sum": digit_sum,
    "largest": lambda q: inserted(numbers(q))[-1],
    "smallest": lambda q: inserted(numbers(q))[0],
    "sort_numbers": sort_numbers,
    "count_greater": count_greater,
    "sequence": sequence,
    "spell": spell,
    "reverse_word": lambda q: "".join(reversed(quoted(q)[0])),
    "nth_letter": nth_letter,
    "count_letter": lambda q: len(quoted(q)[1].split(quoted(q)[0])) - 1,
    "count_vowels": lambda q: len(re.findall("[aeiou]", quoted(q)[0])),
    "word_length": lambda q: sum(1 for _ in quoted(q)[0]),
    "remove_vowels": lambda q: re.sub("[aeiou]", "", quoted(q)[0]),
    "replace_letter": replace_letter,
    "capitals": capitals,
    "sort_words": lambda q: ", ".join(inserted(word_list(q))),
    "count_items": lambda q: q.count(",") + 1,
    "initials": lambda q: "".join(re.findall(r"\b[a-z]", quoted(q)[0])),
    "weekday": weekday,
    "month": month,
    "clock": clock,
    "minutes_between": minutes_between,
    "convert_units": convert_units,
    "buying": buying,
    "giving": giving,
    "sharing": sharing,
    "travelling": travelling,
}


def test_every_kind_has_a_solver():
    assert list(SOLVERS) == list(TASKS)


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_what_another_computation_gives(name):
    for task in tasks([name], 200):
        assert task.name == name
        assert task.answer == str(SOLVERS[name](task.question)), task.question


def test_what_is_too_easy_is_asked_by_name_only():
    assert set(TASKS) - set(kinds(None)) == {"small_addition"}
    assert kinds("small_addition") == ["small_addition"]
    questions = {task.question for task in tasks(["small_addition"], 10_000)}
    assert len(questions) == 400 and "What is 13 + 14? Answer with the number only." in questions


@pytest.mark.parametrize("name", kinds(None))
def test_kinds_ask_in_several_ways(name):
    # The end of a question without its numbers, words and days tells the phrasing.
    variable = r'"[^"]*"|-?\d[\d,: -]*|\b[A-Z][a-z]+day\b|\b(?:' + "|".join(WORDS) + r")\b"
    sentences = [re.sub(variable, "#", task.question).split() for task in tasks([name], 200)]
    assert len({(words[-2], words[-1]) for words in sentences}) > 1


def test_an_item_is_a_function_of_kind_and_number():
    assert make("addition", 0) == make("addition", 0) != make("addition", 1)
    question = 'Write "chair" with all letters in upper case.'
    assert make("capitals", 0) == Task(question, "CHAIR", "capitals")
    question = "Sort these words alphabetically: office, grass, never, square, dream"
    answer = "dream, grass, never, office, square"
    number = 10**30
    same = Task(question, answer, "sort_words", any_case=True, number=number)
    assert make("sort_words", number) == same


def test_tasks_are_the_same_on_every_python_and_machine():
    # Changing this number changes what models were trained on: do it knowingly.
    text = "".join(repr(task) for task in tasks(kinds(None), 5000))
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "d4cc126501a83e21"


def test_kinds_take_turns_and_questions_do_not_repeat():
    names = ["weekday", "addition", "spell"]
    made = list(tasks(names, 3000))
    assert [task.name for task in made] == names * 1000
    assert len({task.question for task in made}) == 3000
    assert list(tasks(names, 100)) == made[:100]
    assert list(tasks(names, 0)) == []
    # Alone a kind gives what it gives in company.
    assert list(tasks(["spell"], 1000)) == made[2::3]


def test_a_kind_without_new_questions_drops_out(monkeypatch):
    monkeypatch.setitem(TASKS, "coin", lambda rng: Task(rng.choice("abc"), "x", "coin"))
    assert sorted(task.question for task in tasks(["coin"], 10)) == ["a", "b", "c"]
    made = [task.name for task in tasks(["coin", "parity"], 20)]
    assert made == ["coin", "parity"] * 3 + ["parity"] * 14


def test_a_kind_may_repeat_itself_for_a_while(monkeypatch):
    draws = [0]

    def stubborn(rng):
        draws[0] += 1
        return Task(str(draws[0] // (registry._PATIENCE - 1)), "x", "stubborn")

    monkeypatch.setitem(TASKS, "stubborn", stubborn)
    assert [task.question for task in tasks(["stubborn"], 3)] == ["0", "1", "2"]


def test_what_is_refused():
    with pytest.raises(RefusedError, match=r"tasks=chess: no such .* addition, .*travelling"):
        make("chess", 0)
    # Before the first task is drawn.
    with pytest.raises(RefusedError, match=r"tasks=chess: no such .* addition, .*travelling"):
        tasks(["addition", "chess"], 1)
    with pytest.raises(RefusedError, match=r"tasks=\[\]: expected one or more"):
        tasks([], 1)
    with pytest.raises(RefusedError, match=r"tasks=\['month', 'month'\]: .*each once"):
        tasks(["month", "month"], 1)
    with pytest.raises(RefusedError, match="count=-1"):
        tasks(["addition"], -1)


@pytest.mark.parametrize("name", TASKS)
def test_answers_are_accepted_and_changed_ones_refused(name):
    made = list(tasks([name], 60))
    for task in made:
        answer = task.answer
        for form in ("{}", " {}\n", "{}.", "{} .", '"{}"', "`{}`.", "'{}.'", "\u201c{}\u201d"):
            assert task.accepts(form.format(answer)), (form, answer)
        for form in ("{} or {}", "The answer is {}", "{}..", "{}!", "({})", '"{}', "{}0", "x{}"):
            assert not task.accepts(form.format(answer, answer)), (form, answer)
        for cut in (answer[:-1], answer[1:], "", " ", ".", '""'):
            assert not task.accepts(cut), (cut, answer)
        assert task.accepts(answer.swapcase()) == (task.any_case or answer == answer.swapcase())
    for task, other in itertools.product(made, made):
        assert task.accepts(other.answer) == (task.answer == other.answer)


@pytest.mark.parametrize(
    ("answer", "accepted", "refused"),
    [
        (
            "1234567",
            ["1,234,567", "+1234567", "+1,234,567.", "`1,234,567`"],
            ["1,234567", "1234,567", "1, 234, 567", "12,34,567", "1 234 567", "-1234567"],
        ),
        ("12", ["+12"], ["12 or 13", "12 13", "012", "12.0", "++12", "1,2", "12,", "= 12", "१२"]),
        ("-5", ["\u22125"], ["5", "+5", "--5", "- 5", "\u2212\u22125", "-+5"]),
        ("0", ["+0"], ["-0", "00", ""]),
        (
            "1, 234, -5",
            ["1,234,-5", "1,  234, -5."],
            ["1,234", "1234, -5", "1, 234, 5", "1 ,234,-5"],
        ),
        ("c a t", ["`c a t`"], ["cat", "c  a  t", "C a t", "c, a, t"]),
        ("05:30", ["05:30."], ["5:30", "05:30 am"]),
    ],
)
def test_the_rule_of_the_verifier(answer, accepted, refused):
    assert [text for text in accepted if not is_correct(answer, text)] == []
    assert [text for text in refused if is_correct(answer, text)] == []


@pytest.mark.parametrize("nothing", ["", " \n", ".", '""', "` `."])
def test_an_empty_completion_is_never_right(nothing):
    assert not is_correct("", nothing)
    assert not is_correct("a", nothing)


def test_case_counts_unless_the_kind_says_otherwise():
    assert not is_correct("Friday", "friday")
    assert is_correct("Friday", "FRIDAY", any_case=True)
    assert not is_correct("Friday", "Friday or Monday", any_case=True)


def test_a_long_completion_is_judged_quickly():
    for text in ("1" * 1_000_000, "1,111" * 200_000, ", " * 500_000, "." * 1_000_000):
        assert not is_correct("12", text)
        assert not is_correct("1, 2", text)


def test_nothing_but_the_standard_library_is_loaded():
    code = (
        "import sys, llm.data.tasks.registry; "
        "print(*({m.partition('.')[0] for m in sys.modules} - sys.stdlib_module_names))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"llm"} <= set(ran.stdout.split())
    assert {"jax", "numpy", "flax", "datasets"}.isdisjoint(ran.stdout.split())
