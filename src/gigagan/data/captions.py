"""Words for emoji: a label as a noun phrase X, the family it belongs to, and the captions of a picture of X."""

import re
from dataclasses import dataclass
from typing import Any

from gigagan.data.draws import choose, draw

COLORS = {
    "red": (214, 58, 52),
    "orange": (240, 144, 48),
    "yellow": (246, 212, 72),
    "green": (76, 166, 82),
    "blue": (66, 126, 214),
    "purple": (142, 88, 184),
    "pink": (244, 160, 192),
    "gray": (150, 150, 150),
}
"""Backgrounds that captions name, RGB."""

TEMPLATES = {
    "3d": ("a 3D render of {X}", "{X}, 3D emoji", "a soft 3D model of {X}", "a glossy 3D icon of {X}"),
    "flat": ("a flat icon of {X}", "{X}, flat design", "a flat illustration of {X}", "a simple flat emoji of {X}"),
    "outline": (
        "a black and white icon of {X}",
        "{X}, black and white",
        "a black silhouette drawing of {X}",
        "a monochrome line icon of {X}",
    ),
    "noto": (
        "a shaded cartoon of {X}",
        "{X}, shaded cartoon",
        "a detailed cartoon emoji of {X}",
        "a cartoon of {X} with soft shading",
    ),
    "blob": ("a simple blob cartoon of {X}", "{X}, blob cartoon", "a blob style emoji of {X}"),
    "sticker": ("a bold flat sticker of {X}", "{X}, bold sticker", "a sticker of {X}", "{X} as a bold sticker"),
    "classic": ("a classic emoji of {X}", "{X}, classic emoji", "a classic style emoji of {X}"),
    "storybook": (
        "a storybook drawing of {X}",
        "{X}, storybook drawing",
        "a muted storybook icon of {X}",
        "a storybook illustration of {X}",
    ),
    "doodle": ("a cute doodle of {X}", "{X}, cute doodle", "a kawaii doodle of {X}", "a cute little drawing of {X}"),
}
"""Captions of a style; the first is the canonical one."""


@dataclass(frozen=True)
class Caption:
    """One description of a picture."""

    text: str
    background: tuple[int, int, int] | None = None
    """RGB of the background that the text names; None = it names none."""
    styled: bool = True
    """Whether the text names the style, where pictures come in styles."""

    def to_json(self) -> dict[str, Any]:
        """As in a sample's JSON."""
        background = None if self.background is None else list(self.background)
        return {"text": self.text, "styled": self.styled, "background": background}


def captions(X: str, concept: str, style: str, *, seed: int) -> list[Caption]:
    """Of a picture of X in a style: canonical, paraphrases, two without a style, two that name a background."""
    texts = [template.format(X=X) for template in TEMPLATES[style]]
    bare = re.sub(r"^(an?|the) ", "", X)
    styleless = [X, bare if bare != X else f"a picture of {X}"]
    first, second = sorted(COLORS, key=lambda color: draw(seed, concept, style, color))[:2]
    return [
        *(Caption(text) for text in texts),
        *(Caption(text, styled=False) for text in styleless),
        Caption(f"{texts[0]} on {_article(first)} {first} background", background=COLORS[first]),
        Caption(f"{texts[2]} on {_article(second)} {second} background", background=COLORS[second]),
    ]


def canonical(X: str) -> list[str]:
    """The canonical caption of X in each style."""
    return [texts[0].format(X=X) for texts in TEMPLATES.values()]


def restyled(X: str, style: str, *, seed: tuple[object, ...]) -> str:
    """A caption of X in another style, drawn by the seed. Raises KeyError where `style` isn't one of the set's."""
    if style not in TEMPLATES:
        raise KeyError(style)
    others = [text for name, texts in TEMPLATES.items() if name != style for text in texts]
    return others[choose(len(others), *seed, "restyled")].format(X=X)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split("|"))


