"""Everyday event scripts, short stories with an ending, pronoun riddles, and passages with a last word.

Held out: (activity or habit, person, town) for scripts, (story, branch, person) for endings, (pair of objects,
person) for riddles, and (passage, first person, second person) for last words.
"""

from __future__ import annotations

import random

from phase8.world import words
from phase8.world.facts import World, pronoun
from phase8.world.problem import Problem

_SCRIPTS = tuple(
    (line.split(":")[0], tuple(step.strip() for step in line.split(":")[1].split(";")))
    for line in """
bake bread:mixes flour and water;kneads the dough;waits for it to rise;puts the loaf in the oven;lets it cool
plant a tree:digs a deep hole;puts the young tree in;fills the hole with earth;pours water on it;ties it to a pole
wash clothes:fills a tub with water;adds some soap;scrubs the shirts;rinses them well;hangs them on a line
catch fish:puts a worm on the hook;throws the line into the water;waits for a bite;pulls in the fish;takes it home
write a letter:takes a sheet of paper;writes the words;folds the sheet;puts it in an envelope;brings it to the post
make soup:peels the carrots;cuts them small;drops them into hot water;stirs the pot;fills the bowls
paint a wall:covers the floor;opens the tin of paint;dips the brush;spreads the paint evenly;lets the wall dry
build a fire:gathers dry sticks;piles them up;strikes a match;blows on the sparks;adds a big log
go to sleep:brushes her teeth;puts on a nightshirt;climbs into bed;turns off the lamp;closes both eyes
fix a wheel:takes the cart apart;removes the broken spoke;fits a new spoke;puts the wheel back;tries the cart
take a train:goes to the station;buys a ticket;waits on the platform;finds a seat;watches the fields go by
shear a sheep:leads the sheep out;holds it firmly;clips the wool;lets the sheep go;packs the wool in a sack
pick apples:carries a ladder outside;leans it on the tree;climbs up;fills the basket;climbs down again
borrow a book:enters the library;looks along the shelves;chooses a book;shows a card at the desk;reads it at home
sew a button:finds a needle;threads it;pushes it through the cloth;ties a knot;cuts off the thread
clean a window:fetches a bucket;wets the cloth;wipes the glass;dries it with paper;looks through it
cross a river:unties the boat;picks up the oars;rows hard;reaches the far bank;pulls the boat on land
visit a friend:puts on a coat;walks down the road;knocks on the door;is asked inside;drinks a cup of tea
carve a spoon:picks a piece of wood;draws the shape;cuts with a sharp knife;smooths the edges;rubs it with oil
make a bed:pulls off the sheets;shakes the pillow;spreads clean sheets;lays out the blanket;tucks in the corners
ride a horse:brushes the horse;puts on the saddle;swings up;takes the reins;trots away
boil an egg:heats the water;lowers the egg in;watches the clock;takes the egg out;cracks the shell
pitch a tent:looks for flat ground;unrolls the canvas;hammers in the pegs;raises the pole;crawls inside
play a concert:tunes the strings;walks onto the stage;bows to the crowd;plays the first song;gets loud applause
sell a cow:leads it to the market;calls out a price;argues with a farmer;shakes hands;counts the money
send a parcel:finds a strong box;wraps the gift;ties it with string;writes the address;pays for the stamps
wash a dog:calls the dog;puts it in the tub;rubs in the foam;rinses its back;dries it with a towel
mend a roof:sets up the ladder;climbs to the top;takes out the cracked tile;lays a new tile;tests it with water
hold a vote:hands out the slips;collects them in a hat;counts each side;reads out the result;thanks all voters
make a candle:melts the wax;hangs a string in the mould;pours the wax;waits until it is hard;trims the wick
put out a fire:shouts for help;forms a line of people;passes the buckets;drenches the flames;checks the ashes
pack a bag:makes a list;lays out the shirts;rolls up the socks;closes the buckle;lifts the bag
polish a shoe:brushes off the mud;opens the polish;rubs it in;waits a moment;buffs until it shines
draw a map:walks along the border;measures each side;notes the numbers;sketches the lines;colours the lakes
teach a class:rings the bell;greets the pupils;explains the lesson;asks some questions;gives out homework
fly a kite:waits for wind;unwinds the string;runs up the hill;lets the kite rise;winds the string back
weave a basket:soaks the willow rods;crosses them for the base;bends the sides up;weaves round and round;adds a handle
press juice:washes the pears;throws them in the press;turns the screw;catches the juice;fills the bottles
cut hair:puts a cloth round the neck;wets the hair;combs it straight;snips the ends;holds up a mirror
see a doctor:sits in the waiting room;hears the name called;shows the sore arm;gets a bandage;goes home to rest
""".strip().splitlines()
)


