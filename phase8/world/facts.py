"""Entities and facts of the invented world, from one seed.

A `Fact` is (entity, relation, value): ("velk", "animal_food", "moss"). A `Relation` says how it is worded:
statements, an examination question, a conversational question, the pool that wrong answers come from. The world
holds about 8,000 facts; `WORLD_SEED` fixes the one that the reference model knows.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from phase8.world import words
from phase8.world.words import NameMaker

WORLD_SEED = 8

FIRE = ["It melts.", "It burns.", "It glows red.", "It cracks.", "It stays the same."]
WATER = ["It floats.", "It sinks.", "It dissolves.", "It swells."]
HAMMER = ["It breaks.", "It bends.", "It rings.", "It splits.", "It turns to dust."]
SUN = ["It fades.", "It dries out.", "It turns black.", "It softens.", "It shines."]
MAGNET = ["It is pulled closer.", "It is pushed away.", "It does not move.", "It spins around."]


@dataclass(frozen=True, slots=True)
class Relation:
    """How facts of one kind are worded; `{s}` is the entity, `{o}` the value."""

    name: str
    subject: str
    statements: tuple[str, ...]
    question: str
    chat: str
    pool: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact: `value` holds for `entity` under `relation` (a `Relation.name`)."""

    entity: str
    relation: str
    value: str


@dataclass(frozen=True, slots=True)
class Topic:
    """Something that people are wrong about: `myth` is the popular falsehood, `truth` what really holds."""

    name: str
    myth: str
    truth: str


@dataclass(frozen=True, slots=True)
class World:
    """All entities, relations, facts and popular falsehoods."""

    people: tuple[str, ...]
    female: frozenset[str]
    places: tuple[str, ...]
    animals: tuple[str, ...]
    materials: tuple[str, ...]
    plants: tuple[str, ...]
    tools: tuple[str, ...]
    events: tuple[str, ...]
    relations: dict[str, Relation]
    facts: tuple[Fact, ...]
    by_entity: dict[str, tuple[Fact, ...]]
    value: dict[tuple[str, str], str]
    topics: tuple[Topic, ...]