_HOURS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"]
_MASS = _words(
    "bread|baguette bread|flatbread|stuffed flatbread|bacon|popcorn|butter|salt|garlic|broccoli|custard|cooked rice|"
    "curry rice|sushi|oden|dango|spaghetti|fondue|sake|ice|mate|bubble tea|shaved ice|ice cream|soft ice cream|falafel|"
    "canned food|pouring liquid|coral|luggage|wood|fog|nail polish|money with wings|Santa Claus|Mrs. Claus|Mx Claus|"
    "sweat droplets|fireworks|hot springs"
)
# Labels that aren't a name for the picture.
_MENDED = {
    "dizzy": "a circling star",
    "dashing away": "a dash of air",
    "rolling on the floor laughing": "a face rolling on the floor laughing",
    "star-struck": "a star-struck face",
    "hundred points": "a hundred points sign",
    "skis": "skis",
    "skull and crossbones": "a skull and crossbones",
    "ZZZ": "sleeping ZZZ letters",
    "head shaking horizontally": "a head shaking from side to side",
    "head shaking vertically": "a head nodding up and down",
    "flexed biceps": "a flexed arm",
    "thumbs up": "a thumbs up",
    "thumbs down": "a thumbs down",
    "raised back of hand": "the raised back of a hand",
    "vulcan salute": "a Vulcan salute",
    "index pointing up": "an index finger pointing up",
    "index pointing at the viewer": "an index finger pointing at the viewer",
    "breast-feeding": "a woman breast-feeding a baby",
    "horse racing": "a jockey racing a horse",
    "kiss": "a kissing couple",
    "couple with heart": "a couple with a heart",
    "woman and man holding hands": "a woman and a man holding hands",
    "lotus": "a lotus flower",
    "leafy green": "leafy greens",
    "candy": "a piece of candy",
    "cooking": "an egg in a frying pan",
    "fork and knife": "a fork and a knife",
    "fork and knife with plate": "a fork and a knife with a plate",
    "meat on bone": "meat on a bone",
    "shallow pan of food": "a shallow pan of food",
    "brick": "a stack of bricks",
    "building construction": "a building under construction",
    "wedding": "a wedding chapel",
    "Tokyo tower": "the Tokyo Tower",
    "Statue of Liberty": "the Statue of Liberty",
    "mount fuji": "Mount Fuji",
    "kaaba": "the Kaaba",
    "milky way": "the Milky Way",
    "camping": "a campsite",
    "globe showing Americas": "a globe showing the Americas",
    "globe showing Europe-Africa": "a globe showing Europe and Africa",
    "globe showing Asia-Australia": "a globe showing Asia and Australia",
    "foggy": "a foggy city",
    "night with stars": "a night sky with stars",
    "high voltage": "a lightning bolt",
    "umbrella on ground": "an umbrella on the ground",
    "leaf fluttering in wind": "a leaf fluttering in the wind",
    "hourglass done": "a finished hourglass",
    "hourglass not done": "a running hourglass",
    "airplane departure": "a departing airplane",
    "airplane arrival": "an arriving airplane",
    "metro": "a metro train",
    "light rail": "a light rail train",
    "station": "a train station",
    "construction": "a construction barrier",
    "performing arts": "theater masks",
    "thread": "a spool of thread",
    "yarn": "a ball of yarn",
    "joker": "a joker card",
    "mahjong red dragon": "a mahjong tile with a red dragon",
    "tennis": "a tennis racket and ball",
    "badminton": "a badminton racket and shuttlecock",
    "ping pong": "a ping pong paddle and ball",
    "lacrosse": "a lacrosse stick and ball",
    "ice hockey": "an ice hockey stick and puck",
    "field hockey": "a field hockey stick and ball",
    "cricket game": "a cricket bat and ball",
    "bowling": "a bowling ball and pins",
    "american football": "an American football",
    "video game": "a video game controller",
    "flag in hole": "a flag in a hole",
    "dvd": "a DVD",
    "couch and lamp": "a couch and a lamp",
    "soap": "a bar of soap",
    "locked": "a locked padlock",
    "unlocked": "an unlocked padlock",
    "locked with pen": "a locked padlock with a pen",
    "locked with key": "a locked padlock with a key",
    "e-mail": "an e-mail envelope",
    "chart increasing": "an increasing chart",
    "chart decreasing": "a decreasing chart",
    "chart increasing with yen": "an increasing chart with a yen sign",
    "dna": "a DNA helix",
    "moai": "a moai statue",
    "hammer and pick": "a hammer and a pick",
    "hammer and wrench": "a hammer and a wrench",
    "headphone": "headphones",
    "multiply": "a multiplication sign",
    "plus": "a plus sign",
    "minus": "a minus sign",
    "divide": "a division sign",
    "heavy equals sign": "an equals sign",
    "infinity": "an infinity sign",
    "om": "an om sign",
    "yin yang": "a yin yang sign",
    "place of worship": "a place of worship sign",
    "star of David": "a Star of David",
    "woman's clothes": "a woman's blouse",
    "necktie": "a shirt with a necktie",
}
_ZODIAC = _words("Aries|Taurus|Gemini|Cancer|Leo|Virgo|Libra|Scorpio|Sagittarius|Capricorn|Aquarius|Pisces|Ophiuchus")
# Singular things that Unicode leaves without an article after these words.
_NEEDS_ARTICLE = re.compile(
    r"\b(with|without|getting|taking|feeding|rowing|bouncing|raising|tipping|wearing|in|playing) "
    r"(halo|tear|monocle|medical mask|thermometer|head-bandage|arrow|ribbon|hearing aid|wry smile|skullcap|headscarf|"
    r"massage|haircut|bath|baby|boat|ball|hand|turban|crown|veil|tuxedo|suit|steamy room|motorized wheelchair|"
    r"manual wheelchair|white cane|heart|handle|straw|popping cork|spoon|umbrella|plate|slash|"
    r"raised flag|lowered flag|raised eyebrow|zipper|swirl|garden|curl|ballot|wing|diagonal mouth|decorative cover|"
    r"speech bubble)\b(?!-)"
)
_AFTER_HEAD = re.compile(r" (?:with|without|of|in|on|at|over|behind|showing|up|under|from|holding|lifting) ")
_SINGULAR_S = re.compile(r"(ss|us|is|os)$")


