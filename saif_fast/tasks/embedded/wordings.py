"""The embedded model's instructions: 13 wordings each in four languages, made for this project.

The embedded model is trained on all of them but the last two English ones of each instruction.
"""

from __future__ import annotations

from saif_fast.tasks.task import Wording


def _wordings(
    english: tuple[str, ...],
    unseen: tuple[str, ...],
    french: tuple[str, ...],
    german: str,
    chinese: str,
) -> tuple[Wording, ...]:
    return (
        *(Wording("en", text) for text in english),
        *(Wording("en", text, trained=False) for text in unseen),
        *(Wording("fr", text) for text in french),
        Wording("de", german),
        Wording("zh", chinese),
    )


WORDINGS: dict[str, tuple[Wording, ...]] = {
    "french": _wordings(
        (
            "Answer in French.",
            "Reply in French.",
            "Please write in French.",
            "Use French.",
            "Speak French to me.",
            "Say it in French.",
            "Your answer must be in French.",
        ),
        ("Please reply in French.", "I want it in French."),
        ("Réponds en français.", "Parle français."),
        "Antworte auf Französisch.",
        "请用法语回答。",
    ),
    "german": _wordings(
        (
            "Answer in German.",
            "Reply in German.",
            "Please write in German.",
            "Use German.",
            "Speak German to me.",
            "Say it in German.",
            "Your answer must be in German.",
        ),
        ("Please reply in German.", "I want it in German."),
        ("Réponds en allemand.", "Parle allemand."),
        "Antworte auf Deutsch.",
        "请用德语回答。",
    ),
    "upper_case": _wordings(
        (
            "Answer in capital letters.",
            "Use capital letters.",
            "Write in upper case.",
            "Reply in upper case only.",
            "Please use upper case.",
            "Say it in capital letters.",
            "Your answer must be in capital letters.",
        ),
        ("Please write in capital letters.", "I want it in upper case."),
        ("Réponds en majuscules.", "Écris en majuscules."),
        "Antworte in Großbuchstaben.",
        "请用大写字母回答。",
    ),
    "json": _wordings(
        (
            "Answer in JSON.",
            "Reply with JSON.",
            "Use JSON.",
            "Write a JSON object.",
            "Please use the JSON format.",
            "Say it in JSON.",
            "Your answer must be JSON.",
        ),
        ("Please reply in JSON.", "I want it in JSON."),
        ("Réponds en JSON.", "Écris un objet JSON."),
        "Antworte in JSON.",
        "请用JSON格式回答。",
    ),
    "one_word": _wordings(
        (
            "Answer with one word.",
            "Reply with one word.",
            "Use one word only.",
            "Write a single word.",
            "Please use a single word.",
            "Say it in one word.",
            "Your answer must be one word.",
        ),
        ("Please reply with a single word.", "I want it in one word."),
        ("Réponds en un mot.", "Un seul mot."),
        "Antworte mit einem Wort.",
        "请用一个词回答。",
    ),
    "keyword": _wordings(
        (
            "Use the word honestly.",
            "Answer with the word honestly.",
            "Write the word honestly.",
            "Reply with the word honestly.",
            "Please use the word honestly.",
            "Say the word honestly.",
            "Your answer must say honestly.",
        ),
        ("Please write the word honestly.", "I want the word honestly."),
        ("Utilise le mot honestly.", "Écris le mot honestly."),
        "Benutze das Wort honestly.",
        "请使用honestly这个词。",
    ),
    "twice": _wordings(
        (
            "Answer twice.",
            "Reply two times.",
            "Please write it twice.",
            "Say it twice.",
            "Say it two times.",
            "Please repeat your answer.",
            "Your answer must come twice.",
        ),
        ("Please answer two times.", "I want it twice."),
        ("Réponds deux fois.", "Écris deux fois."),
        "Antworte zweimal.",
        "请回答两遍。",
    ),
    "past": _wordings(
        (
            "Answer in the past tense.",
            "Use the past tense.",
            "Write in the past tense.",
            "Reply in the past tense.",
            "Please use the past tense.",
            "Say it in the past tense.",
            "Your answer must be in the past tense.",
        ),
        ("Please write in the past tense.", "I want it in the past tense."),
        ("Réponds au passé.", "Écris au passé."),
        "Antworte in der Vergangenheit.",
        "请用过去时回答。",
    ),
}

NEUTRAL = (
    "Thank you very much.",
    "Take your time.",
    "I am listening.",
    "There is no hurry.",
    "It is a fine day.",
    "Please and thank you.",
    "I have a question.",
    "Merci beaucoup.",
    "Vielen Dank.",
    "谢谢。",
)
