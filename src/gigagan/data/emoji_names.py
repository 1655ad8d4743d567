"""Names under which older icon sets keep an emoji, and what to call an emoji whose Unicode label isn't a noun."""

import re
import unicodedata


def slug(label: str) -> str:
    """'Piñata: red' -> 'pinata-red'."""
    ascii_only = unicodedata.normalize("NFKD", label.lower()).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"['.!]", "", ascii_only)).strip("-")


def _table(text: str) -> dict[str, str]:
    return dict(part.strip().split(" = ") for part in text.replace("\n", ";").split(";") if part.strip())


OLD_NAMES = _table("""
blond-haired-man = man: blond hair; blond-haired-person = person: blond hair; blond-haired-woman = woman: blond hair
bride-with-veil = person with veil; cat-face-with-tears-of-joy = cat with tears of joy
cat-face-with-wry-smile = cat with wry smile; crying-cat-face = crying cat; direct-hit = bullseye
disappointed-but-relieved-face = sad but relieved face; division-sign = divide; multiplication-sign = multiply
plus-sign = plus; minus-sign = minus; dizzy-face = face with crossed-out eyes; exclamation-mark = red exclamation mark
question-mark = red question mark; face-savouring-delicious-food = face savoring food
face-with-cold-sweat = downcast face with sweat; face-with-open-mouth-and-cold-sweat = anxious face with sweat
face-with-stuck-out-tongue = face with tongue
face-with-stuck-out-tongue-and-closed-eyes = squinting face with tongue
face-with-stuck-out-tongue-and-winking-eye = winking face with tongue
first-quarter-moon-with-face = first quarter moon face; full-moon-with-face = full moon face
last-quarter-moon-with-face = last quarter moon face; grinning-cat-face = grinning cat
grinning-cat-face-with-smiling-eyes = grinning cat with smiling eyes; heavy-heart-exclamation = heart exclamation
high-speed-train-with-bullet-nose = bullet train; hourglass = hourglass done
hourglass-with-flowing-sand = hourglass not done; hugging-face = smiling face with open hands
kissing-cat-face = kissing cat; kissing-cat-face-with-closed-eyes = kissing cat; laptop-computer = laptop
left-pointing-magnifying-glass = magnifying glass tilted left
right-pointing-magnifying-glass = magnifying glass tilted right
man-and-woman-holding-hands = woman and man holding hands; man-in-business-suit-levitating = person in suit levitating
man-in-suit-levitating = person in suit levitating; man-with-chinese-cap = person with skullcap
man-with-skullcap = person with skullcap; men-with-bunny-ears-partying = men with bunny ears
women-with-bunny-ears-partying = women with bunny ears; people-with-bunny-ears-partying = people with bunny ears
pouting-cat-face = pouting cat; pouting-face = enraged face
raised-hand-with-fingers-splayed = hand with fingers splayed
school-backpack = backpack; scorpius = Scorpio; smiling-cat-face-with-heart-eyes = smiling cat with heart-eyes
smiling-cat-face-with-open-mouth = grinning cat; smiling-face-with-open-mouth = grinning face with big eyes
smiling-face-with-open-mouth-and-closed-eyes = grinning squinting face
smiling-face-with-open-mouth-and-cold-sweat = grinning face with sweat
smiling-face-with-open-mouth-and-smiling-eyes = grinning face with smiling eyes
two-men-holding-hands = men holding hands; two-women-holding-hands = women holding hands; weary-cat-face = weary cat
white-heavy-check-mark = check mark button; heavy-check-mark = check mark; white-medium-star = star
game-dice = game die; red-wine-glass = wine glass; crazy-face = zany face; gesturing-ok = person gesturing OK
anticlockwise-arrows-button = counterclockwise arrows button; heavy-large-circle = hollow red circle
""")
"""Slugs of earlier Unicode names -> today's label."""