def noun_phrase(label: str) -> str:
    """An emoji's label as what a picture shows, with its article: 'red apple' -> 'a red apple'."""
    label = label.replace("\u2019", "'")
    if label in _MENDED:
        return _MENDED[label]
    if label in _ZODIAC:
        return f"the zodiac sign {label}"
    if clock := re.fullmatch(r"(\w+)(?: o'clock|-(thirty))", label):
        hour = _HOURS.index(clock[1]) + 1
        return f"a clock showing {hour}:30" if clock[2] else f"a clock showing {hour} o'clock"
    if square := re.fullmatch(r"(black|white) (large|medium-small|medium|small) square", label):
        return f"a {square[2]} {square[1]} square"
    if speaker := re.fullmatch(r"speaker (\w+) volume", label):
        return f"a speaker at {speaker[1]} volume"
    if hand := re.fullmatch(r"backhand index pointing (\w+)", label):
        return f"the back of a hand pointing {hand[1]}"
    label = re.sub(r": facing right$", ", facing right", label)
    label = re.sub(r" gesturing (NO|OK)$", lambda m: " gesturing " + {"NO": "no", "OK": "OK"}[m[1]], label)
    kind, separator, parts = label.partition(": ")
    if separator:
        return _people(kind, parts)
    label = label.replace("in lotus position", "in the lotus position")
    label = _NEEDS_ARTICLE.sub(lambda m: f"{m[1]} {_article(m[2])} {m[2]}", label)
    return label if _countless(label) else f"{_article(label)} {label}"


def family(label: str) -> str:
    """What an emoji is without its gender, direction or cast: 'woman artist' and 'artist' -> 'artist'."""
    label = re.sub(r": facing right$", "", label.replace("\u2019", "'"))
    special = {
        "merperson": "merfolk",
        "merman": "merfolk",
        "mermaid": "merfolk",
        "prince": "royalty",
        "princess": "royalty",
        "person with crown": "royalty",
        "Mrs. Claus": "Claus",
        "Mx Claus": "Claus",
        "Santa Claus": "Claus",
        "older person": "old",
        "old man": "old",
        "old woman": "old",
        "breast-feeding": "feeding baby",
        "woman and man holding hands": "holding hands",
        "boy": "child",
        "girl": "child",
        "man": "person",
        "woman": "person",
        "ballet dancer": "dancing",
        "woman with headscarf": "headscarf",
    }
    if label in special:
        return special[label]
    if group := re.match(r"(family|kiss|couple with heart)\b(?=:|$)", label):
        return group[1]
    label = re.sub(r"^(deaf|pregnant) (person|man|woman)$", r"\1", label)
    return re.sub(r"^(person|man|woman|people|men|women):? ", "", label)


def _people(kind: str, parts: str) -> str:
    """'family: man, man, boy' -> 'a family of two men and a boy'; 'man: beard' -> 'a man with a beard'."""
    if kind not in ("family", "kiss", "couple with heart"):
        look = {"bald": f"a bald {kind}", "beard": f"{_article(kind)} {kind} with a beard"}
        return look.get(parts, f"{_article(kind)} {kind} with {parts}")
    names = parts.split(", ")
    plural = {"man": "men", "woman": "women", "child": "children"}
    counted = [
        f"{_article(name)} {name}" if names.count(name) == 1 else f"two {plural.get(name, name + 's')}"
        for name in dict.fromkeys(names)
    ]
    listed = " and ".join([", ".join(counted[:-1]), counted[-1]] if len(counted) > 1 else counted)
    return {"family": f"a family of {listed}", "kiss": f"{listed} kissing"}.get(kind, f"{listed} with a heart")


def _countless(label: str) -> bool:
    if label in _MASS or label.split()[0] in ("people", "men", "women"):
        return True
    head = _AFTER_HEAD.split(f"{label} ")[0].split()[-1]
    return head.endswith("s") and not _SINGULAR_S.search(head)


def _article(label: str) -> str:
    sounded_as_consonant = re.match(r"(uni|euro|ewe|one|ut|us)", label.lower())
    sounded_as_vowel = re.match(r"(hour|x-|8|11)", label.lower())
    return "an" if sounded_as_vowel or (label[0].lower() in "aeiou" and not sounded_as_consonant) else "a"