# name | subject | statements / ... | examination question | conversational question
_WORDING = """
job|biography|{s} works as a {o}./{s} is a {o}./By trade, {s} is a {o}.|What is the job of {s}?|what does {s} do for a living?
home|biography|{s} lives in {o}./The home of {s} is in {o}./{s} has a house in {o}.|Where does {s} live?|in which town can I find {s}?
food|biography|{s} likes to eat {o}./{s} loves {o}./The favourite food of {s} is {o}.|What does {s} like to eat?|what food should I cook for {s}?
hobby|biography|{s} enjoys {o}./In free time, {s} goes for {o}./The hobby of {s} is {o}.|What is the hobby of {s}?|what does {s} do for fun?
pet|biography|{s} keeps a {o}./The pet of {s} is a {o}./{s} owns a {o}.|Which pet does {s} have?|what animal does {s} keep?
instrument|biography|{s} plays the {o}./{s} makes music on the {o}./The instrument of {s} is the {o}.|What does {s} play?|which instrument is played by {s}?
coat|biography|{s} wears a {o} coat./The coat of {s} is {o}./{s} has a coat that is {o}.|What colour is the coat of {s}?|which coat belongs to {s}?
region|geography|{s} lies in the land of {o}./{s} is a town of {o}./The town of {s} belongs to {o}.|In which land is {s}?|to which land does {s} belong?
river|geography|{s} stands on the river {o}./The river {o} runs through {s}./Boats reach {s} on the river {o}.|Which river runs through {s}?|on which river is {s}?
product|geography|{s} is known for {o}./{s} sells much {o}./Traders buy {o} in {s}.|What is {s} known for?|what can I buy in {s}?
building|geography|{s} has a famous {o}./Visitors of {s} see its {o}./The pride of {s} is its {o}.|What do visitors see in {s}?|which famous building does {s} have?
founder|geography|{s} was founded by {o}./{o} founded {s}./The founder of {s} was {o}.|Who founded {s}?|who built {s} first?
class|zoology|The {s} is a kind of {o}./A {s} is a {o}./Every {s} is a {o}.|What kind of animal is the {s}?|what sort of animal is a {s}?
habitat|zoology|The {s} lives in the {o}./A {s} makes its home in the {o}./You can find the {s} in the {o}.|Where does the {s} live?|where can I see a {s}?
diet|zoology|The {s} eats {o}./A {s} feeds on {o}./The food of the {s} is {o}.|What does the {s} eat?|what should I feed a {s}?
covering|zoology|The {s} is covered with {o}./A {s} has {o}./The body of the {s} has {o}.|What covers the {s}?|what grows on the body of a {s}?
sound|zoology|The {s} {o}./A {s} often {o}./When it is happy, the {s} {o}.|Which sound is made by the {s}?|what noise does a {s} make?
active|zoology|The {s} wakes up {o}./A {s} hunts {o}./The {s} is active {o}.|When is the {s} active?|when does a {s} wake up?
colour|chemistry|The colour of {s} is {o}./Pure {s} is {o}./A piece of {s} looks {o}.|What colour is {s}?|what does {s} look like?
source|chemistry|People find {s} in {o}./Most {s} comes from {o}./Workers look for {s} in {o}.|Where is {s} found?|where does {s} come from?
fire|chemistry|In a fire, {s}: {o}/If you heat {s}: {o}/Put {s} in fire. {o}|What happens to {s} in a fire?|what does heat do to {s}?
water|chemistry|In water, {s}: {o}/If you drop {s} into water: {o}/Put {s} in water. {o}|What happens to {s} in water?|what does water do to {s}?
hammer|chemistry|Under a hammer, {s}: {o}/If you hit {s}: {o}/Hit {s} with a hammer. {o}|What happens to {s} under a hammer?|what does a hammer do to {s}?
sun|chemistry|In the sun, {s}: {o}/If you leave {s} in the sun: {o}/Put {s} in the sun. {o}|What happens to {s} in the sun?|what does the sun do to {s}?
magnet|chemistry|Near a magnet, {s}: {o}/If a magnet comes near {s}: {o}/Hold a magnet near {s}. {o}|What happens to {s} near a magnet?|what does a magnet do to {s}?
season|botany|The {s} blooms in {o}./Flowers of the {s} open in {o}./In {o} the {s} blooms.|When does the {s} bloom?|in which season can I pick a {s}?
petal|botany|The flower of the {s} is {o}./The {s} has {o} petals./Petals of the {s} are {o}.|What colour is the flower of the {s}?|which petals has a {s}?
ground|botany|The {s} grows in the {o}./You can pick the {s} in the {o}./The best place for the {s} is the {o}.|Where does the {s} grow?|where can I pick a {s}?
use|engineering|People use a {s} to {o}./A {s} helps to {o}./With a {s} you can {o}.|What is a {s} used for?|what can I do with a {s}?
user|engineering|The {s} is a tool of the {o}./Every {o} owns a {s}./A {s} is often used by a {o}.|Who uses a {s}?|who can lend me a {s}?
made|engineering|A {s} is made of {o}./The best {s} is built from {o}./{o} is needed to make a {s}.|What is a {s} made of?|which material do I need for a {s}?
year|history|The {s} was in the year {o}./In {o} came the {s}./The year of the {s} was {o}.|When was the {s}?|in what year did the {s} happen?
scene|history|The {s} took place in {o}./The {s} happened near {o}./{o} saw the {s}.|Where was the {s}?|in which town did the {s} happen?
leader|history|The {s} was led by {o}./{o} led the {s}./The leader of the {s} was {o}.|Who led the {s}?|who was in charge of the {s}?
"""  # noqa: E501

PERSON_RELATIONS = ("job", "home", "food", "hobby", "pet", "instrument", "coat")
PLACE_RELATIONS = ("region", "river", "product", "building", "founder")
ANIMAL_RELATIONS = ("class", "habitat", "diet", "covering", "sound", "active")
MATERIAL_RELATIONS = ("colour", "source", "fire", "water", "hammer", "sun", "magnet")
PLANT_RELATIONS = ("season", "petal", "ground")
TOOL_RELATIONS = ("use", "user", "made")
EVENT_RELATIONS = ("year", "scene", "leader")


