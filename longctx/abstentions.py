"""Whether an answer says no more than that there is none, such as "The passage does not say."

Such a sentence speaks of the text, of the question or of the model itself: "No one knows", "He
cannot answer the door" and "Unknown to her, the dog" are answers.
"""

import re

_ADVERBS = (
    r"(?:(?:explicitly|directly|clearly|specifically|actually|really|even|ever|currently|exactly|"
    r"definitively|fully|yet|been) )*"
)
_SOURCE = (
    r"(?:(?:any (?:part )?of )?(?:the|this|these|those|that|your|any|either|both)(?: of the)? "
    r"(?:(?:given|provided|above|supplied|available|entire|whole|short|long|\d+) )*)?"
    r"(?:passages?|texts?|stor(?:y|ies)|documents?|articles?|contexts?|excerpts?|books?|novels?|"
    r"scripts?|screenplays?|narratives?|paragraphs?|information|summar(?:y|ies)|contents?|"
    r"materials?|sources?|sections?|snippets?|plays?|author|narrator|film|movie)"
    r"(?: (?:that (?:was|were|is|are|you) |you(?: have)? )?"
    r"(?:provided|given|supplied|above|itself|alone|here))?"
)
_IN_SOURCE = rf"(?:in|by|from|within|on|with|using|anywhere in|based (?:up)?on) {_SOURCE}"
_SAY = (
    r"(?:say|mention|state|specify|tell|indicate|reveal|disclose|clarify|discuss|address|explain|"
    r"describe|identify|answer|make (?:it )?clear)"
)
_SAID = (
    r"(?:mentioned|stated|specified|given|provided|said|known|clear|revealed|told|disclosed|"
    r"answered|indicated|available|explained|described|discussed|addressed|identified|found|named|"
    r"present|included|answerable|shown|listed|determined)"
)
_GIVE = r"(?:provide|give|contain|include|offer|have|hold|present|supply)"
_FACT = (
    r"(?:information|infos?|details?|answers?|mentions?|indications?|context|clues?|data|evidence|"
    r"references?|reasons?|names?|descriptions?|explanations?|specifics|facts)"
)
_FIND = (
    r"(?:determine|answer|find|tell|say|know|infer|identify|conclude|provide|give|confirm|see|"
    r"establish|ascertain|deduce|locate|help|be certain|be sure)"
)
_FOUND = (
    r"(?:determined|answered|known|inferred|found|established|identified|ascertained|concluded|"
    r"deduced|provided|given|confirmed|said|told|seen)"
)
_ASKED = r"(?:who|whom|whose|what|when|where|which|why|how|if|whether)"
_REST = r"(?: .*)?"
_TO_SAY = (
    r"(?:| (?:this|that|the|your|these|any)(?: \w+)? (?:questions?|answers?).*"
    r"| (?:that|this|it|you|for (?:sure|certain))"
    rf"| {_ASKED}\b.*"
    rf"| (?:(?:it|that|this|anything|(?:any|an|the) \w+) )?{_IN_SOURCE}.*"
    rf"| (?:any|enough|the|an?|more|sufficient|specific)(?: \w+){{0,2}} {_FACT}\b.*)"
)
_SENTENCE = re.compile(
    "|".join(
        (
            r"unknown|unanswerable|none|na|not applicable|no answers?|no idea|idk|dunno",
            rf"(?:unknown|unanswerable|unclear|none|no answer) {_IN_SOURCE}",
            # Not mentioned. It is not mentioned (in the story). His name is not given in the text.
            rf"(?:(?:it|this|that|(?:the |this |such )?(?:information|answers?))(?: (?:is|are))? )?"
            rf"not {_ADVERBS}{_SAID}"
            rf"(?: (?:{_IN_SOURCE}|anywhere|here|{_ASKED})\b.*)?",
            rf"it was not {_ADVERBS}(?:mentioned|stated|specified|disclosed|provided)",
            rf"it (?:does|did) not {_ADVERBS}(?:say|mention|state|specify)"
            rf"(?: (?:{_IN_SOURCE}|{_ASKED})\b.*)?",
            rf".+ (?:is|are|was|were|has|have) (?:not|never) {_ADVERBS}{_SAID} {_IN_SOURCE}{_REST}",
            rf"no .+ (?:is|are|was|were) {_ADVERBS}{_SAID} {_IN_SOURCE}{_REST}",
            rf"(?:it|this|that|the (?:answer|question)) (?:is|was|remains) "
            rf"(?:unclear|unknown|uncertain|unspecified|undetermined|unanswerable|ambiguous)"
            rf"(?: (?:{_IN_SOURCE}|{_ASKED})\b.*)?",
            # The passage does not say. None of the passages mentions it. Nothing in the text says.
            rf"{_SOURCE} (?:do|does|did|can) not {_ADVERBS}{_SAY}{_REST}",
            rf"{_SOURCE} (?:never|fails? to|makes? no|gives? no|says? nothing|contains? no|"
            rf"provides? no|has no|have no|offers? no|includes? no)(?: .*)? ?"
            rf"(?:{_FACT}|{_SAY}s?|about)\b{_REST}",
            rf"{_SOURCE} (?:do|does|did) not {_ADVERBS}{_GIVE}(?: .*)? {_FACT}\b{_REST}",
            rf"{_SOURCE} (?:is|are|was|were) (?:unclear|silent|not clear|insufficient)\b{_REST}",
            rf"(?:none|neither) of {_SOURCE} {_ADVERBS}{_SAY}s?{_REST}",
            rf"(?:nothing|nowhere) {_IN_SOURCE}{_REST}",
            # There is no mention of it. Not enough information.
            r"there (?:is|are) (?:no|not (?:enough|any|sufficient)|insufficient)(?: \w+){0,2} "
            rf"(?:mentions?|information|indications?|answers?|details?)\b{_REST}",
            r"there (?:is|are|was|were) (?:no|not (?:enough|any|sufficient)|insufficient|nothing)\b"
            rf".* {_IN_SOURCE}{_REST}",
            r"(?:not enough|insufficient|inadequate|not sufficient)(?: \w+)? "
            rf"(?:infos?|information|context|details?|data|evidence)\b{_REST}",
            rf"no(?: \w+)? (?:information|mention|indication)(?: (?:of|on|about|regarding|is|was|"
            rf"to|provided|given|available|found|{_IN_SOURCE})\b.*)?",
            # I do not know. I cannot answer this question. I have no information.
            rf"(?:i|we) (?:{_ADVERBS})?(?:do|did) not {_ADVERBS}know{_REST}",
            rf"(?:i|we) (?:do|did) not {_ADVERBS}(?:have|find|see|possess)(?: .*)? "
            rf"(?:{_FACT}|access)\b{_REST}",
            rf"(?:i|we) (?:have|had|found|see) no (?:idea|clue|way of knowing|{_FACT})\b{_REST}",
            rf"(?:(?:i|we) )?(?:can|could) not {_ADVERBS}{_FIND}{_TO_SAY}",
            rf"(?:(?:i|we) (?:am|are|was|were) )?(?:unable|not able) to {_ADVERBS}{_FIND}{_TO_SAY}",
            r"(?:i|we) (?:am|are) (?:not (?:entirely |quite )?(?:sure|certain)|unsure|uncertain)"
            rf"(?: (?:of|about|based on|{_ASKED})\b.*)?",
            rf"(?:i|we) (?:would |will )?need more (?:information|context|details){_REST}",
            r"i am an? (?:ai|language|large language)\b.*",
            # It cannot be determined (from the text). It is impossible to say.
            rf"(?:(?:it|this|that|the answer|(?:the|this) question) )?(?:can|could) (?:not|never) "
            rf"{_ADVERBS}be {_ADVERBS}{_FOUND}(?: (?:{_IN_SOURCE}|{_ASKED}|for sure|here|with|"
            rf"without|because|as|due|since)\b.*)?",
            rf".+ (?:can|could) not {_ADVERBS}be {_ADVERBS}{_FOUND} {_IN_SOURCE}{_REST}",
            rf"(?:it|this) (?:is|was|would be) (?:not possible|impossible|difficult|hard) to "
            rf"{_ADVERBS}{_FIND}{_TO_SAY}",
            rf"(?:not possible|impossible|hard|difficult) to {_ADVERBS}{_FIND}{_TO_SAY}",
        )
    )
)
# What may stand around such a sentence.
_LEAD_IN = re.compile(
    r"(?:(?:i am )?(?:very |so )?sorry|i apologi[sz]e|apologies|unfortunately|i am afraid|"
    r"well|hmm|sadly|regrettably|no|so|therefore|thus|as an ai(?: language)?(?: model| assistant)?|"
    rf"(?:based (?:solely )?(?:up)?on|according to|from|in|given) {_SOURCE}|"
    r"the (?:correct |final )?answer(?: to (?:this|the|that|your) question)? is|"
    r"(?:final )?answer|it seems|it appears|i think|i believe)"
    r"(?: for (?:the|any) (?:confusion|inconvenience))?(?:\s*[,:;]|(?=\s))\s*(?:but |that )?"
)
_FOLLOW_UP = re.compile(
    r"(?:please|if you|could you|can you|let me know|it only|"
    rf"{_SOURCE} (?:only|is about|focuses|describes|discusses|mentions|talks)|"
    r"(?:more|further|additional) (?:information|context|details)|"
    r"(?:it|this|that) (?:is|does|was|can) not|would you|without|therefore i|so i)\b.*"
)
_CONTRAST = re.compile(
    r"[,;:]? *\b(?:but|however|although|though|except|yet|still|only that|nevertheless)\b"
)
_LONGEST_CHARACTERS = 1000


