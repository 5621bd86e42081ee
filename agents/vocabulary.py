"""Word lists of the analyzer: what captions call colours, places, directions, movements, persons and scenery."""

from schemas.words import COLOURS, Colour, Direction, Place


def words(text: str) -> tuple[str, ...]:
    """The words of a text, parted by blanks, or by commas where there is one."""
    return tuple(part.strip() for part in text.split("," if "," in text else None))


COLOUR_WORDS: dict[str, Colour] = {colour: colour for colour in COLOURS} | {
    "grey": "gray",
    "silver": "gray",
    "scarlet": "red",
    "crimson": "red",
    "reddish": "red",
    "navy": "blue",
    "bluish": "blue",
    "greenish": "green",
    "violet": "purple",
    "whitish": "white",
}

LEFT_RIGHT: dict[str, Direction] = {
    "left": "left",
    "leftward": "left",
    "leftwards": "left",
    "right": "right",
    "rightward": "right",
    "rightwards": "right",
}
ADVERB_DIRECTIONS: dict[str, Direction] = LEFT_RIGHT | {
    "up": "up",
    "upward": "up",
    "upwards": "up",
    "down": "down",
    "downward": "down",
    "downwards": "down",
    "away": "away",
}
GOAL_DIRECTIONS: dict[str, Direction] = LEFT_RIGHT | {
    "top": "up",
    "bottom": "down",
    "camera": "toward",
    "viewer": "toward",
    "foreground": "toward",
    "background": "away",
    "distance": "away",
    "horizon": "away",
}
"""After "to", "toward", "into": where the movement ends."""
VERB_DIRECTIONS: dict[str, Direction] = {"rise": "up", "ascend": "up", "descend": "down", "recede": "away"}

PLACE_WORDS: dict[str, Place] = {
    "left": "left",
    "right": "right",
    "top": "top",
    "bottom": "bottom",
    "middle": "middle",
    "center": "middle",
    "centre": "middle",
    "upper": "top",
    "lower": "bottom",
}
FRAME_WORDS = words("frame screen image picture video shot view")
SIDE_WORDS = words("side part half edge corner third hand")
DEPTH_WORDS = words("background foreground distance front back rear")

MOTION_VERBS = words(
    "move go walk run ride drive fly swim travel head roll slide crawl come float drift sail race speed jog skate ski "
    "cycle march gallop trot stroll wander glide dash rush sprint hurry pass cross advance proceed hop jump leap climb "
    "bounce push pull carry rise ascend descend recede approach zoom shift pedal step back"
)
NOUN_LIKE_VERBS = frozenset(MOTION_VERBS) - {"head", "back", "step"} | frozenset(
    words(
        "turn stand stay sit lie rest sleep wait stop start land kick throw catch hit hold play dance eat drink look "
        "watch bark"
    )
)
"""Verbs of captions whose forms pass for nouns ("a cyclist moves", "cars drive by")."""
ING_FORMS = frozenset(
    stem + "ing"
    for verb in NOUN_LIKE_VERBS | set(MOTION_VERBS)
    for stem in (verb, verb.removesuffix("e"), verb + verb[-1], verb.removesuffix("ie") + "y")
)
"""The "-ing" forms of these verbs ("turning", "riding", "swimming", "lying"), among others that no text has."""
SINGULAR_ARTICLES = words("a an another one this each every")

COPULAS = words("be look appear seem")
BREAKING_VERBS = words("stop avoid refuse fail cease quit")
"""What follows them does not happen."""

STAYING_VERBS = frozenset(words("stay remain rest wait pause park"))
"""Verbs that say of an object that it does not move. Who stands or sits may do so on what moves."""

QUANTIFIERS: dict[str, int | None] = {"pair": 2, "couple": 2, "trio": 3, "dozen": 12} | dict.fromkeys(
    words("group crowd bunch herd flock number lot row line team pack swarm lots dozens")
)
NUMERALS = {
    word: value
    for value, word in enumerate(words("one two three four five six seven eight nine ten eleven twelve"), start=1)
}
PLURAL_NOUNS = words("people cattle police")
LEMMAS = {"rid": "ride", "goes": "go"}
"""Where the small pipeline's lemma of a common word is wrong ("riding", and "goes" taken for an auxiliary)."""

STAND_INS: dict[str, tuple[str, ...]] = {
    "person": words(
        "man woman boy girl child kid people guy lady gentleman adult baby toddler infant teenager mother father "
        "cyclist biker rider pedestrian driver passenger player goalkeeper dancer singer actor worker farmer chef "
        "soldier policeman officer student nurse tourist hiker athlete runner jogger swimmer skier surfer "
        "skateboarder snowboarder fisherman cowboy bride groom"
    ),
    "bicycle": words("bike"),
    "motorcycle": words("motorbike, scooter, moped, dirt bike"),
    "car": words("van taxi cab automobile jeep limousine suv"),
    "truck": words("lorry pickup"),
    "train": words("tram subway"),
    "cow": words("bull calf ox cattle"),
    "sheep": words("lamb ram"),
    "horse": words("pony"),
    "dog": words("puppy"),
    "cat": words("kitten"),
    "bird": words("duck goose swan"),
    "boat": words("ship"),
    "airplane": words("jet plane"),
    "tv": words("television monitor"),
    "traffic light": words("stoplight"),
    "sports ball": words("ball, baseball, tennis ball"),
    "dining table": words("table"),
    "potted plant": words("plant"),
    "cell phone": words("phone"),
    "cup": words("mug"),
    "wine glass": words("glass"),
    "backpack": words("rucksack"),
    "couch": words("sofa"),
}
"""Common words of a detector's class that its name alone is not near enough to."""

SCENERY = words(
    "street road sidewalk background foreground scene view sky cloud grass ground field park beach sea water river "
    "mountain hill forest tree room kitchen office house building city town wall floor window day night weather "
    "light snow rain video camera frame picture screen image distance shadow side left right top bottom middle "
    "center corner way air time station airport railway track"
)
"""Where, when and how a scene is shown: never one object."""

UNKNOWN = words(
    "animal vehicle object furniture food fruit vegetable meat drink coffee milk wine toy tool machine clothes shirt "
    "shoe glove hat hair hand face head leg eye shoulder wing tail feather wheel engine pedal sign bag box paper card "
    "text story rope weapon music game dance event group crowd rabbit monkey fox lion wolf deer goat pig camel fish "
    "insect snake turtle chicken whale walrus penguin helicopter rocket skyscraper tractor bulldozer wheelchair "
    "stroller balloon lamp mirror pencil fire flower leaf garden piano broom bucket pillow stove bread cheese salad "
    "berry jar stone color ride"
)
"""Kinds of things outside the classes, and parts of things."""