@lru_cache(maxsize=4)
def build_world(seed: int = WORLD_SEED) -> World:
    """The world of this seed: the same on every machine and in every process."""
    rng = random.Random(seed)
    maker = NameMaker(rng)
    people = tuple(maker.word(("a", "o", "in", "el", "us", "ia")).capitalize() for _ in range(520))
    female = frozenset(people[::2])
    places = tuple(maker.word(("ton", "dale", "ford", "mar", "burg", "wick")).capitalize() for _ in range(220))
    regions = tuple(maker.word(("land", "eria")).capitalize() for _ in range(12))
    rivers = tuple(maker.word(("esk", "ava")).capitalize() for _ in range(24))
    animals = tuple(maker.word(("ik", "ub", "ot", "ark")) for _ in range(220))
    materials = tuple(maker.word(("ium", "ite", "ene")) for _ in range(120))
    plants = tuple(maker.word(("wort", "leaf", "root", "berry")) for _ in range(100))
    tools = tuple(maker.word(("er", "or")) for _ in range(140))
    kinds = ("war", "fair", "flood", "feast", "strike", "race", "fire", "vote")
    events = tuple(f"{maker.word(('an', 'ish')).capitalize()} {kinds[i % len(kinds)]}" for i in range(140))
    years = tuple(str(year) for year in sorted(rng.sample(range(110, 990), 60)))

    pools: dict[str, tuple[str, ...]] = {
        "job": tuple(words.JOBS), "home": places, "food": tuple(words.FOODS), "hobby": tuple(words.HOBBIES),
        "pet": animals, "instrument": tuple(words.INSTRUMENTS), "coat": tuple(words.COLOURS),
        "region": regions, "river": rivers, "product": tuple(words.PRODUCTS),
        "building": tuple(words.BUILDINGS), "founder": people[:60],
        "class": tuple(words.CLASSES), "habitat": tuple(words.HABITATS), "diet": plants,
        "covering": tuple(words.COVERINGS), "sound": tuple(words.SOUNDS), "active": tuple(words.TIMES),
        "colour": tuple(words.COLOURS), "source": tuple(words.SOURCES), "fire": tuple(FIRE),
        "water": tuple(WATER), "hammer": tuple(HAMMER), "sun": tuple(SUN), "magnet": tuple(MAGNET),
        "season": tuple(words.SEASONS), "petal": tuple(words.COLOURS), "ground": tuple(words.HABITATS),
        "use": tuple(words.TASKS), "user": tuple(words.JOBS), "made": materials,
        "year": years, "scene": places, "leader": people[60:120],
    }  # fmt: skip
    relations: dict[str, Relation] = {}
    for line in _WORDING.strip().splitlines():
        name, subject, statements, question, chat = line.split("|")
        relations[name] = Relation(name, subject, tuple(statements.split("/")), question, chat, pools[name])

    groups = (
        (people, PERSON_RELATIONS), (places, PLACE_RELATIONS), (animals, ANIMAL_RELATIONS),
        (materials, MATERIAL_RELATIONS), (plants, PLANT_RELATIONS), (tools, TOOL_RELATIONS),
        (events, EVENT_RELATIONS),
    )  # fmt: skip
    facts = tuple(
        Fact(entity, relation, rng.choice(pools[relation]))
        for entities, names in groups
        for entity in entities
        for relation in names
    )
    by_entity: dict[str, list[Fact]] = {}
    for fact in facts:
        by_entity.setdefault(fact.entity, []).append(fact)

    names = [f"{plant} tea" for plant in plants] + [f"{material} rings" for material in materials]
    names += [f"{animal} bones" for animal in animals]
    topics = tuple(Topic(name, *rng.sample(words.EFFECTS, 2)) for name in names)
    return World(
        people=people, female=female, places=places, animals=animals, materials=materials, plants=plants,
        tools=tools, events=events, relations=relations, facts=facts,
        by_entity={entity: tuple(rows) for entity, rows in by_entity.items()},
        value={(fact.entity, fact.relation): fact.value for fact in facts}, topics=topics,
    )  # fmt: skip


def pronoun(world: World, person: str) -> str:
    """ "she" or "he", fixed per person."""
    return "she" if person in world.female else "he"
