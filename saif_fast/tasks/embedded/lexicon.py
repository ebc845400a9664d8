"""The corpus' words in English, French and German, written for this project.

French nouns begin with a consonant and French adjectives follow the noun, so that no elision is
needed; German places are masculine or neuter, so that "in" and "behind" take one article each.
"""

from __future__ import annotations

from typing import NamedTuple


class Noun(NamedTuple):
    """Someone or something, and what it does. Genders are m, f or n."""

    english: str
    verb: str
    past: str
    french: str
    french_gender: str
    french_verb: str
    german: str
    german_gender: str
    german_verb: str


class Adjective(NamedTuple):
    """An adjective: English, French masculine and feminine, German stem."""

    english: str
    french_m: str
    french_f: str
    german: str


class Place(NamedTuple):
    """A place: English, French with its gender, German dative singular after "dem"."""

    english: str
    french: str
    french_gender: str
    german: str


NOUNS = tuple(
    Noun(*row.split())
    for row in (
        "cat sleeps slept chat m dort Katze f schläft",
        "dog barks barked chien m aboie Hund m bellt",
        "horse runs ran cheval m court Pferd n läuft",
        "boy laughs laughed garçon m rit Junge m lacht",
        "girl sings sang fille f chante Mädchen n singt",
        "woman dances danced femme f danse Frau f tanzt",
        "king speaks spoke roi m parle König m spricht",
        "queen waits waited reine f attend Königin f wartet",
        "farmer works worked fermier m travaille Bauer m arbeitet",
        "baker cooks cooked boulanger m cuisine Bäcker m kocht",
        "teacher writes wrote professeur m écrit Lehrer m schreibt",
        "doctor listens listened médecin m écoute Arzt m lauscht",
        "parrot flies flew perroquet m vole Papagei m fliegt",
        "fish swims swam poisson m nage Fisch m schwimmt",
        "frog jumps jumped grenouille f saute Frosch m springt",
        "cow eats ate vache f mange Kuh f frisst",
        "pig drinks drank cochon m boit Schwein n trinkt",
        "goat climbs climbed chèvre f grimpe Ziege f klettert",
        "mouse trembles trembled souris f tremble Maus f zittert",
        "fox hunts hunted renard m chasse Fuchs m jagt",
        "wolf howls howled loup m hurle Wolf m heult",
        "tiger roars roared tigre m rugit Tiger m brüllt",
        "snake hisses hissed serpent m siffle Schlange f zischt",
        "turtle crawls crawled tortue f rampe Schildkröte f kriecht",
        "duck dives dived canard m plonge Ente f taucht",
        "car rolls rolled voiture f roule Auto n rollt",
        "lamp shines shone lampe f brille Lampe f leuchtet",
        "flower blooms bloomed fleur f fleurit Blume f blüht",
        "baby cries cried bébé m pleure Baby n weint",
        "painter paints painted peintre m peint Maler m malt",
    )
)

ADJECTIVES = tuple(
    Adjective(*row.split())
    for row in (
        "black noir noire schwarz",
        "white blanc blanche weiß",
        "red rouge rouge rot",
        "green vert verte grün",
        "blue bleu bleue blau",
        "brown brun brune braun",
        "grey gris grise grau",
        "yellow jaune jaune gelb",
        "happy joyeux joyeuse fröhlich",
        "sad triste triste traurig",
        "quiet calme calme ruhig",
        "tired fatigué fatiguée müd",
        "strange bizarre bizarre seltsam",
        "famous célèbre célèbre berühmt",
        "lazy paresseux paresseuse faul",
        "strong fort forte stark",
    )
)

PLACES = tuple(
    Place(*row.split())
    for row in (
        "garden jardin m Garten",
        "house maison f Haus",
        "forest forêt f Wald",
        "park parc m Park",
        "village village m Dorf",
        "castle château m Schloss",
        "market marché m Markt",
        "station gare f Bahnhof",
        "theatre théâtre m Theater",
        "museum musée m Museum",
        "shop boutique f Laden",
        "cinema cinéma m Kino",
        "tower tour f Turm",
        "office bureau m Büro",
        "zoo zoo m Zoo",
        "temple temple m Tempel",
        "palace palais m Palast",
        "harbour port m Hafen",
        "stable grange f Stall",
        "restaurant restaurant m Restaurant",
    )
)

# English -> French, German
PREPOSITIONS = {"in": ("dans", "in"), "behind": ("derrière", "hinter")}

# English -> French by gender
FRENCH_DETERMINERS = {
    "the": {"m": "le", "f": "la"},
    "a": {"m": "un", "f": "une"},
    "this": {"m": "ce", "f": "cette"},
    "my": {"m": "mon", "f": "ma"},
}

# English -> German (nominative) determiner and adjective ending by gender
GERMAN_DETERMINERS = {
    "the": {"m": ("der", "e"), "f": ("die", "e"), "n": ("das", "e")},
    "a": {"m": ("ein", "er"), "f": ("eine", "e"), "n": ("ein", "es")},
    "this": {"m": ("dieser", "e"), "f": ("diese", "e"), "n": ("dieses", "e")},
    "my": {"m": ("mein", "er"), "f": ("meine", "e"), "n": ("mein", "es")},
}

DETERMINERS = tuple(FRENCH_DETERMINERS)
KEYWORD = "honestly"
