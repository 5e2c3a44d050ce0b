"""The stories of `word_problems` as a table: what happens, in which words, and which operation it stands for."""

from dataclasses import dataclass

PRONOUNS = dict.fromkeys(("Tom", "Ben", "Leo", "Max", "Sam", "Tim"), "he")
PRONOUNS |= dict.fromkeys(("Mia", "Eva", "Ann", "Zoe", "Ida", "Lily"), "she")
"""First name -> pronoun."""

THINGS = ("apples", "balls", "books", "cards", "cups", "nuts", "pens", "shells", "stones", "toys")
"""What can be had, found, lost and bought."""

OPERATIONS = {"+": 1, "-": 1, "*": 1, "/": 1, "+*": 2, "-*": 2, "from": 1, "both": 1}
"""Operation -> how many equations it takes, with `v` the number so far.

`+`: v+a. `-`: v-a. `*`: v*a. `/`: v/a without remainder. `+*`: a*b, then v plus it. `-*`: a*b, then v minus it.
`from`: a-v. `both`: the number before the last event, plus v.
"""


@dataclass(frozen=True)
class Closing:
    """A last event with a question of its own; `now` says its equation in a sentence."""

    operation: str
    text: str
    question: str
    now: str


@dataclass(frozen=True)
class Scenario:
    """One kind of story.

    `openings`: (is the first number a product, text). `events`: (operation, text). `now` says the number after an
    event in a sentence, `product` says a product. `people`: every event moves on from one person to the next.
    `first`: the range of a first number that is no product.
    Texts may name {name}, {he}, {him}, {He}, {friend}, {before}, {things}, {other}, {a}, {b}; sentences also {eq}.
    """

    name: str
    openings: tuple[tuple[bool, str], ...]
    events: tuple[tuple[str, str], ...]
    question: str
    now: str
    product: str
    closings: tuple[Closing, ...] = ()
    people: bool = False
    first: tuple[int, int] = (5, 40)


