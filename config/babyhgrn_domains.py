# Which part of the text teaches what: HGRN2 reads 1.18 million words of each of the corpus's four domains alone,
# and as many of the text without it; no model reads a word twice. All share one tokenizer: the corpora are made by
#     python data.py text english_childes corpus/childes.train.txt.gz --val=corpus/childes.dev.txt.gz \
#         --tokenizer=english
# and so on, and english_not_childes from the other three. A word of child-directed speech is 2.1 tokens, one of
# books 1.4; hence the steps. `python -m tools.figures phenomena results/babyhgrn_domains.json` draws them.

base = "english_small.py"

warmup = 50

eval_every = 700
tasks = "blimp_filtered,supplement"
against = "all"

models = {
    "all": {"max_steps": 506},
    "child-directed speech": {"corpus": "english_childes", "max_steps": 614},
    "without the speech": {"corpus": "english_not_childes", "max_steps": 443},
    "books": {"corpus": "english_gutenberg", "max_steps": 405},
    "without the books": {"corpus": "english_not_gutenberg", "max_steps": 564},
    "Simple Wikipedia": {"corpus": "english_simple_wiki", "max_steps": 491},
    "without Wikipedia": {"corpus": "english_not_simple_wiki", "max_steps": 508},
    "telephone talk": {"corpus": "english_switchboard", "max_steps": 497},
    "without the talk": {"corpus": "english_not_switchboard", "max_steps": 508},
}