# relation | what the person is about to do | what follows, given the fact
_HABITS = tuple(
    line.split("|")
    for line in """
food|sits down at the table. The basket is full|eats some {o}.
hobby|has a day off. The sun is out|goes for some {o}.
instrument|is asked for music. The guests are quiet|plays the {o}.
coat|wants to go out. The wind is cold|puts on the {o} coat.
pet|comes home late. It is already dark|feeds the {o}.
""".strip().splitlines()
)


def habit(world: World, rng: random.Random) -> Problem:
    """What a person does next, where it follows from what is known of that person."""
    relation, opening, follows = rng.choice(_HABITS)
    person, town = rng.choice(world.people), rng.choice(world.places)
    value = world.value[person, relation]
    others = rng.sample([other for other in world.relations[relation].pool if other != value], 3)
    return Problem(
        key=("habit", relation, person, town),
        prompt=f"In {town}, {person} {opening}. Then {pronoun(world, person)}",
        answer=follows.format(o=value),
        wrong=tuple(follows.format(o=other) for other in others),
    )


def script(world: World, rng: random.Random) -> Problem:
    """What comes next: a habit, or a step of an activity against other steps, two of them of the same activity."""
    if rng.random() < 0.7:
        return habit(world, rng)
    index = rng.randrange(len(_SCRIPTS))
    activity, steps = _SCRIPTS[index]
    person, town = rng.choice(world.people), rng.choice(world.places)
    pron = pronoun(world, person)
    done = rng.randint(1, 3)
    told = f"{pron.capitalize()} {steps[0]}." if done == 1 else (
        f"{pron.capitalize()} {steps[done - 2]} and {steps[done - 1]}."
    )  # fmt: skip
    same = [s for i, s in enumerate(steps) if i > done or i < done - 2]
    other = rng.choice(rng.choice(_SCRIPTS[:index] + _SCRIPTS[index + 1 :])[1])
    wrong = rng.sample(same, min(2, len(same)))
    wrong += [other] if len(wrong) == 2 else [other, rng.choice(_SCRIPTS[(index + 7) % len(_SCRIPTS)][1])]
    return Problem(
        key=("script", activity, person, town),
        prompt=f"In {town}, {person} wants to {activity}. {told} Then {pron}",
        answer=f"{steps[done]}.",
        wrong=tuple(f"{step}." for step in wrong),
    )


# story | condition that ends well | condition that ends badly | good ending | bad ending
_STORIES = tuple(
    tuple(part.strip() for part in line.split("|"))
    for line in """
{P} had a test the next day.|{P} studied all evening.|{P} played cards all evening.|{P} passed the test.|{P} failed the test.
{P} planted seeds in the garden.|{P} watered them every day.|{P} forgot to water them.|Soon there were flowers.|Soon they were all dead.
{P} had an old boat.|{P} mended every hole.|{P} did not mend the holes.|The boat stayed dry.|The boat sank.
{P} put a cake in the oven.|{P} watched the clock.|{P} fell asleep.|The cake was golden.|The cake was burnt.
{P} walked through the hills in winter.|{P} had a warm coat.|{P} had no coat.|{P} felt warm.|{P} froze.
{P} told {Q} a secret.|{Q} told nobody.|{Q} told all the neighbours.|{P} trusted {Q} even more.|{P} was angry with {Q}.
{P} ran in a race.|{P} had trained for months.|{P} had never trained.|{P} came first.|{P} came last.
{P} left a bike in the street.|{P} locked it well.|{P} did not lock it.|The bike was still there.|The bike was stolen.
{P} had a dog.|{P} fed it each morning.|{P} forgot to feed it.|The dog was strong.|The dog grew thin.
{P} lent {Q} a book.|{Q} kept it clean.|{Q} dropped it in the mud.|{P} lent {Q} another one.|{P} asked {Q} to pay.
{P} carried a tray of glasses.|{P} walked slowly.|{P} ran and tripped.|Every glass was fine.|Every glass broke.
{P} earned some coins.|{P} saved them all.|{P} spent them on sweets.|{P} could buy a gift.|{P} had no money left.
{P} went out under grey clouds.|{P} took an umbrella.|{P} left the umbrella at home.|{P} stayed dry.|{P} got wet.
{P} wanted to catch the train.|{P} left early.|{P} left too late.|{P} got on the train.|{P} missed the train.
{P} built a tower of blocks.|{Q} held it steady.|{Q} pushed it hard.|The tower stood tall.|The tower fell down.
{P} was lost in the woods.|{P} had a good map.|{P} had lost the map.|{P} found the way home.|{P} wandered all night.
{P} met {Q} for lunch.|{P} was kind to {Q}.|{P} was rude to {Q}.|{Q} smiled.|{Q} went away sad.
{P} had a bad tooth.|{P} saw the doctor.|{P} did not see the doctor.|The pain went away.|The pain got worse.
{P} left milk on the table.|The room was cold.|The room was hot.|The milk stayed fresh.|The milk turned sour.
{P} sang at the feast.|{P} knew every word.|{P} forgot the words.|The guests clapped.|The guests laughed at {P}.
{P} sold pies at the market.|The pies were tasty.|The pies were rotten.|{P} sold them all.|Nobody bought one.
{P} painted a fence.|The sun shone all day.|It rained all day.|The paint dried well.|The paint ran off.
{P} played chess with {Q}.|{P} thought about each move.|{P} did not think at all.|{P} won the game.|{Q} won the game.
{P} put a lamp near the curtain.|{P} blew out the flame.|{P} left the flame burning.|Nothing happened.|The curtain caught fire.
""".strip().splitlines()  # noqa: E501
)