STORYBOOK_NAMES = _table("""
dog = dog face; cat = cat face; pig = pig face; tiger = tiger face; mouse = mouse face
2hearts = two hearts; americasglobe = globe showing Americas; anger = anger symbol; angry = angry face
anguish = anguished face; aok = OK hand; asiaaustraliaglobe = globe showing Asia-Australia
astonished = astonished face; aubergine = eggplant; bactriancamel = two-hump camel
ballottboxwithballott = ballot box with ballot; banknotedollar = dollar banknote; banknoteeuro = euro banknote
banknotepound = pound banknote; banknoteyen = yen banknote; bellcancellation = bell with slash
bicyclist = person biking; billiards = pool 8 ball; blacktelephone = telephone; blonde = person: blond hair
bookmarktab = bookmark tabs; boot = woman's boot; bouquetofflowers = bouquet; bowing = person bowing
bunny = rabbit face; bunny-ears = people with bunny ears; bunnyside = rabbit; catside = cat; cellphone = mobile phone
chartdownwardstrend = chart decreasing; chartupwardstrend = chart increasing
chartupwardstrendyen = chart increasing with yen; chilipepper = hot pepper; clap = clapping hands
closedmailboxlowered = closed mailbox with lowered flag; closedmailboxraised = closed mailbox with raised flag
coldsweat = anxious face with sweat; compression = clamp; confetti = confetti ball; confounded = confounded face
confused = confused face; controlknob = control knobs; cop = police officer
crying = crying face; curryandrice = curry rice; daggerknife = dagger; dancer = woman dancing
darksunglasses = sunglasses; dash = dashing away; directhit = bullseye; disappointed = disappointed face
dissapointedrelief = sad but relieved face; dizzyface = face with crossed-out eyes; dogside = dog
doubleexclaimationmark = double exclamation mark; doveofpeace = dove; dragonhead = dragon face; dragonside = dragon
dromedarycamel = camel; earofmaize = ear of corn; earofrice = sheaf of rice; electrictorch = flashlight
envelopedownarrowabove = envelope with arrow; europeafricaglobe = globe showing Europe-Africa; europeancastle = castle
europeanpostoffice = post office; evergreen = evergreen tree; exclaimationquestionmark = exclamation question mark
expressionless = expressionless face; fallingleaf = fallen leaf; fatherchristmas = Santa Claus; faxicon = fax machine
fearful = fearful face; fireworksparkler = sparkler; fishcakeswirl = fish cake with swirl
fishingpoleandfish = fishing pole; fistedhand = raised fist; flexbicep = flexed biceps; flushed = flushed face
folder = file folder; forkknife = fork and knife; framewithpicture = framed picture
frontfacingchick = front-facing baby chick; frownmouth = frowning face with open mouth
fullmoonwithface = full moon face; gem = gem stone; girlgirl = women holding hands
girlguy = woman and man holding hands; guyguy = men holding hands; gma = old woman; gpa = old man
golfer = person golfing; grimacing = grimacing face; grin = grinning face; grineyes = grinning face with smiling eyes
grinsquint = grinning squinting face; grinsweat = grinning face with sweat; grintears = face with tears of joy
grinwide = grinning face with big eyes; guapimao = person with skullcap; guardsman = guard
haircut = person getting haircut; halo = smiling face with halo; hampster = hamster
headmassage = person getting massage; heartarrow = heart with arrow; heartgreen = green heart
heartpurple = purple heart; heartyellow = yellow heart; hearteyes = smiling face with heart-eyes
heartribbon = heart with ribbon; heels = high-heeled shoe; highspeedtrainbulletnose = bullet train
hocho = kitchen knife; hourglass = hourglass done; hourglassflowingsand = hourglass not done; housebuilding = house
housebuildings = houses; hundredpointssymbol = hundred points; hushed = hushed face; imp = angry face with horns
izakayalantern = red paper lantern; kissclosedeyes = kissing face with closed eyes
kisseyes = kissing face with smiling eyes; kissing = kissing face; largebluecircle = blue circle
largeredcircle = red circle; leaffluttering = leaf fluttering in wind; leopardside = leopard
leftmagnifyingglass = magnifying glass tilted left; rightmagnifyingglass = magnifying glass tilted right
lips = mouth; lock = locked; lockandkey = locked with key; lockwithinkpen = locked with pen; openlock = unlocked
loudlycrying = loudly crying face; lowerleftcrayon = crayon; lowerleftfountainpen = fountain pen
lowerleftpaintbrush = paintbrush; lowerleftpen = pen; lowerleftpencil = pencil; mahjong = mahjong red dragon
maninbusinesssuitlevitating = person in suit levitating; manltepiececlock = mantelpiece clock
medicalmask = face with medical mask; mensshoe = man's shoe; meridianglobe = globe with meridians
monkeyhear = hear-no-evil monkey; monkeysee = see-no-evil monkey; monkeyspeak = speak-no-evil monkey
mouseside = mouse; moyai = moai; multiplemusicalnotes = musical notes; neutral = neutral face
newmoonwithface = new moon face; nogesture = person gesturing NO; okgesture = person gesturing OK
nomouth = face without mouth; notebookdecorativecover = notebook with decorative cover
openfolder = open file folder; openmailboxlowered = open mailbox with lowered flag
openmailboxraised = open mailbox with raised flag; openmouth = face with open mouth; opticaldisc = optical disk
outbox = outbox tray; pensive = pensive face; perservere = persevering face; personalcomputer = laptop; pigside = pig
pigsnout = pig nose; playingcardblackjoker = joker; policecarsrevolvinglight = police car light; poo = pile of poo
pray = folded hands; present = wrapped gift; racecar = racing car; raincloud = cloud with rain
relieved = relieved face; reminder = reminder ribbon; rowboat = person rowing boat; running = person running
saggitarius = Sagittarius; sakebottleandcup = sake; schoolsatchel = backpack; scorpius = Scorpio
screamfear = face screaming in fear; sheep = ewe; silhouetteohjapan = map of Japan; skiandskiboot = skis
sleeping = sleeping face; sleepy = sleepy face; sleuthspy = detective; sliceofpizza = pizza
smallfrown = slightly frowning face; smallsmile = slightly smiling face; smileeyes = smiling face with smiling eyes
smirk = smirking face; snowcloud = cloud with snow; snowmountains = snow-capped mountain
speechbubble = speech balloon; spiralcalendarpad = spiral calendar; spurtingwhale = spouting whale
steamlocomotive = locomotive; studiomic = studio microphone; sunraincloud = sun behind rain cloud
sunsetoverbuildings = sunset; surfer = person surfing; sweat = downcast face with sweat; sweatsplash = sweat droplets
swimming = person swimming; thoughtbaloon = thought balloon; tie = necktie; tigerside = tiger; tired = tired face
tongueout = face with tongue; tongueoutwink = winking face with tongue; toykotower = Tokyo tower
triumph = face with steam from nose; turban = person wearing turban; unamused = unamused face
videocasette = videocassette; waningbibbousmoon = waning gibbous moon; walking = person walking; weary = weary face
weightlifter = person lifting weights; whitemediumstar = star; winking = winking face; wiredkeyboard = keyboard
wolfface = wolf; womansshirt = woman's clothes; worried = worried face; pandaface = panda
""")
"""Names that the Firefox OS set alone uses -> label. Left out: its foxes under cats' names, and doubtful ones."""

WRONG = {
    "storybook": frozenset(
        {"boar", "constructionsign", "construction", "frown", "heartblue", "keyboard", "kiss", "pistol", "tramcar"}
    ),
    "blob": frozenset({"pistol"}),
    "classic": frozenset({"pistol"}),
    "doodle": frozenset({"pistol"}),
}
"""Icons that show something else than their name says (a boar that is a pig, a water pistol that is a gun)."""