SCENARIOS = (
    Scenario(
        "collect",
        ((False, "{name} has {a} {things}."), (True, "{name} has {a} bags with {b} {things} each.")),
        (
            ("+", "{He} finds {a} more."),
            ("+", "{friend} gives {him} {a} more."),
            ("-", "{He} gives {a} to {friend}."),
            ("-", "{He} loses {a}."),
            ("+*", "{He} finds {a} boxes with {b} {things} each."),
            ("-*", "{He} gives {b} to each of {a} friends."),
        ),
        "How many {things} does {name} have now?",
        "Now {name} has {eq} {things}.",
        "That makes {eq} {things}.",
        (
            Closing(
                "/",
                "{He} puts the same number into each of {a} boxes.",
                "How many {things} are in each box?",
                "Each box has {eq} {things}.",
            ),
        ),
    ),
    Scenario(
        "share",
        (
            (False, "{name} and {friend} have {a} {things} together."),
            (True, "{name} and {friend} have {b} {things} in each of {a} bags."),
        ),
        (
            ("+", "They find {a} more."),
            ("+*", "They get {b} from each of {a} friends."),
            ("-", "They lose {a}."),
            ("-*", "They give {b} to each of {a} children."),
        ),
        "How many {things} do they have now?",
        "Now they have {eq} {things}.",
        "That makes {eq} {things}.",
        (
            Closing(
                "/", "They share them among {a} people.", "How many {things} does each one get?", "Each one gets {eq}."
            ),
            Closing("/", "Each child gets {a}.", "How many children get {things}?", "There are {eq} children."),
        ),
    ),
    Scenario(
        "shop",
        (
            (True, "{name} buys {a} {things} for {b} coins each."),
            (False, "{name} buys a bag for {a} coins."),
        ),
        (
            ("+*", "{He} buys {a} {other} for {b} coins each."),
            ("+*", "Then {he} takes {a} {other} at {b} coins each."),
            ("+", "{He} also buys a rope for {a} coins."),
            ("-", "The shop takes {a} coins off."),
        ),
        "How many coins does {he} pay?",
        "The cost is now {eq} coins.",
        "They cost {eq} coins.",
        (
            Closing("from", "{He} pays with {a} coins.", "How many coins does {he} get back?", "{He} gets back {eq}."),
            Closing("/", "The cost is shared among {a} friends.", "How many coins does each pay?", "Each pays {eq}."),
        ),
    ),
    Scenario(
        "money",
        ((True, "{name} saves {a} coins each week for {b} weeks."), (False, "{name} has {a} coins.")),
        (
            ("+", "{friend} gives {him} {a} coins."),
            ("-", "{He} pays {a} coins for a toy."),
            ("+*", "{He} works {a} hours for {b} coins each hour."),
            ("-*", "{He} buys {a} {other} for {b} coins each."),
        ),
        "How many coins does {name} have now?",
        "Now {he} has {eq} coins.",
        "That makes {eq} coins.",
        (
            Closing(
                "/",
                "{He} pays all of it for pens at {a} coins each.",
                "How many pens does {he} get?",
                "{He} gets {eq} pens.",
            ),
        ),
    ),
    Scenario(
        "ages",
        ((False, "{name} is {a} years old."),),
        (
            ("+", "{friend} is {a} years older than {name}."),
            ("-", "{friend} is {a} years younger than {name}."),
            ("*", "{friend} is {a} times as old as {name}."),
        ),
        "How old is {name}?",
        "{name} is {eq} years old.",
        "{name} is {eq} years old.",
        (
            Closing("+", "", "How old is {name} in {a} years?", "In {a} years that is {eq}."),
            Closing("-", "", "How old was {name} {a} years ago?", "{a} years ago that was {eq}."),
            Closing("both", "", "How old are {before} and {name} together?", "Together that is {eq} years."),
        ),
        people=True,
        first=(4, 20),
    ),
    Scenario(
        "compare",
        ((False, "{name} has {a} {things}."), (True, "{name} has {a} boxes with {b} {things} each.")),
        (
            ("+", "{friend} has {a} more than {name}."),
            ("-", "{friend} has {a} less than {name}."),
            ("*", "{friend} has {a} times as many as {name}."),
            ("+*", "{friend} has as many as {name} and {a} bags with {b} more each."),
        ),
        "How many {things} does {name} have?",
        "{name} has {eq} {things}.",
        "That makes {eq} {things}.",
        (Closing("both", "", "How many {things} do {before} and {name} have together?", "Together they have {eq}."),),
        people=True,
        first=(4, 20),
    ),
    Scenario(
        "walk",
        (
            (False, "{name} walks {a} km away from home."),
            (True, "{name} walks away from home, {a} km each hour for {b} hours."),
        ),
        (
            ("+", "{He} goes on for {a} km."),
            ("-", "{He} goes back {a} km."),
            ("+*", "{He} rides on for {a} hours, {b} km each hour."),
            ("-*", "{He} walks back for {a} hours, {b} km each hour."),
        ),
        "How many km is {he} from home?",
        "Now {he} is {eq} km from home.",
        "That way is {eq} km.",
        (
            Closing(
                "/", "{He} walks home at {a} km each hour.", "How many hours does that take?", "It takes {eq} hours."
            ),
        ),
    ),
    Scenario(
        "bus",
        ((False, "A bus has {a} people."), (True, "A bus has {a} rows with {b} people each.")),
        (
            ("+", "{a} people get on."),
            ("-", "{a} people get off."),
            ("+*", "At each of {a} stops {b} people get on."),
            ("-*", "At each of {a} stops {b} people get off."),
        ),
        "How many people are on the bus now?",
        "Now there are {eq} people.",
        "That makes {eq} people.",
        (
            Closing(
                "/", "They all go on in cars, {a} in each car.", "How many cars do they need?", "They need {eq} cars."
            ),
        ),
    ),
    Scenario(
        "read",
        ((False, "{name} has a book of {a} pages."), (True, "{name} has a book of {a} parts with {b} pages each.")),
        (
            ("-", "{He} reads {a} pages."),
            ("-", "The next day {he} reads {a} pages."),
            ("-*", "{He} reads {b} pages each day for {a} days."),
            ("-*", "Then {he} reads {a} parts of {b} pages."),
        ),
        "How many pages are left?",
        "Now {eq} pages are left.",
        "That makes {eq} pages.",
        (
            Closing(
                "/",
                "{He} reads the rest in {a} days, the same number each day.",
                "How many pages does {he} read each of these days?",
                "Each day {he} reads {eq} pages.",
            ),
        ),
        first=(40, 95),
    ),
    Scenario(
        "farm",
        ((True, "A farm has {a} hens. Each hen lays {b} eggs."), (False, "A farm has {a} eggs.")),
        (
            ("+", "{a} more eggs are found."),
            ("-", "{a} eggs break."),
            ("-", "{name} eats {a}."),
            ("-*", "{name} sells {a} boxes of {b} eggs."),
            ("+*", "Then {a} hens lay {b} eggs each."),
        ),
        "How many eggs are there now?",
        "Now there are {eq} eggs.",
        "That makes {eq} eggs.",
        (Closing("/", "The eggs go into boxes of {a}.", "How many boxes are full?", "They fill {eq} boxes."),),
    ),
    Scenario(
        "room",
        ((True, "A room has {a} rows with {b} chairs each."), (False, "A room has {a} chairs.")),
        (
            ("+", "{name} brings {a} chairs."),
            ("-", "{name} takes away {a} chairs."),
            ("+*", "{a} children bring {b} chairs each."),
            ("-*", "{a} children take away {b} chairs each."),
        ),
        "How many chairs are in the room now?",
        "Now there are {eq} chairs.",
        "That makes {eq} chairs.",
        (
            Closing("/", "{name} makes {a} equal rows.", "How many chairs are in each row?", "Each row has {eq}."),
            Closing("from", "{a} people come.", "How many of them find no chair?", "{eq} people find no chair."),
        ),
    ),
    Scenario(
        "water",
        (
            (False, "A tank has {a} liters of water."),
            (True, "{name} fills a tank, {a} liters each minute for {b} minutes."),
        ),
        (
            ("+", "Then {name} puts in {a} liters."),
            ("-", "Then {friend} takes out {a} liters."),
            ("+*", "Then {b} liters flow in each minute for {a} minutes."),
            ("-*", "Then {name} takes out {a} cups of {b} liters."),
        ),
        "How many liters are in the tank now?",
        "Now there are {eq} liters.",
        "That makes {eq} liters.",
        (
            Closing(
                "/",
                "It flows out at {a} liters each minute.",
                "How many minutes does that take?",
                "It takes {eq} minutes.",
            ),
            Closing(
                "from", "The tank is full at {a} liters.", "How many more liters fit in?", "{eq} more liters fit in."
            ),
        ),
    ),
    Scenario(
        "rope",
        ((False, "{name} has a rope of {a} m."), (True, "{name} makes one rope of {a} parts of {b} m.")),
        (
            ("-", "{He} cuts off {a} m."),
            ("-*", "{He} cuts off {a} parts of {b} m."),
            ("+", "{He} adds {a} m."),
            ("-", "{friend} takes {a} m of it."),
        ),
        "How many m of rope does {name} have now?",
        "Now {he} has {eq} m.",
        "The parts make {eq} m.",
        (Closing("/", "{He} cuts it into {a} equal parts.", "How many m is each part?", "Each part has {eq} m."),),
        first=(30, 95),
    ),
    Scenario(
        "garden",
        ((True, "{name} has {a} rows with {b} trees each."), (False, "{name} has {a} trees.")),
        (
            ("+", "{He} puts in {a} more trees."),
            ("-", "{He} cuts down {a} trees."),
            ("*", "A year later there are {a} times as many."),
            ("+*", "{He} adds {a} rows of {b} trees."),
        ),
        "How many trees does {name} have now?",
        "Now there are {eq} trees.",
        "That makes {eq} trees.",
        (Closing("/", "They stand in {a} equal rows.", "How many trees are in each row?", "Each row has {eq} trees."),),
        first=(4, 30),
    ),
)
