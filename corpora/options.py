"""
Tasks with options: a model is right if it finds the right candidate the most likely.

    form     candidates of a record                                         subtasks
    entity   each of five options after input_prefix (entity tracking)      regular_0_ops, ... of three files
    comps    property_phrase after each of two prefixes (COMPS)             base, wugs, ...
    piqa     each solution after prompt, divided by its tokens (GlobalPIQA) parallel, nonparallel
    wug      two sentences, whose preference is correlated with people's    the file's name

Each form has a function (record, file name) -> (kind, uid, term, fields), with the same layout for every form:
fields["options"] is [[context, text], ...] and fields["right"] the number of the right one. A wrong record raises
ValueError, KeyError or TypeError.
"""

from math import isfinite
from pathlib import Path

COMPS = {  # file -> subtask, as the organisers call it
    "comps_base": "base",
    "comps_wugs": "wugs",
    "comps_wugs_dist-before": "wugs_dist_before",
    "comps_wugs_dist-in-between": "wugs_dist_in_between",
}


def read_entity(record, file):
    """Kim and Schuster (2023): what is in the box after so many operations? The first option is right."""
    prefix, options, numops = record["input_prefix"], record["options"], record["numops"]
    if not isinstance(options, list) or len(options) < 2:
        raise TypeError("options is not a list of two or more")
    if not all(isinstance(option, str) for option in options):
        raise TypeError("options are not all text")
    if type(numops) is not int or numops < 0:
        raise ValueError(f"numops = {numops!r} is not a number of operations")
    if not prefix.endswith(" "):
        raise ValueError("input_prefix does not end with a space")
    fields = {"options": [[prefix[:-1], option] for option in options], "right": 0}
    return "options", f"{stem(file)}_{numops}_ops", stem(file), fields


def read_comps(record, file):
    """Misra et al. (2023): of which concept does the property hold? The acceptable prefix is right."""
    prefixes = record["prefix_acceptable"], record["prefix_unacceptable"]
    options = [[prefix, record["property_phrase"]] for prefix in prefixes]
    return "options", COMPS.get(stem(file), stem(file)), "", {"options": options, "right": 0}


def read_piqa(record, file):
    """GlobalPIQA: the likeliest solution per token; `label` is the number of the right one."""
    solutions, label = [], record["label"]
    while f"solution{len(solutions)}" in record:
        solutions.append(record[f"solution{len(solutions)}"])
    if not all(isinstance(solution, str) for solution in solutions):
        raise TypeError("solutions are not all text")
    if type(label) is not int or not 0 <= label < len(solutions):
        raise ValueError(f"label = {label!r} is not the number of one of {len(solutions)} solutions")
    options = [[record["prompt"], solution] for solution in solutions]
    fields = {"options": options, "right": label, "per_token": True, "id": str(record["example_id"])}
    if "parallel" not in stem(file):
        raise ValueError(f"{stem(file)!r} names neither parallel nor nonparallel, the benchmark's two halves")
    half = "nonparallel" if "nonparallel" in stem(file) else "parallel"
    return "options", half, "", fields


def read_wug(record, file):
    """Two sentences with a made-up word, and the share of people who prefer the first (Hofmann et al. 2025)."""
    sentences, ratio = record["sentences"].split("\t"), float(record["ratio"])
    if len(sentences) != 2 or not isfinite(ratio):
        raise ValueError("not two sentences with a tab between, and a ratio")
    options = [["", sentence] for sentence in sentences]
    return "wug", stem(file), "", {"options": options, "right": 0, "ratio": ratio}


def stem(file):
    """The name of a file, perhaps inside an archive ("a.zip:b/regular.jsonl"), without its endings."""
    return Path(file.rpartition(":")[2]).name.split(".")[0]


FORMS = {"entity": read_entity, "comps": read_comps, "piqa": read_piqa, "wug": read_wug}