def ending(world: World, rng: random.Random) -> Problem:
    """The right one of two endings of a short story; a sentence in the middle decides."""
    index, branch = rng.randrange(len(_STORIES)), rng.randrange(2)
    opening, *rest = _STORIES[index]
    person, friend = rng.sample(world.people, 2)
    town = rng.choice(world.places)
    fill = {"P": person, "Q": friend}
    filler = rng.choice(
        (f"{person} lived in {town}.", f"It was a quiet day in {town}.", f"{friend} was there too.",
         f"{person} thought of {friend}.", f"The people of {town} were busy.")
    )  # fmt: skip
    return Problem(
        key=("ending", index, branch, person),
        prompt=f"{opening.format(**fill)} {filler} {rest[branch].format(**fill)}",
        answer=rest[2 + branch].format(**fill),
        wrong=(rest[3 - branch].format(**fill),),
    )


# sentence up to the name | reason of the first | reason of the second; {A} and {B} are the two candidates
_RIDDLES = tuple(
    tuple(part.strip() for part in line.split("|"))
    for line in """
The {A} did not fit into the {B} because the|was too big.|was too small.
{P} could not lift the {A} with the {B} because the|was too heavy.|was too weak.
The {A} broke the {B} because the|was very hard.|was very thin.
The {A} fell off the {B} because the|was round.|was tilted.
{P} cleaned the {A} with the {B} because the|was dirty.|was handy.
{P} traded the {A} for the {B} because the|was not needed.|was much nicer.
{P} hid the {A} behind the {B} because the|was secret.|was wide.
{P} covered the {A} with the {B} because the|was ugly.|was pretty.
{P} sold the {A} and kept the {B} because the|was worthless.|was precious.
{P} tied the {A} to the {B} because the|might roll away.|stood firm.
""".strip().splitlines()
)
_PEOPLE_RIDDLES = tuple(
    tuple(part.strip() for part in line.split("|"))
    for line in """
{A} asked {B} for help because|did not know the answer.|knew the answer.
{A} gave {B} some bread because|had plenty.|was hungry.
{A} thanked {B} because|had got a present.|had brought a present.
{A} lost the game against {B} because|made a mistake.|played very well.
{A} carried the bag of {B} because|was strong.|was tired.
{A} could not hear {B} because|was deaf.|spoke softly.
{A} paid {B} because|had hired a worker.|had done the work.
{A} ran away from {B} because|was afraid.|was angry.
{A} taught {B} to read because|was a good teacher.|could not read.
{A} forgave {B} because|was kind.|was sorry.
""".strip().splitlines()
)


def riddle(world: World, rng: random.Random) -> Problem:
    """A sentence about two, and a reason that is about one of them: "... because the cup was too big."

    `details` holds the sentence, the two candidates with their article, the reason, and the index of the right one.
    """
    side = rng.randrange(2)
    person = rng.choice(world.people)
    if rng.random() < 0.5:
        index = rng.randrange(len(_RIDDLES))
        sentence, *reasons = _RIDDLES[index]
        first, second = rng.sample(words.OBJECTS, 2)
        key: tuple[object, ...] = ("riddle", *sorted((first, second)), person if "{P}" in sentence else "")
    else:
        index = rng.randrange(len(_PEOPLE_RIDDLES))
        sentence, *reasons = _PEOPLE_RIDDLES[index]
        first, second = rng.sample(world.people, 2)
        key = ("riddle", *sorted((first, second)))
    stem = sentence.format(A=first, B=second, P=person)
    candidates = (first, second)
    return Problem(
        key=key,
        prompt=stem,
        answer=f"{candidates[side]} {reasons[side]}",
        wrong=(f"{candidates[1 - side]} {reasons[side]}",),
        details={
            "sentence": stem.removesuffix(" the").removesuffix(" because"),
            "candidates": candidates,
            "article": "the " if stem.endswith(" the") else "",
            "reason": reasons[side],
            "side": side,
        },
    )


