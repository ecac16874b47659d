"""The part of docs/results.md on codecs, safety and speed: a point per script; see `experiments/results_page.py`."""

from __future__ import annotations

from typing import Any

from experiments.page_words import listed, load, percent, span, wrapped

STAGES = {"seedlm": "SeedLM", "vptq": "VPTQ", "hyper": "Hyper-Compression"}


def codecs() -> list[str]:
    """The section, a list."""
    points = (
        against_peers, search, whole_models, byte_budgets, entropy_coding, safe_to_open, safe_to_kill, safe_to_run,
        opening, an_evaluation, the_dashboard,
    )  # fmt: skip
    return ["## What the codecs are worth", "\n".join(wrapped(point()) for point in points)]


def mark(name: str) -> str:
    """`(old: why)`, where `old.json` says so of a result."""
    why = load("old.json").get(name)
    return f" (old: {why})" if why else ""


def against_peers() -> str:
    """Error at equal bytes."""
    compared = load("peers.json")["compared"]
    within = [row for row in compared if 1 <= row["bits"] <= 4 and row["margin_db"]["all"] is not None]

    def ahead(codec: str) -> tuple[int, int]:
        known = [row["margin_db"][codec] for row in within if row["margin_db"][codec] is not None]
        return sum(margin < 0 for margin in known), len(known)

    nearest = min(within, key=lambda row: row["margin_db"]["all"])
    others = sorted({row["coder"] for row in within})
    alone = listed([f"{STAGES[name]} {ahead(name)[0]} of {ahead(name)[1]}" for name in STAGES])
    return (
        f"- **Against peers**{mark('peers')} (`python -m experiments.peers`, all bytes counted, relative squared error "
        f"on synthetic weights and the reference model, no calibration): of {ahead('all')[1]} settings of "
        f"{listed(others)} from 1 to 4 bits {ahead('all')[0] or 'none'} are ahead of our three codecs together; the "
        f"nearest ({nearest['coder']} {nearest['setting']}) is {nearest['margin_db']['all']:.2f} dB behind. "
        f"Ahead of one codec alone: {alone}."
    )


def search() -> str:
    """SeedLM's seeds."""
    found = load("seed_search.json")
    rows = [row for row in found["rows"] if row["setting"] == "8,3,4"]
    times = [row["fast_1_per_processor_s"] / row["exhaustive_per_processor_s"] for row in rows]
    excess = listed([f"{percent(r['excess'], 2)} +- {percent(r['excess_stderr'], 2)} ({r['source']})" for r in rows])
    return (
        f"- **Search**{mark('seed_search')} (`python -m experiments.seed_search {found['arguments']}`): SeedLM at 4 "
        f"bits finds seeds for {span([r['fast_2_per_s'] / 1e6 for r in rows])} million weights per second on two cores "
        f"({span([r['fast_1_per_s'] / 1e6 for r in rows])} on one), {span(times, 0)} times the exhaustive search on "
        f"one core each, at {excess} more squared error."
    )


def whole_models() -> str:
    """Time and memory of encoding."""
    rows = load("whole_model.json")["rows"]
    size = min(row["size"] for row in rows if row["way"] == "run")
    run = [row for row in rows if row["way"] == "run" and row["size"] == size]
    streamed = [row for row in rows if row["way"] == "streamed" and row["size"] == size]
    largest = max(row["size"] for row in rows)
    large = [row for row in rows if row["size"] == largest]

    def gb(some: list[dict[str, Any]], name: str) -> str:
        return span([row[name] / 1000 for row in some])

    def seconds(some: list[dict[str, Any]]) -> str:
        return listed([f"{row['seconds']['encode']:.0f} s ({STAGES[row['stage']]})" for row in some])

    grown = [b["processor_s"]["encode"] / a["processor_s"]["encode"] for a, b in zip(streamed, large, strict=True)]
    return (
        f"- **A Llama of {run[0]['parameters'] / 1e6:.0f} million parameters**{mark('whole_model')} (`python -m "
        f"experiments.whole_model`), two cores: encoding takes {seconds(run)} in a run, decoding "
        f"{span([row['decode_s'] for row in run], 1)} s. Peak memory is {gb(streamed, 'peak_mb')} GB from disk to disk "
        f"(`python -m phase8 encode`), {gb(streamed, 'libraries_mb')} of it libraries; in a run {gb(run, 'peak_mb')} "
        f"GB, {gb(run, 'libraries_mb')} of it libraries. From disk to disk {large[0]['parameters'] / 1e6:.0f} million "
        f"parameters take {seconds(large)}, {span(grown, 0)} times the processor time of {size} million, and "
        f"{gb(large, 'peak_mb')} GB."
    )


