"""The words of the small world: names, places, things, countries, adjectives, nouns and verbs.

Plain data, no randomness. The bundled corpus is written with these words, the bundled tokenizer keeps
names, countries, capitals, continents' names and languages as single tokens with a leading space, and
the task generators fill their templates (`templates.py`) from here for any tokenizer.

Names come in three disjoint sets. `IOI_NAMES` are used in the indirect-object sentences of the training
corpus; `DEV_NAMES` and `TEST_NAMES` occur in the corpus only outside such sentences (stories, roll
calls, biographies) and are the names of the development and test prompts.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Gender = Literal["female", "male"]
Split = Literal["train", "dev", "test"]

SPLITS: tuple[Split, ...] = ("train", "dev", "test")


class Country(NamedTuple):
    """A real country with a one-word name and capital.

    `language` is None where there is no single obvious national language; `continent` is None where
    the country spans two.
    """

    name: str
    capital: str
    continent: str | None
    language: str | None


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FEMALE_NAMES: tuple[str, ...] = _words(
    "Mary Anna Emma Sarah Laura Julia Alice Clara Helen Susan Nina Rachel Karen Linda Lisa Jane Kate Lucy "
    "Ruth Diana Maria Sophie Olivia Amy Ellen Carol Donna Emily Hannah Irene Joan Judy Martha Nancy"
)
MALE_NAMES: tuple[str, ...] = _words(
    "John Tom James Robert Michael David Daniel Peter Paul George Henry Jack Simon Kevin Brian Eric Frank "
    "Gary Scott Steven Adam Alan Andrew Anthony Arthur Charles Edward Joseph Larry Martin Matthew Patrick "
    "Philip Richard"
)
DEV_FEMALE_NAMES: tuple[str, ...] = _words("Amanda Betty Cindy Elena Gloria Monica")
DEV_MALE_NAMES: tuple[str, ...] = _words("Albert Carl Dennis Fred Justin Oscar")
TEST_FEMALE_NAMES: tuple[str, ...] = _words("Bella Claire Fiona Jessica Megan Sandra")
TEST_MALE_NAMES: tuple[str, ...] = _words("Benjamin Dylan Gordon Jason Leon Samuel")

IOI_NAMES: tuple[str, ...] = FEMALE_NAMES + MALE_NAMES
DEV_NAMES: tuple[str, ...] = DEV_FEMALE_NAMES + DEV_MALE_NAMES
TEST_NAMES: tuple[str, ...] = TEST_FEMALE_NAMES + TEST_MALE_NAMES
ALL_NAMES: tuple[str, ...] = IOI_NAMES + DEV_NAMES + TEST_NAMES

NAMES_BY_GENDER: dict[Gender, tuple[str, ...]] = {
    "female": FEMALE_NAMES + DEV_FEMALE_NAMES + TEST_FEMALE_NAMES,
    "male": MALE_NAMES + DEV_MALE_NAMES + TEST_MALE_NAMES,
}
IOI_NAMES_BY_SPLIT: dict[Split, tuple[str, ...]] = {"train": IOI_NAMES, "dev": DEV_NAMES, "test": TEST_NAMES}

PLACES: tuple[str, ...] = _words(
    "store park school office station garden beach library market museum hospital kitchen farm church zoo "
    "hotel bank lake theatre village harbour castle"
)
OBJECTS: tuple[str, ...] = _words(
    "book drink ball ring letter key map coin hat cake pen phone flower toy computer bone necklace snack "
    "basket ticket picture lamp"
)

_COUNTRY_ROWS = """
France Paris Europe French|Germany Berlin Europe German|Italy Rome Europe Italian
Spain Madrid Europe Spanish|Portugal Lisbon Europe Portuguese|Poland Warsaw Europe Polish
Sweden Stockholm Europe Swedish|Norway Oslo Europe Norwegian|Finland Helsinki Europe Finnish
Denmark Copenhagen Europe Danish|Greece Athens Europe Greek|Hungary Budapest Europe Hungarian
Austria Vienna Europe German|Russia Moscow - Russian|Ukraine Kyiv Europe Ukrainian
Bulgaria Sofia Europe Bulgarian|Romania Bucharest Europe Romanian|Serbia Belgrade Europe Serbian
Croatia Zagreb Europe Croatian|Slovakia Bratislava Europe Slovak|Estonia Tallinn Europe Estonian
Latvia Riga Europe Latvian|Lithuania Vilnius Europe Lithuanian|Iceland Reykjavik Europe Icelandic
Ireland Dublin Europe English|Belgium Brussels Europe -|Albania Tirana Europe Albanian
Turkey Ankara - Turkish|China Beijing Asia Chinese|Japan Tokyo Asia Japanese
Thailand Bangkok Asia Thai|Vietnam Hanoi Asia Vietnamese|Nepal Kathmandu Asia Nepali
Mongolia Ulaanbaatar Asia Mongolian|Bangladesh Dhaka Asia Bengali|Pakistan Islamabad Asia Urdu
Iran Tehran Asia Persian|Iraq Baghdad Asia Arabic|Syria Damascus Asia Arabic|Lebanon Beirut Asia Arabic
Qatar Doha Asia Arabic|Oman Muscat Asia Arabic|Afghanistan Kabul Asia -|Egypt Cairo Africa Arabic
Morocco Rabat Africa Arabic|Tunisia Tunis Africa Arabic|Algeria Algiers Africa Arabic
Libya Tripoli Africa Arabic|Kenya Nairobi Africa Swahili|Ghana Accra Africa English
Nigeria Abuja Africa English|Senegal Dakar Africa French|Angola Luanda Africa Portuguese
Zambia Lusaka Africa English|Uganda Kampala Africa English|Somalia Mogadishu Africa Somali
Cuba Havana North_America Spanish|Canada Ottawa North_America -|Peru Lima South_America Spanish
Chile Santiago South_America Spanish|Ecuador Quito South_America Spanish
Venezuela Caracas South_America Spanish|Uruguay Montevideo South_America Spanish
Brazil Brasilia South_America Portuguese|Australia Canberra Oceania English|Fiji Suva Oceania -
"""


def _country(row: str) -> Country:
    name, capital, continent, language = row.split()
    return Country(
        name,
        capital,
        None if continent == "-" else continent.replace("_", " "),
        None if language == "-" else language,
    )


COUNTRIES: tuple[Country, ...] = tuple(
    _country(row) for line in _COUNTRY_ROWS.strip().splitlines() for row in line.split("|")
)
CAPITALS: tuple[str, ...] = tuple(country.capital for country in COUNTRIES)
LANGUAGES: tuple[str, ...] = tuple(dict.fromkeys(c.language for c in COUNTRIES if c.language is not None))
CONTINENTS: tuple[str, ...] = tuple(dict.fromkeys(c.continent for c in COUNTRIES if c.continent is not None))

# Greater-than years: things that last, by split; century prefixes; first halves that leave room above.
EVENTS: dict[Split, tuple[str, ...]] = {
    "train": _words(
        "war battle siege reign peace drought famine voyage journey strike trial exhibition festival project "
        "study plan rule game campaign mission tour contest debate treaty alliance empire"
    ),
    "dev": _words("dispute expedition construction revolt"),
    "test": _words("conflict pilgrimage marriage plague"),
}
CENTURIES: tuple[int, ...] = tuple(range(11, 20))
START_YEARS: tuple[int, ...] = tuple(range(2, 99))

# Stated sentiment.
POSITIVE_ADJECTIVES: tuple[str, ...] = _words(
    "wonderful great excellent lovely brilliant delightful superb charming amazing fantastic pleasant "
    "perfect beautiful marvellous"
)
NEGATIVE_ADJECTIVES: tuple[str, ...] = _words(
    "terrible awful horrible boring dreadful poor disappointing ugly nasty unpleasant dull miserable rotten "
    "hopeless"
)
REVIEWED_THINGS: tuple[str, ...] = _words(
    "film meal concert play song dinner show trip room painting story lesson party soup speech match"
)

# Subject-verb agreement: (singular, plural).
NOUNS: tuple[tuple[str, str], ...] = tuple(
    (noun, plural)
    for noun, plural in (
        pair.split("/")
        for pair in _words(
            "dog/dogs cat/cats boy/boys girl/girls king/kings farmer/farmers bird/birds horse/horses "
            "child/children man/men woman/women doctor/doctors friend/friends brother/brothers "
            "sister/sisters teacher/teachers soldier/soldiers painter/painters sailor/sailors "
            "neighbour/neighbours"
        )
    )
)
ATTRACTORS: tuple[tuple[str, str], ...] = tuple(
    (noun, plural)
    for noun, plural in (
        pair.split("/")
        for pair in _words(
            "house/houses tree/trees table/tables door/doors river/rivers car/cars box/boxes chair/chairs "
            "wall/walls boat/boats bridge/bridges window/windows tower/towers field/fields"
        )
    )
)
VERBS: tuple[tuple[str, str], ...] = (
    ("is", "are"),
    ("was", "were"),
    ("has", "have"),
    ("likes", "like"),
    ("walks", "walk"),
    ("sleeps", "sleep"),
    ("sings", "sing"),
    ("runs", "run"),
    ("waits", "wait"),
    ("knows", "know"),
)
