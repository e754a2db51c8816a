"""Pictures of what tools/bench.py measured: speed and memory of models, of recurrences, of single layers."""

from tools.figures_style import add_legend, keep, plt, use_log_y

PICTURES = {  # end of the file's name: {title of a panel, filled in from each row: (entry, number, over what)}
    "": {
        "training, float32: tokens/s": ("train_float32", "tokens_per_second", "T"),
        "training, float32: memory, MB": ("train_float32", "peak_bytes", "T"),
        "training, bfloat16: tokens/s": ("train_bfloat16", "tokens_per_second", "T"),
        "generation: tokens/s": ("generate_float32", "tokens_per_second", "position"),
        "scoring: minimal pairs/s": ("score_float32", "pairs_per_second", "model"),
    },
    "_kernels": {"{kernel}, {pass}: ms": ("kernels", "seconds", "T")},
    "_minrnn": {
        "a layer of width {D}, {B} sequences: ms": ("minrnn", "seconds", "T"),
        "a layer of width {D}, {B} sequences: MB": ("minrnn", "peak_bytes", "T"),
    },
}
AXES = {"T": "tokens in a sequence", "position": "tokens before it"}
UNITS = {"seconds": 1e3, "peak_bytes": 1e-6}  # drawn in ms and MB
OURS = {
    "HGRN2": "#d7301f",
    "HGRN2, CUDA graph": "#fdbb84",
    "minGRU": "#fc8d59",
    "minLSTM": "#e6ab02",
    "our Llama": "#8856a7",
    "Mamba": "#8856a7",
    "ours": "#d7301f",
}
PEERS = {  # drawn dashed
    "transformers Llama": "#045a8d",
    "transformers GPT-2": "#74a9cf",
    "torch LSTM": "#238b45",
    "torch GRU": "#99d8c9",
    "LSTM, a loop": "#045a8d",
    "GRU, a loop": "#74a9cf",
    "fla HGRN2": "#e7298a",
    "fla chunk_hgrn": "#045a8d",
    "fla chunk_gla": "#045a8d",
    "loop": "#8856a7",
}
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
    columns = 2 if log else 3
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(11, 3.7 * lines), squeeze=False)
    for axis, ((title, number, over), rows) in zip(axes.flat, panels.items()):
        if over == "model":
            names = [row["model"].replace(", ", "\n") for row in rows]
            axis.barh(names, [row[number] for row in rows], color=[OURS.get(name, "gray") for name in names])
            axis.invert_yaxis()
        else:
            draw_lines(axis, rows, number, over, log)
        axis.set_title(title.replace("_", " "))
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    add_legend(figure, columns=4)
    return keep(figure, path)


def draw_lines(axis, rows, number, over, log):
    """Draw a line for each model, peers dashed, and what the machine's memory allows at best."""
    for name in dict.fromkeys(row["model"] for row in rows):
        points = {row[over]: UNITS.get(number, 1) * row[number] for row in rows if row["model"] == name}
        color = OURS.get(name) or PEERS.get(name)
        dashes = "-" if name in OURS else "--"
        axis.plot(*zip(*points.items()), label=name, color=color, linestyle=dashes, marker="o")
    limit = {row[over]: 1e3 * row["floor_seconds"] for row in rows if "floor_seconds" in row}
    if limit:
        axis.plot(*zip(*limit.items()), label="the machine's limit", color="black", linestyle=":")
    ticks = sorted({row[over] for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.set_xlabel(AXES[over])
    if number == "seconds":
        axis.set_xlabel(f"{AXES[over]}\n{times_the_loop(rows)}".strip())
    axis.yaxis.set_major_formatter("{x:,.0f}")
    axis.grid()
    if log:
        use_log_y(axis)
    else:
        axis.set_ylim(0)


def times_the_loop(rows):
    """The speed of minGRU and minLSTM over that of their loops, beside what their paper says, in lines of text."""
    lines = []
    for row in rows:
        claim = CLAIMS.get((row["model"], row["T"]))
        if claim and "times_the_loop" in row:
            found = f"{row['model']} at T = {row['T']:,}: {row['times_the_loop']:,.1f} times its loop"
            lines.append(f"{found} (paper: {claim:,})")
    return "\n".join(lines)