def _resolution(problem: Problem) -> Problem:
    """The riddle asked the other way round: the reason is given, the candidate is the answer."""
    details, article = problem.details, problem.details["article"]
    right, wrong = details["candidates"] if details["side"] == 0 else reversed(details["candidates"])  # type: ignore[misc,call-overload]
    return Problem(
        key=problem.key,
        prompt=f"{details['sentence']}. One of the two {details['reason']} It is",
        answer=f"{article}{right}.",
        wrong=(f"{article}{wrong}.",),
    )


def resolution(world: World, rng: random.Random) -> Problem:
    """Which of two the reason is about: "The cup did not fit into the bowl. One of the two was too big. It is" """
    return _resolution(riddle(world, rng))


def roles(world: World, rng: random.Random) -> str:
    """A riddle's sentence and who of the two is who: by the reason, or by the order of naming."""
    while (problem := riddle(world, rng)).reserved:
        pass
    if rng.random() < 0.3:
        return _resolution(problem).text
    first, second = problem.details["candidates"]  # type: ignore[misc]
    orders = [f"{first} first", f"{second} second"]
    rng.shuffle(orders)
    return f"{problem.details['sentence']}. Named here: {', '.join(orders)}."


_PASSAGES = tuple(
    """
{P} met {Q} in {T}. {P} had a {o} and wanted to give it away. {Q} was glad to have the {o}. "Thank you," said {Q} to|{P}
{P} and {Q} went to {T} to buy a {o}. {P} had no money, so {Q} paid. Later {P} gave the coins back to|{Q}
{Q} was looking for a {o}. {P} had seen one in {T}. They went there, and soon {Q} held in both hands a|{o}
{P} wrote a letter to {Q}. It said that the {o} was lost in {T}. When the letter came, the one who read it was|{Q}
{P} was born in {T}. One day {Q} came with a {o} and asked for the way home. {P} missed home too and thought of|{T}
{P} lost a {o} near {T}. {Q} found it under a tree and knew whose it was. So {Q} took it straight to|{P}
{Q} asked for a story. {P} told one about a {o} that could speak. At night {Q} dreamed of a talking|{o}
{P} waited for {Q} at the gate of {T}. The sun went down. At last there were steps, and {P} saw the face of|{Q}
In {T} there was a fair. {P} won a {o}, but {Q} won nothing. {P} felt sorry and gave {Q} the|{o}
{P} had hidden a {o} from {Q}. {Q} searched all of {T} and grew angry. In the end {Q} shouted at|{P}
{P} sailed away to {T}. {Q} stayed behind with a {o}. Every evening {Q} looked at the sea and waited for|{P}
{Q} fell ill in {T}. {P} sold the {o} to pay a doctor. When well again, {Q} bought {P} a new|{o}
""".strip().splitlines()
)


# relation | text, whose last word is the value that the relation gives {P}
_REMEMBERED = tuple(
    line.split("|")
    for line in """
job|{Q} asked what {P} did all day in {T}. {P} held up a {o} and spoke of work. Everyone knows that {P} is a
home|{P} had been away in {T} for a year. {Q} had kept the {o}. At last {P} took the road back home to
food|{Q} cooked for {P} in {T} and put a {o} on the table. {Q} knew what {P} likes best: a plate of
hobby|{Q} and {P} had a free day in {T}. {Q} packed a {o}. {P} wanted what {P} always wants, to go
pet|{P} came back from {T} with a {o}. {Q} opened the door, and out ran what {P} keeps, the
instrument|There was a feast in {T}. {Q} carried a {o}. The guests called for {P}, who then played the
""".strip().splitlines()
)


def passage(world: World, rng: random.Random) -> Problem:
    """A passage whose last word follows from the whole of it only, or from what is known of a person in it."""
    person, friend = rng.sample(world.people, 2)
    fill = {"P": person, "Q": friend, "T": rng.choice(world.places), "o": rng.choice(words.OBJECTS)}
    if rng.random() < 0.5:
        relation, text = rng.choice(_REMEMBERED)
        key = ("passage", relation, person, friend)
        return Problem(key, text.format(**fill), world.value[person, relation].split(" ")[0])
    index = rng.randrange(len(_PASSAGES))
    text, last = _PASSAGES[index].split("|")
    return Problem(("passage", index, person, friend), text.format(**fill), last.format(**fill))