def byte_budgets() -> str:
    """Settings of each tensor against one for all."""
    rows = load("allocation.json")["rows"]
    gains = {
        stage: [100 - 100 * row["allocated_kl"] / row["uniform_kl"] for row in rows if row["stage"] == stage]
        for stage in dict.fromkeys(row["stage"] for row in rows)
    }
    by = listed([f"{span(found, 0)} % for {STAGES[stage]}" for stage, found in gains.items()])
    return (
        f"- **Byte budgets**{mark('allocation')} (`python -m experiments.allocation`): `target_ratio=12` or "
        "`vptq.budget_bytes=400_000` gives every tensor settings of its own. At equal bytes the divergence from the "
        f"original falls by {by}, before training; training evens most of it out (`experiments/LOG.md`)."
    )


def entropy_coding() -> str:
    """Stored bytes over the empirical entropy."""
    found = load("entropy.json")["pools"]

    def excess(pools: list[dict[str, Any]]) -> str:
        streams = [pool for pool in pools if pool["codec"]]  # without header and manifest
        return f"{100 * sum(p['stored'] for p in streams) / sum(p['entropy'] for p in streams) - 100:.2f} %"

    default = listed([f"{STAGES[stage]}'s {excess(pools)}" for stage, pools in found["default"].items()])
    published = next(stages["hyper"] for name, stages in found.items() if name.startswith("published"))
    return (
        f"- **Entropy coding**{mark('entropy')} (`python -m experiments.entropy_table`): the streams end above their "
        f"empirical entropy, tables included: {default}. Hyper-Compression's codes are too few and too evenly spread "
        f"to pay for a table; with the published settings it is {excess(published)}."
    )


def safe_to_open() -> str:
    """Broken and forged files."""
    fuzz, forge = load("fuzz.json"), load("forge.json")
    refused = sum(row["outcome"].startswith("refused") for row in forge)
    sizes = span([row["size"] for row in forge], 0)
    return (
        f"- **Safe to open.** Broken files (`python -m experiments.fuzz --mutations {fuzz['mutations']}`): "
        f"{len(fuzz['failures'])} failures, the slowest took {1000 * fuzz['slowest_seconds']:.0f} ms of processor "
        "time, none took more than 1 MiB and twice the honest file's memory. Files forged from nothing, right in every "
        f"checksum and count (`python -m experiments.forge --count {len(forge)}`): {refused} of {len(forge)} refused, "
        f"{len(forge) - refused} within the budgets; of {sizes} bytes, the slowest took "
        f"{max(row['seconds'] for row in forge):.2f} s and the largest {max(r['peak_bytes'] for r in forge) / 1e6:.1f} "
        "MB."
    )


def safe_to_kill() -> str:
    """Runs that SIGKILL ends, and `resume`."""
    found = load("kills.json")
    rows = found["rows"].values()
    kills, runs, same = (sum(row[name] for row in rows) for name in ("kills", "runs", "same"))
    lost = "no finished step was lost" if not found["problems"] else f"problems: {len(found['problems'])}"
    return (
        f"- **Safe to kill** (`python experiments/kills.py --kills {kills} --out experiments/results/kills.md`): "
        f"{kills} SIGKILLs at random moments of {runs} runs of a tiny model ({listed(list(found['rows']))}), each gone "
        f"on with by `resume`: {lost}, and {same} of {runs} ended with the same bytes and the same result as a run "
        "that nobody interrupted."
    )