def is_abstention(text: str) -> bool:
    """Whether every sentence says that there is no answer, or follows from one that does."""
    sentences = _sentences(text) if len(text) <= _LONGEST_CHARACTERS else []
    return bool(sentences) and all(
        _abstains(sentence) or (place and _FOLLOW_UP.fullmatch(sentence))
        for place, sentence in enumerate(sentences)
    )


def _abstains(sentence: str) -> bool:
    while True:
        if _SENTENCE.fullmatch(sentence.replace(",", "")):
            # "The text does not say, but it was John" does answer.
            first, *others = _CONTRAST.split(sentence, maxsplit=1)
            return not others or not first or _abstains(others[0].strip(" ,"))
        lead_in = _LEAD_IN.match(sentence)
        if not lead_in or lead_in.end() == len(sentence):
            return False
        sentence = sentence[lead_in.end() :].strip(" ,")


def _sentences(text: str) -> list[str]:
    """Lower case, without contractions and punctuation other than commas, colons, semicolons."""
    text = text.casefold().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'")
    text = re.sub(r"\bcan't\b|\bcannot\b", "can not", re.sub(r"\bi'm\b", "i am", text))
    text = re.sub(r"\bit's\b", "it is", text)
    text = re.sub(r"n't\b", " not", text)
    text = re.sub(r"\bn/a\b|\bn\.a\.", "na", text)
    parts = re.split(r"[.!?\n]+(?:\s+|$)", text)
    plain = (" ".join(re.sub(r"[^\w\s,;:']", " ", part).split()).strip(" ,;:'") for part in parts)
    return [part for part in plain if part]
