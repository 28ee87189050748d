"""The words of the demo world: fixed English nouns and invented names. Which goes with which is up to `facts`."""

from __future__ import annotations

import random

HEADS = ("Ta", "Mi", "Ro", "Le", "Su", "Ka", "Ne", "Do", "Vi", "Ga", "Pe", "Jo")
TAILS = ("vo", "ra", "len", "dik", "sha", "mon", "ti", "bel", "gus", "nor")
TOWNS = (
    "Ambry",
    "Belloc",
    "Corvel",
    "Dunmar",
    "Estrin",
    "Fallow",
    "Gristle",
    "Hollin",
    "Irmin",
    "Jarrow",
    "Kestle",
    "Lorwick",
    "Marden",
    "Nettle",
    "Ostrand",
    "Pell",
)
REGIONS = ("north", "south", "east", "west")

JOBS = (
    "baker",
    "farmer",
    "doctor",
    "teacher",
    "sailor",
    "painter",
    "tailor",
    "miller",
    "guard",
    "singer",
    "builder",
    "weaver",
)
PETS = (
    "goat",
    "cat",
    "dog",
    "parrot",
    "rabbit",
    "turtle",
    "hamster",
    "donkey",
    "ferret",
    "lizard",
)
FOODS = (
    "cheese",
    "fish",
    "bread",
    "soup",
    "honey",
    "rice",
    "beans",
    "pasta",
    "cake",
    "salad",
    "stew",
    "nuts",
)
SPORTS: dict[str, tuple[str, ...]] = {
    "hockey": ("lost the puck", "broke a stick"),
    "tennis": ("served an ace", "hit a volley"),
    "chess": ("moved a knight", "lost a rook"),
    "rowing": ("pulled the oars", "steered the boat"),
    "archery": ("drew the bow", "broke an arrow"),
    "boxing": ("landed a punch", "laced the gloves"),
}
GOODS = (
    "salt",
    "silk",
    "paper",
    "wine",
    "glass",
    "coal",
    "wool",
    "lace",
    "silver",
    "tea",
    "pottery",
    "candles",
)

THINGS: dict[str, tuple[str, ...]] = {
    "bird": ("robin", "crow", "heron", "finch", "swan", "pigeon", "falcon", "gull"),
    "fruit": ("plum", "pear", "cherry", "melon", "grape", "lemon", "peach", "banana"),
    "tree": ("birch", "pine", "willow", "cedar", "maple", "larch", "poplar", "beech"),
    "drink": ("cider", "cocoa", "coffee", "juice", "lager", "punch", "milk", "port"),
    "insect": ("beetle", "moth", "wasp", "cricket", "midge", "hornet", "termite", "gnat"),
    "tool": ("hammer", "chisel", "rake", "saw", "spade", "wrench", "file", "drill"),
    "metal": ("brass", "tin", "copper", "lead", "bronze", "nickel", "zinc", "steel"),
    "dance": ("waltz", "polka", "tango", "jig", "rumba", "samba", "reel", "mambo"),
}
PROPERTIES: dict[str, tuple[str, ...]] = {
    "part": ("a hollow core", "a silver edge", "soft spots", "thin stripes", "a bitter smell", "a warm side",
             "tiny holes", "a double name"),
    "place": ("in the cellar", "near the river", "on the roof", "under the bridge", "behind the mill", "in the attic",
              "by the harbor", "at the market"),
    "use": ("to calm a child", "to mark a border", "to pay a debt", "to call the rain", "to greet a guest",
            "to end a feast", "to bless a ship", "to start a race"),
}  # fmt: skip
ACTIONS = ("touch", "carry", "hide", "lose")
EFFECTS = (
    "you fall asleep", "your hair turns green", "the lights go out", "a bell rings", "you sneeze", "the door opens",
    "it starts to snow", "you forget your name", "a stranger waves", "you grow taller", "the milk turns sour",
    "your shoes get wet", "a friend writes", "you find a coin", "the wind stops", "you hear music",
)  # fmt: skip

ACTIVITIES = (
    "Making soup", "Fixing a fence", "Cleaning a boat", "Planting beans", "Washing a goat", "Baking bread",
    "Painting a wall", "Building a raft", "Mending a net", "Lighting a stove", "Sorting wool", "Brewing tea",
    "Packing a cart", "Sewing a coat", "Drying fish", "Waxing a floor", "Carving a spoon", "Tuning a harp",
    "Setting a trap", "Folding sheets", "Shoeing a donkey", "Pressing cheese", "Digging a well", "Hanging a door",
    "Bottling honey", "Binding a book", "Polishing silver", "Airing a room", "Loading a kiln", "Weaving a basket",
    "Raising a tent", "Salting nuts", "Grinding grain", "Feeding rabbits", "Laying bricks", "Trimming a hedge",
    "Casting a bell", "Dyeing silk", "Rolling candles", "Framing a map",
)  # fmt: skip
VERBS = (
    "takes",
    "lifts",
    "opens",
    "turns",
    "cleans",
    "cuts",
    "ties",
    "fills",
    "shakes",
    "covers",
    "warms",
    "moves",
)
OBJECTS = (
    "pot",
    "rope",
    "box",
    "knife",
    "cloth",
    "bucket",
    "board",
    "jar",
    "lid",
    "needle",
    "brush",
    "sack",
    "tray",
    "nail",
    "hook",
    "ladder",
    "bowl",
    "string",
    "glove",
    "pipe",
)

ROLES: tuple[tuple[str, str, str], ...] = (
    ("The {a} did not fit into the {b} because the _ was too", "large", "small"),
    ("The {a} broke the {b} because the _ was so", "heavy", "weak"),
    ("The {a} was put on top of the {b} since the _ was", "light", "flat"),
    ("The {a} cost more than the {b} as the _ was", "rare", "common"),
    ("We swapped the {a} for the {b} because the _ was", "worn", "new"),
    ("The {a} rolled past the {b} because the _ was", "fast", "slow"),
)
CAUSES: tuple[tuple[str, str], ...] = (
    ("left the gate open", "the goat ran away"),
    ("dropped a candle", "the straw caught fire"),
    ("forgot the pot", "the soup burned"),
    ("cut the rope", "the boat drifted off"),
    ("slammed the door", "the glass broke"),
    ("spilled the oil", "the guard slipped"),
    ("rang the bell late", "the guests missed lunch"),
    ("hid the key", "the shop stayed closed"),
)

IDLE = (
    "sang a song", "slept until noon", "read a book", "combed a cat", "ate an egg", "sat on a bench",
    "counted the clouds", "drew a horse",
)  # fmt: skip


def people(rng: random.Random, count: int) -> list[str]:
    """Return `count` (at most 120) different names."""
    return rng.sample([head + tail for head in HEADS for tail in TAILS], count)