def safe_to_run() -> str:
    """Hostile programs behind the sandbox's walls, counted from the tables of `sandbox.md`."""
    walls: dict[str, list[list[str]]] = {}
    controlled = []
    for part in load("sandbox.md").split("\n## ")[1:]:
        title, *lines = part.splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][2:]
        if title.startswith("Control"):
            controlled += rows
        else:
            walls[title.split(":")[0]] = rows
    attacks = {len(rows) for rows in walls.values()}
    every = [row for rows in walls.values() for row in rows]
    passed = sum(row[1] != "failed" for row in every)
    harmed = sum(row[5] != "0 of 20" or any(cell not in ("0", "-") for cell in row[6:9]) for row in every)
    control = sum(row[1] != "failed" or row[5] != "0 of 20" for row in controlled)
    kinds = sorted({name.split(",")[0] for name in walls})
    return (
        f"- **Safe to run generated code** (`python -m experiments.sandbox_demo`): {span(attacks, 0)} attacks behind "
        f"each of {len(kinds)} walls ({listed(kinds)}), started by root and by an ordinary user: {passed} of "
        f"{len(every)} pass, {harmed} harm a file, leave a process or shared memory, or get a connection. Without a "
        f"wall {control} of {len(controlled)} do."
    )


def opening() -> str:
    """The numpy reader beside transformers."""
    rows = load("loading.json")["rows"]
    numpy = [row for row in rows if row["reader"] == "numpy"]
    plain = next(row for row in rows if row["reader"] == "uncompressed")
    same = all(row["same_text_as_torch"] for row in numpy)
    return (
        f"- **Opening it**{mark('loading')} (`python -m experiments.loading`, one thread): the reader in numpy alone "
        f"loads in {span([row['load_s_ratio'] for row in numpy])} times the time of the uncompressed model in "
        f"transformers, takes {span([row['token_ms_ratio'] for row in numpy])} times as long for a token, "
        f"{span([row['import_s'] for row in numpy])} s to import in place of {plain['import_s']:.1f}, and "
        f"{span([row['peak_mib'] for row in numpy], 0)} MiB in place of {plain['peak_mib']:.0f}; the same weights as "
        f"the torch loader, bit for bit, and {'the same text' if same else 'not always the same text'}."
    )


def an_evaluation() -> str:
    """Speed of the benchmarks against plain lm-eval."""
    found = load("evaluation.json")
    total = {
        way: {part: sum(row[part] for row in tasks.values()) for part in ("seconds", "model_seconds", "items")}
        for way, tasks in found["ways"].items()
    }
    ours, plain = total["phase8, first time"], total["lm-eval"]
    batched = total["lm-eval, batches of 64"]["seconds"] / ours["seconds"]
    return (
        f"- **An evaluation**{mark('evaluation')} (`python -m experiments.evaluation`, {found['threads']} thread): "
        f"{plain['seconds'] / ours['seconds']:.1f} times the items per second of plain lm-eval ({batched:.1f} times "
        f"that of lm-eval with batches of 64), {100 * ours['model_seconds'] / ours['seconds']:.0f} % of the time in "
        f"the model; {ours['items']:,} items."
    )


def the_dashboard() -> str:
    """What the page costs."""
    found = load("dashboard.json")
    return (
        f"- **The dashboard** (`python -m experiments.dashboard`): from an event to its pixel "
        f"{found['pixel']['median_ms']:.0f} ms in the median, {found['pixel']['p95_ms']:.0f} ms at the 95th "
        f"percentile; measured at a load of {found['beside']['pixel']['load_average']:.0f} on two cores. More: "
        "`experiments/results/dashboard.md`."
    )
