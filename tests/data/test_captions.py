"""Labels as nouns, families, and the captions of a picture."""

import pytest

from gigagan.data.captions import COLORS, TEMPLATES, captions, family, noun_phrase


@pytest.mark.parametrize(
    ("label", "noun"),
    [
        ("red apple", "a red apple"),
        ("orange", "an orange"),
        ("grapes", "grapes"),
        ("bread", "bread"),
        ("unicorn", "a unicorn"),
        ("ewe", "a ewe"),
        ("hourglass done", "a finished hourglass"),
        ("locked", "a locked padlock"),
        ("cactus", "a cactus"),
        ("x-ray", "an x-ray"),
        ("three o\u2019clock", "a clock showing 3 o'clock"),
        ("twelve-thirty", "a clock showing 12:30"),
        ("man: bald", "a bald man"),
        ("woman: blond hair", "a woman with blond hair"),
        ("person: beard", "a person with a beard"),
        ("family: man, man, boy", "a family of two men and a boy"),
        ("family: woman, woman, girl, boy", "a family of two women, a girl and a boy"),
        ("kiss: woman, man", "a woman and a man kissing"),
        ("person lifting weights", "a person lifting weights"),
        ("woman getting haircut", "a woman getting a haircut"),
        ("man walking: facing right", "a man walking, facing right"),
        ("people wrestling", "people wrestling"),
        ("smiling face with heart-eyes", "a smiling face with heart-eyes"),
        ("Aries", "the zodiac sign Aries"),
        ("black medium-small square", "a medium-small black square"),
        ("Mrs. Claus", "Mrs. Claus"),
    ],
)
def test_noun_phrase(label: str, noun: str) -> None:
    assert noun_phrase(label) == noun


@pytest.mark.parametrize(
    "labels",
    [
        ("person walking", "man walking", "woman walking: facing right"),
        ("artist", "man artist", "woman artist"),
        ("merman", "mermaid", "merperson"),
        ("family", "family: man, boy"),
        ("kiss", "kiss: man, man"),
        ("deaf person", "deaf man"),
        ("man: beard", "woman: beard"),
        ("people holding hands", "woman and man holding hands"),
    ],
)
def test_a_family_has_one_name(labels: tuple[str, ...]) -> None:
    assert len({family(label) for label in labels}) == 1


def test_different_things_have_different_families() -> None:
    labels = ["cat", "cat face", "black cat", "man artist", "man: bald", "crown", "prince", "kiss", "kiss mark"]
    assert len({family(label) for label in labels}) == len(labels)


@pytest.mark.parametrize("style", TEMPLATES)
@pytest.mark.parametrize("X", ["a red apple", "grapes"])
def test_captions_of_a_picture(style: str, X: str) -> None:
    found = captions(X, "thing", style, seed=0)
    texts = [caption.text for caption in found]

    assert len(set(texts)) == len(texts)
    assert all(X.removeprefix("a ") in text for text in texts)
    assert found[0].text == TEMPLATES[style][0].format(X=X)
    assert sum(not caption.styled for caption in found) == 2
    colored = [caption for caption in found if caption.background]
    assert len({caption.background for caption in colored}) == 2
    for caption in colored:
        name = next(name for name, color in COLORS.items() if color == caption.background)
        article = "an" if name == "orange" else "a"
        assert caption.text.endswith(f" on {article} {name} background")


def test_styles_never_share_a_styled_caption() -> None:
    texts = [t.format(X="a thing") for templates in TEMPLATES.values() for t in templates]
    assert len(set(texts)) == len(texts)
