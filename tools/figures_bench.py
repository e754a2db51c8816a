"""Pictures of what tools/bench.py measured: speed and memory of models, of recurrences, of single layers."""

from tools.figures_style import COLORS, WIDTH, add_legend, keep, plt, use_log_y

PICTURES = {  # end of the file's name: {title of a panel, filled in from each row: (entry, number, over what)}
    "": {
        "training in float32: tokens per second": ("train_float32", "tokens_per_second", "T"),
        "training in float32: memory in MB": ("train_float32", "peak_bytes", "T"),
        "training in bfloat16: tokens per second": ("train_bfloat16", "tokens_per_second", "T"),
        "generation: tokens per second": ("generate_float32", "tokens_per_second", "position"),
        "scoring: minimal pairs per second": ("score_float32", "pairs_per_second", "model"),
    },
    "_kernels": {"{kernel}, {pass}: time in ms": ("kernels", "seconds", "T")},
    "_minrnn": {
        "training step of a layer, width {D}, {B} sequences: ms": ("minrnn", "seconds", "T"),
        "training step of a layer, width {D}, {B} sequences: MB": ("minrnn", "peak_bytes", "T"),
    },
}
AXES = {"T": "tokens in a sequence", "position": "tokens already in the text"}
UNITS = {"seconds": 1e3, "peak_bytes": 1e-6}  # drawn in ms and MB
LINES = {  # colour and dashes: ours are solid, others' dashed, a loop over the tokens dotted
    "ours": ("vermilion", "-"),
    "HGRN2": ("vermilion", "-"),
    "HGRN2, CUDA graph": ("vermilion", "-."),
    "fla HGRN2": ("vermilion", "--"),
    "fla chunk_hgrn": ("blue", "--"),
    "fla chunk_gla": ("blue", "--"),
    "loop": ("black", ":"),
    "minGRU": ("orange", "-"),
    "torch GRU": ("orange", "--"),
    "GRU, a loop": ("orange", ":"),
    "minLSTM": ("green", "-"),
    "torch LSTM": ("green", "--"),
    "LSTM, a loop": ("green", ":"),
    "our Llama": ("blue", "-"),
    "transformers Llama": ("blue", "--"),
    "transformers GPT-2": ("sky", "--"),
    "Mamba": ("purple", "-"),
}
MARKERS = {"-": "o", "--": "s", ":": "^", "-.": "D"}
CLAIMS = {("minGRU", 512): 175, ("minLSTM", 512): 235, ("minGRU", 4096): 1324, ("minLSTM", 4096): 1361}


def draw_benches(results, path):
    """Draw the entries of a result file of tools/bench.py that are there. Yields the paths of the pictures."""
    for end, templates in PICTURES.items():
        panels = {}
        for template, (entry, number, over) in templates.items():
            for row in results.get(entry, {}).get("rows", ()):
                if row.get(number) is not None:
                    title = template.format(**row)
                    if row.get("compiled"):
                        title += ", compiled"
                    panels.setdefault((title, number, over), []).append(row)
        if panels:
            yield draw_panels(panels, path.with_name(f"{path.stem}{end}.svg"), log=bool(end))


def draw_panels(panels, path, log):
    """Draw {(title, number, over what): rows} beside and below each other. Returns the path."""
    lines = -(-len(panels) // 2)
    figure, axes = plt.subplots(lines, 2, figsize=(WIDTH, 3.2 * lines), squeeze=False)
    for axis, ((title, number, over), rows) in zip(axes.flat, panels.items()):
        if over == "model":
            names = [row["model"].replace(", ", "\n") for row in rows]
            colors = [style_of(name)["color"] for name in names]
            axis.barh(names, [row[number] for row in rows], color=colors)
            axis.invert_yaxis()
        else:
            draw_lines(axis, rows, number, over, log)
        axis.set_title(title.replace("_", " "))
    if len(panels) % 2:
        axes[-1, -1].remove()
        add_legend(figure, columns=2, loc="lower right")
    else:
        add_legend(figure, columns=4)
    figure.suptitle("speed and memory of this repository (solid) and of others (dashed)")
    return keep(figure, path)


def draw_lines(axis, rows, number, over, log):
    """Draw a line for each model, and what the machine's memory allows at best."""
    for name in dict.fromkeys(row["model"] for row in rows):
        points = {row[over]: UNITS.get(number, 1) * row[number] for row in rows if row["model"] == name}
        axis.plot(*zip(*points.items()), label=name, **style_of(name))
    limit = {row[over]: 1e3 * row["floor_seconds"] for row in rows if "floor_seconds" in row}
    if limit:
        axis.plot(*zip(*limit.items()), label="the machine's limit", color="black", linestyle="-.")
    ticks = sorted({row[over] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_xlabel(AXES[over])
    claims = times_the_loop(rows) if number == "seconds" else ""
    if claims:
        axis.set_xlabel(f"{AXES[over]}\n{claims}\nThe paper measured on a T4 GPU.")
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.grid()
    if log:
        use_log_y(axis)
    else:
        axis.set_ylim(0)


def style_of(name):
    """Colour, dashes and marker of a model's line; gray, of one that is not known."""
    color, dashes = LINES.get(name, ("gray", "--"))
    return {"color": COLORS.get(color, color), "linestyle": dashes, "marker": MARKERS[dashes]}


def times_the_loop(rows):
    """The speed of minGRU and minLSTM over that of their loops, beside what their paper says, in lines of text."""
    lines = []
    for row in rows:
        claim = CLAIMS.get((row["model"], row["T"]))
        if claim and "times_the_loop" in row:
            found = f"{row['model']} at T = {row['T']:,}: {row['times_the_loop']:,.1f} times its loop"
            lines.append(f"{found} (paper: {claim:,})")
    return "\n".join(lines)
